"""gs.head_lab: type a prompt, look at its heads, switch them off or scale them, and see the answer move."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gemmascope.arguments import shown
from gemmascope.edits.edit import Edit
from gemmascope.edits.make import scale
from gemmascope.edits.places import find_heads
from gemmascope.errors import EditError, GemmascopeError, SweepError
from gemmascope.labs.base import FollowingLab, finite
from gemmascope.labs.before_after import After
from gemmascope.labs.fields import Fields
from gemmascope.labs.patching.detail import token_text
from gemmascope.legible import legibly, spelled
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.run.metric import answer_ids, bind_metric
from gemmascope.run.trace import Trace
from gemmascope.sites import find_layer, find_site
from gemmascope.sweeps.metrics import answer_prob, logit_diff
from gemmascope.sweeps.remarks import Remark, answer_remarks, prompt_remarks, raise_first_error
from gemmascope.views.attention import attention_view
from gemmascope.views.lens import lens_view
from gemmascope.views.page import View

if TYPE_CHECKING:
    from gemmascope.labs.widget import Wishes

ASKED = ("prompt", "answer", "against")


class HeadLab(FollowingLab):
    """A prompt and its heads: the last expression of a cell shows it. Everything that it shows can be had in Python.

    set(prompt=, answer=, against=); scale(layer, head, by), reset(); wait(), cancel(). trace: with the heads as they are
    scaled, base: without. text, base_text: what the model goes on with. moved(): the answer before and after. views:
    patterns and lens. edits, code().
    """

    LIVE = "head_lab.js"

    def __init__(
        self, prompt: Any, answer: Any = None, against: Any = None, model: Model | None = None, max_new_tokens: int = 16
    ) -> None:
        super().__init__(model_or_nano(model), max_new_tokens)
        self.prompt, self.answer, self.against = prompt, answer, against
        self.views: tuple[View, ...] = ()
        self._factors: dict[tuple[int, int], float] = {}
        self._n_views = 0
        self.set(prompt=prompt, answer=answer, against=against)

    # -- what is asked --

    def set(self, **changes: Any) -> None:
        """Change the prompt, the answer, or what it is held against (None: its probability); heads stay as they are scaled.

        Raises PromptError, GenerationError or SweepError for what cannot be, and then nothing is changed.
        """
        self._follower.require_open()
        if odd := sorted(set(changes) - set(ASKED)):
            raise SweepError(f"a head lab has no {odd[0]!r}; it has {', '.join(ASKED)}")
        asked = {name: changes.get(name, getattr(self, name)) for name in ASKED}
        remarks = _remarks(**asked, model=self.model)
        raise_first_error(remarks, SweepError)
        after = After.of(asked["prompt"], self.model, self.max_new_tokens) if "prompt" in changes else self._after
        with self._follower.guard:
            self._after = after
            self.prompt, self.answer, self.against = asked["prompt"], asked["answer"], asked["against"]
        self._follower.ask()
        self._warn(remarks)

    def scale(self, layer: int, head: int, by: float) -> None:
        """Multiply what a head reads (its z) by a number: 0 ablates it, 1 leaves it as it is. SiteError, EditError."""
        self._follower.require_open()
        layer = find_layer(layer, self.model.n_layers)
        found = find_heads(head, find_site("z"), self.model) or []
        if len(found) != 1:
            raise EditError(f"one head is scaled at a time; given {shown(head)}")
        by = finite("by", by)
        with self._follower.guard:
            self._factors[layer, found[0]] = by
            if by == 1:
                del self._factors[layer, found[0]]
        self._follower.ask()

    def reset(self) -> None:
        """Leave every head as it is."""
        self._follower.require_open()
        with self._follower.guard:
            self._factors.clear()
        self._follower.ask()

    # -- what was found --

    @property
    def factors(self) -> dict[tuple[int, int], float]:
        """What heads are multiplied by, by (layer, head)."""
        with self._follower.guard:
            return dict(sorted(self._factors.items()))

    @property
    def edits(self) -> list[Edit]:
        """The same as edits of a run."""
        return [scale("z", by, layer=layer, head=head) for (layer, head), by in self.factors.items()]

    def moved(self) -> tuple[str, float, float]:
        """The answer's metric: its name, its value without and with the change. Without an answer, the likeliest token's."""
        self.wait()
        return self._moved(self._after)

    def code(self) -> str:
        """The Python that makes this run again."""
        edits = [f"gs.scale('z', {by!r}, layer={layer}, head={head})" for (layer, head), by in self.factors.items()]
        return self._script(edits)

    # -- how it is found --

    def _steps(self) -> Generator[None]:
        with self._follower.guard:
            after, edits, answer = self._after, self.edits, self.answer
        yield from after.traced(edits)
        assert after.after is not None
        views, refused = _views(after.after, answer)
        self.views, self._n_views = views, self._n_views + 1
        yield
        yield from after.written(edits)
        if refused is not None:
            raise refused

    def _moved(self, after: After) -> tuple[str, float, float]:
        assert after.before is not None
        assert after.after is not None
        if self.answer is None:
            token = int(after.before.next_logits.argmax())
            return _measured(answer_prob(token), f"probability of {token_text(self.model, token)!r}", after)
        if self.against is None:
            return _measured(answer_prob(self.answer), f"probability of {self.answer!r}", after)
        return _measured(logit_diff(self.answer, self.against), f"logit of {self.answer!r} less {self.against!r}", after)

    # -- how it is shown --

    def _end(self) -> None:
        super()._end()
        self.views = ()

    def _controls(self) -> Sequence[Any]:
        return [Fields(self.model, lambda: {name: getattr(self, name) for name in ASKED}, self._typed).box()]

    def _wishes(self) -> Wishes:
        return {"scale": lambda m: self.scale(m["layer"], m["head"], m["by"]), "reset": lambda _: self.reset()}

    def _state(self) -> dict[str, Any]:
        with self._follower.guard:
            after = self._after
            scaled = [{"layer": layer, "head": head, "by": by} for (layer, head), by in self.factors.items()]
        moved = None
        if after.before is not None and after.after is not None:
            name, before, now = self._moved(after)
            moved = {"name": name, "before": before, "after": now}
        return {**after.as_data(), "scaled": scaled, "moved": moved, "code": self.code()}

    def _pictures(self) -> dict[str, Any]:
        views = [{"spec": dict(view.spec), "arrays": dict(view.arrays)} for view in self.views]
        return {"number": self._n_views, "views": views}

    def _still_html(self) -> str:
        return "\n".join(view.to_html() for view in self.views)

    @legibly
    def __repr__(self) -> str:
        lines = [f"HeadLab of {spelled(self.model.name)}: {self.prompt!r}{self._closed_text}"]
        lines += [f"  layer {layer} head {head} x {by:g}" for (layer, head), by in self.factors.items()]
        if not self._follower.is_busy and self._after.after is not None:
            name, before, after = self._moved(self._after)
            lines += [f"  {name}: {before:.4g} before, {after:.4g} after", f"  goes on with {self._after.text_after!r}"]
        return "\n".join(lines)


def head_lab(
    prompt: Any, answer: Any = None, against: Any = None, model: Model | None = None, max_new_tokens: int = 16
) -> HeadLab:
    """A lab about a prompt and its heads: patterns, lens and text follow what is typed, and which heads are scaled.

    answer: a token to follow, its probability, or with against, its logit less that one's (both after the soft cap);
    without, the likeliest next token. model: None means nano. max_new_tokens: how far the text goes on, greedily.
    Scaling a head multiplies its `z` at every position, generated ones included: 0 ablates it.
    Raises PromptError, GenerationError or SweepError for what cannot be.
    """
    return HeadLab(prompt, answer, against, model, max_new_tokens)


def _remarks(prompt: Any, answer: Any, against: Any, model: Model) -> list[Remark]:
    """What there is to say of a prompt and its answers. SweepError for an answer that is missing."""
    if against is not None and answer is None:
        raise SweepError(f"against={shown(against)} is what an answer is held against: give the answer, too")
    ids = model.ids(prompt)
    answers = {name: given for name, given in (("answer", answer), ("against", against)) if given is not None}
    return [*prompt_remarks("prompt", ids, model), *answer_remarks(answers, ids, model)]


def _views(run: Trace, answer: Any) -> tuple[tuple[View, ...], GemmascopeError | None]:
    """The patterns and the lens; of a prompt too long for a page, why there are none."""
    try:
        ids = [] if answer is None else answer_ids(answer, run.model)
        # By its number, of which the lens has nothing to say that the lab has not said.
        views = attention_view(run), lens_view(run, answer=ids[0] if len(ids) == 1 else answer)
    except GemmascopeError as error:
        return (), error
    said = ", with the heads scaled" if run.edits else ""
    return tuple(replace(view, spec={**view.spec, "title": view.title + said}) for view in views), None


def _measured(metric: Any, name: str, after: After) -> tuple[str, float, float]:
    bound = bind_metric(metric, after.model)
    before, now = (float(bound(run.next_logits[None])[0]) for run in (after.before, after.after) if run is not None)
    return name, before, now
