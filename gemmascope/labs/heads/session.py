"""The settings and the computations of a head lab, which its page and Python change."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gemmascope.arguments import finite_number, is_whole, short_repr, true_or_false
from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.edits.places import find_heads
from gemmascope.errors import EditError, SweepError
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.followed import Followed
from gemmascope.labs.heads.desk import Channel, Desk, taken_up
from gemmascope.labs.heads.settings import HeadSettings
from gemmascope.labs.heads.shown import ShownHeads
from gemmascope.labs.heads.views import head_views
from gemmascope.labs.recompute import RecomputingLab
from gemmascope.labs.session import CLICK
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.sites import find_layer, find_site
from gemmascope.sweeps.remarks import raise_first_error
from gemmascope.views.page import View


class HeadLabSession(RecomputingLab[HeadSettings]):
    """A head lab without its page: the settings, what is done to the heads, and what follows from them."""

    KIND = "head lab"
    SETTINGS = ("prompt", "answer", "against")

    def __init__(
        self,
        prompt: Prompt,
        answer: Answer | None = None,
        against: Answer | None = None,
        model: Model | None = None,
        max_new_tokens: int = 16,
        edits: Sequence[Edit] = (),
    ) -> None:
        model = model_or_nano(model)
        super().__init__(model, max_new_tokens)
        self.views: tuple[View, ...] = ()
        self.selected: Channel = (0, 0)
        self._shown = ShownHeads()
        desk, others = taken_up(listed_edits(edits), model)
        self._apply(HeadSettings(prompt, answer, against, desk, tuple(others)), model)

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change the prompt or the answers and compute again. Scaled heads stay scaled.

        Args:
            **changes: `prompt`, `answer` or `against`, as in `gs.head_lab`; what is left out stays as it is.

        Raises:
            PromptError: A prompt or an answer cannot be read.
            GenerationError: The prompt leaves no room to generate.
            SweepError: There is no such setting, or the answers do not go together. Nothing is changed then.
            SiteError, EditError: An edit that the lab was given does not fit the prompt.
        """
        self._worker.require_open()
        self._apply(self._changed(changes), self.model)

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """No head stays scaled, and no edit: those of another model are others."""
        self._apply(replace(self._changed(changes), desk=Desk(), others=()), model)

    def _apply(self, settings: HeadSettings, model: Model) -> None:
        remarks = settings.remarks(model)
        raise_first_error(remarks, SweepError)
        if model is not self.model:
            self.selected, self.views = (0, 0), ()
        self._change(settings, model)
        self._warn(remarks)

    def _begun(self, settings: HeadSettings, model: Model) -> BeforeAfter:
        is_known = hasattr(self, "_run") and model is self.model and settings.prompt is self._now.prompt
        return self._run if is_known else BeforeAfter.of(settings.prompt, model, self.max_new_tokens, settings.others)

    def scale(self, layer: int, head: int, by: float) -> None:
        """Multiply what a head reads (its `z`) by a number, at every position, generated ones included.

        Args:
            layer: Number of the layer; negative ones count from the last.
            head: Number of the query head in that layer.
            by: The factor: 0 ablates the head, 1 leaves it as it is.

        Raises:
            SiteError: There is no such layer or head.
            EditError: by is no finite number, or head names several heads.
        """
        self._turn(layer, head, by, is_by_itself=True)

    def _turn(self, layer: int, head: int, by: float, *, is_by_itself: bool = False) -> None:
        """As scale. Unless it is a change by itself, it is undone together with those of the same head before it."""
        channel = self._channel(layer, head)
        by = finite_number(by, "by", error=EditError)
        self._set_desk(self._now.desk.scaled(channel, by), None if is_by_itself else channel, channel)

    def mute(self, layer: int, head: int, on: bool = True) -> None:
        """Ablate a head, or end that: then it has the factor again that it had before.

        Args:
            layer: Number of the layer; negative ones count from the last.
            head: Number of the query head in that layer.
            on: Whether the head is muted.

        Raises:
            SiteError: There is no such layer or head.
            EditError: head names several heads, or on is neither True nor False.
        """
        self._switch(Desk.with_mute, layer, head, on)

    def solo(self, layer: int, head: int, on: bool = True) -> None:
        """Ablate all heads of the model but this one, and others that are soloed; or end that.

        Args:
            layer: Number of the layer; negative ones count from the last.
            head: Number of the query head in that layer.
            on: Whether the head is soloed.

        Raises:
            SiteError: There is no such layer or head.
            EditError: head names several heads, or on is neither True nor False.
        """
        self._switch(Desk.with_solo, layer, head, on)

    def reset(self) -> None:
        """Leave every head as it is. Edits that the lab was given and that are no scaled heads stay."""
        self._worker.require_open()
        self._set_desk(Desk())

    def remove(self, number: int) -> None:
        """Take out an edit that the lab was given and that is no scaled head.

        Args:
            number: Its number among those, counted from 0.

        Raises:
            EditError: There is no such edit.
        """
        self._worker.require_open()
        others = self._now.others
        if not is_whole(number) or not 0 <= number < len(others):
            has = f"it has {len(others)}, counted from 0" if others else "it has none"
            raise EditError(f"there is no edit {short_repr(number)} to remove: beside scaled heads {has}")
        kept = (*others[:number], *others[number + 1 :])
        self._change(replace(self._now, others=kept), self.model)

    def select(self, layer: int, head: int) -> None:
        """Show the pattern of a head on the page.

        Args:
            layer: Number of the layer; negative ones count from the last.
            head: Number of the query head in that layer.

        Raises:
            SiteError: There is no such layer or head.
            EditError: head names several heads.
        """
        self.selected = self._channel(layer, head)
        self._submit("the pattern", CLICK, self._look())

    def _switch(self, switched: Callable[[Desk, Channel, bool], Desk], layer: int, head: int, on: bool) -> None:
        """Switch one thing of a head on or off, and show the head."""
        channel = self._channel(layer, head)
        self._set_desk(switched(self._now.desk, channel, true_or_false(on, "on", error=EditError)), selected=channel)

    def _channel(self, layer: object, head: object) -> Channel:
        self._worker.require_open()
        number = find_layer(layer, self.model.n_layers)
        heads = find_heads(head, find_site("z"), self.model) or []
        if len(heads) != 1:
            raise EditError(f"one head is scaled at a time; given {short_repr(head)}")
        return number, heads[0]

    def _set_desk(self, desk: Desk, key: Hashable = None, selected: Channel | None = None) -> None:
        if selected is not None:
            self.selected = selected
        self._change(replace(self._now, desk=desk), self.model, key)

    # -- results --

    @property
    def factors(self) -> dict[tuple[int, int], float]:
        """The factor of every scaled head, by (layer, head)."""
        return self._now.factors(self.model)

    @property
    def edits(self) -> list[Edit]:
        """What the lab changes, as edits for gs.trace or gs.generate: those that it was given, and the scaled heads."""
        return self._now.edits(self.model)

    def moved(self) -> tuple[str, float, float]:
        """What the scaled heads do to the answer; waits for it.

        Returns:
            What is measured, and its value without and with the change: a difference of logits after the soft cap, a
            probability, or without an answer the probability of the likeliest token of the unchanged run.
        """
        self.wait()
        return self._moved(self._run)

    def code(self) -> str:
        """The Python that repeats the run.

        Returns:
            A script that makes `trace` and `text`.
        """
        return self._script(self.edits)

    # -- computing --

    def _steps(self) -> Generator[None]:
        with self.guard:
            run, settings, model = self._run, self._now, self.model
        edits = settings.edits(model)
        yield from run.run(edits)
        assert run.before is not None
        assert run.after is not None
        yield from self._shown.steps(run, Followed.of(run, settings.answer, settings.against), self.selected)
        yield from run.write(edits)
        self.views, refused = head_views(run.after, settings.answer)
        yield
        if refused is not None:
            raise refused

    def _look(self) -> Generator[None]:
        with self.guard:
            run, channel = self._run, self.selected
        if run.before is not None and run.after is not None:
            self._shown.look((run.before, run.after), channel)
            self.notify("detail", self.seq)
        yield

    def _moved(self, run: BeforeAfter) -> tuple[str, float, float]:
        followed = Followed.of(run, self.answer, self.against)
        return (followed.name, *followed.before_and_after(run))

    def _end(self) -> None:
        super()._end()
        self.views = ()
        self._shown = ShownHeads()
