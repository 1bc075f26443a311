"""The settings and the computations of a steering lab, which its page and Python change."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from gemmascope.arguments import finite_number
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Add
from gemmascope.edits.places import Pos
from gemmascope.errors import EditError, GemmascopeError, SiteError, SweepError
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.followed import Followed, remarks_on
from gemmascope.labs.recompute import RecomputingLab
from gemmascope.labs.session import LONG
from gemmascope.labs.steering.curve import Curve, rungs_of
from gemmascope.labs.steering.ladder import Ladder
from gemmascope.labs.steering.places import SteeredPlaces, pos_after_click
from gemmascope.memory.limits import rows_within
from gemmascope.model.model import Model, Prompt
from gemmascope.run.bound_metric import bind_to_prompt
from gemmascope.run.metric import Answer
from gemmascope.steering.steered_runs import measure_strengths
from gemmascope.steering.strength_result import StrengthSweep
from gemmascope.sweeps.remarks import Remark, raise_first_error

if TYPE_CHECKING:
    import pandas

_OTHERWISE = "it is another direction, unless that is the same model in another form, or was trained from it"


@dataclass(frozen=True)
class SteerSettings:
    """As in gs.steer_lab. strength: what the vector is multiplied by."""

    prompt: Prompt
    strength: float = 0.0
    pos: Pos = None
    answer: Answer | None = None
    against: Answer | None = None


class SteerLabSession(RecomputingLab[SteerSettings]):
    """A steering lab without its page: the settings, and what follows from them.

    The curve and the ladder are made once something shows or asks for them, and kept while only the strength changes.
    """

    KIND = "steer lab"
    SETTINGS = ("prompt", "strength", "pos", "answer", "against")

    def __init__(
        self, edit: Add, strengths: tuple[float, float], settings: SteerSettings, max_new_tokens: int, model: Model
    ) -> None:
        super().__init__(model, max_new_tokens)
        self.edit, self.strengths = edit, strengths
        self._curve, self._ladder = Curve(*strengths), Ladder()
        self._no_curve: str | None = None
        self._is_wide_asked = False
        self._apply(settings, model)

    @property
    def strength(self) -> float:
        """What the vector is multiplied by."""
        return self._now.strength

    @property
    def pos(self) -> Pos:
        """The positions that are steered; None for all."""
        return self._now.pos

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change the settings and compute again.

        Args:
            **changes: `prompt`, `pos`, `answer` or `against`, as in `gs.steer_lab`, or `strength`, a number that may lie
                beyond the slider's ends; what is left out stays as it is.

        Raises:
            PromptError: The prompt or an answer cannot be read.
            GenerationError: The prompt leaves no room to generate.
            SiteError: The prompt has no such position.
            EditError: The strength is no finite number.
            SweepError: There is no such setting, or the answers do not go together. Nothing is changed then.
        """
        self._worker.require_open()
        self._apply(self._changed(changes), self.model)

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """The vector stays, if the model has a place of its width for it."""
        old = self.model.name
        try:
            self._apply(self._changed(changes), model)
        except (EditError, SiteError) as error:
            text = f"the vector that this lab adds does not go into {model.name!r}: {error}. Find one with that model, as "
            raise EditError(f"{text}gs.direction does, and open a lab with it") from error
        self._warn([Remark("warning", "vector", f"the vector was given for {old!r}: in {model.name!r} {_OTHERWISE}")])

    def _apply(self, settings: SteerSettings, model: Model, key: Hashable = None) -> None:
        strength = finite_number(settings.strength, "strength", error=EditError)
        remarks = remarks_on(settings.prompt, settings.answer, settings.against, model)
        raise_first_error(remarks, SweepError)
        is_first = not hasattr(self, "_now")
        is_new = is_first or model is not self.model or settings != replace(self._now, strength=settings.strength)
        self._change(replace(settings, strength=strength), model, key)
        if is_new:
            self._warn(remarks)

    def _begun(self, settings: SteerSettings, model: Model) -> BeforeAfter:
        is_first = not hasattr(self, "_now")
        is_other = is_first or model is not self.model or settings.prompt is not self._now.prompt
        if is_other or settings.pos is not self._now.pos:
            edits = [self._edit_at(SteeredPlaces.of(settings.pos, settings.prompt, model).pos)]
            run = BeforeAfter.of(settings.prompt, model, self.max_new_tokens, edits)
        if is_other or settings.pos is not self._now.pos:
            self._ladder = Ladder()
        if is_first or settings != replace(self._now, strength=settings.strength) or is_other:
            self._curve, self._no_curve = Curve(*self.strengths), None
        return run if is_other else self._run

    def click(self, position: int, *, onward: bool = False) -> None:
        """Steer at a token of the prompt, as a click on it does: at it alone, at it as well, or no longer at it.

        Args:
            position: The position in the prompt.
            onward: Whether to steer there and at everything after it, what is generated included.

        Raises:
            SiteError: The prompt has no such position.
        """
        self._worker.require_open()
        places = SteeredPlaces.of(self.pos, self.prompt, self.model)
        position = SteeredPlaces.of(position, self.prompt, self.model).positions[0]
        self.set(pos=pos_after_click(places, position, onward=onward))

    def _slide(self, strength: float) -> None:
        """As set(strength=...), undone at once with the strengths just before."""
        self._worker.require_open()
        self._apply(replace(self._now, strength=strength), self.model, "strength")

    def _edit_at(self, pos: Pos, strength: float = 1.0) -> Add:
        return replace(self.edit, pos=pos, scale=strength)

    # -- results --

    @property
    def edits(self) -> list[Edit]:
        """The steering as edits, for gs.trace or gs.generate; none at strength 0."""
        return self._edits_at(self.strength)

    def _edits_at(self, strength: float) -> list[Edit]:
        pos = SteeredPlaces.of(self.pos, self.prompt, self.model).pos
        return [self._edit_at(pos, strength)] if strength else []

    def ladder(self) -> dict[float, str]:
        """What the model writes at five strengths; waits for it.

        The curve decides them: they stand where what is followed moves, and as far as the text has not collapsed.

        Returns:
            The texts by strength; at 0 the unsteered one.
        """
        self._ask_wide()
        return dict(zip(self._ladder.strengths, self._ladder.texts, strict=True))

    def to_dataframe(self) -> pandas.DataFrame:
        """The curve below the slider; waits for it.

        Returns:
            One row for each strength: the metric of what is followed, the perplexity of the unsteered text under the
            steering, and whether that counts as collapsed.

        Raises:
            SiteError, SweepError: The vector is added where gs.strength_sweep cannot add one.
        """
        import pandas

        self._ask_wide()
        if self._no_curve is not None:
            raise SweepError(self._no_curve)
        curve = self._curve
        columns = {"strength": curve.strengths, "metric": curve.metric, "perplexity": curve.perplexity}
        return pandas.DataFrame({**columns, "collapsed": curve.collapsed})

    # -- computing --

    def _on_shown(self) -> None:
        self._begin_wide()

    def _begin_wide(self) -> None:
        """Have the curve and the ladder made, now and after each change."""
        with self.guard:
            if not self._is_wide_asked:
                self._is_wide_asked = True
                self._submit("the curve", LONG, self._told(self._wide_steps(), self.seq))

    def _ask_wide(self) -> None:
        self._begin_wide()
        self.wait()

    def _steps(self) -> Generator[None]:
        with self.guard:
            run, edits = self._run, self.edits
        yield from run.run(edits)
        yield from run.write(edits)
        if self._is_wide_asked:
            yield from self._wide_steps()

    def _wide_steps(self) -> Generator[None]:
        """Make the curve and the ladder, whose rungs the curve decides, as far as they are missing."""
        with self.guard:
            run, settings, curve, ladder = self._run, self._now, self._curve, self._ladder
        if run.before is None:
            return
        yield from self._curve_steps(run, settings, curve)
        with self.guard:
            ladder.strengths = ladder.strengths or rungs_of(curve)
            edits = [self._edits_at(strength) for strength in ladder.strengths]
        yield from ladder.steps(settings.prompt, self.model, edits, self.max_new_tokens)

    def _curve_steps(self, run: BeforeAfter, settings: SteerSettings, curve: Curve) -> Generator[None]:
        if curve.is_complete or self._no_curve is not None:
            return
        try:
            streams = self.model.network.layer_source is not None
            yield from curve.steps(lambda strengths: self._measure(run, settings, strengths), streams)
        except GemmascopeError as error:
            with self.guard:
                if curve is self._curve:
                    self._no_curve = str(error)
            yield

    def _measure(self, run: BeforeAfter, settings: SteerSettings, strengths: Sequence[float]) -> StrengthSweep:
        """What gs.strength_sweep gives for the prompt, with the unsteered text as the text whose perplexity is measured."""
        model, ids = run.model, run.model.ids(settings.prompt)
        metric = Followed.of(run, settings.answer, settings.against).metric
        bound = bind_to_prompt(metric, model, ids)
        pos = SteeredPlaces.of(settings.pos, settings.prompt, model).pos
        text = torch.cat((ids, torch.tensor(run.ids_before, dtype=ids.dtype, device=ids.device)))
        return measure_strengths(
            model,
            [ids],
            [text],
            self._edit_at(pos),
            strengths,
            [bound],
            metric_text(metric),
            rows_within(None, model),
            False,
        )
