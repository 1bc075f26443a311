"""gs.steer_lab: a slider for the strength of a steering vector, and the text before and after."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gemmascope.analysis.direction import Direction
from gemmascope.analysis.strengths import steering_edit
from gemmascope.errors import GemmascopeError, SweepError
from gemmascope.model.model import Model
from gemmascope.run.code import plain
from gemmascope.run.default import model_or_nano
from gemmascope.run.edits import Add, Edit
from gemmascope.run.showing import legible
from gemmascope.run.trace import Trace
from gemmascope.run.where import Head, Pos
from gemmascope.widgets.after import After
from gemmascope.widgets.follower import Follower
from gemmascope.widgets.shown_lab import Fields, display_lab, finite, script, shown_lab
from gemmascope.widgets.still import Still

if TYPE_CHECKING:
    import ipywidgets

N_STEPS = 64


class SteerLab:
    """A prompt and a vector: the last expression of a cell shows it. Everything that it shows can be had in Python.

    set(prompt=, strength=); wait(), cancel(). trace: steered, base: not. text, base_text: what the model goes on with.
    edits, code().
    """

    def __init__(self, prompt: Any, edit: Add, strengths: tuple[float, float], max_new_tokens: int, model: Model) -> None:
        self.model, self.edit, self.max_new_tokens = model, edit, max_new_tokens
        self.strengths = strengths
        self.prompt: Any = None
        self.strength = 0.0
        self._after: After = After.of(prompt, self.model, max_new_tokens)
        self._shown: Any = None
        self._still = Still(self._still_html, lambda: repr(self))
        self._follower = Follower(model, self._steps)
        self.set(prompt=prompt)

    def set(self, **changes: Any) -> None:
        """Change the prompt or the strength, which may lie beyond the slider's ends.

        Raises PromptError, GenerationError, EditError or SweepError for what cannot be, and then nothing is changed.
        """
        if odd := sorted(set(changes) - {"prompt", "strength"}):
            raise SweepError(f"a steer lab has no {odd[0]!r}; it has prompt, strength")
        strength = finite("strength", changes.get("strength", self.strength))
        prompt = changes.get("prompt", self.prompt)
        after = After.of(prompt, self.model, self.max_new_tokens) if "prompt" in changes else self._after
        if "prompt" in changes:
            after.check([replace(self.edit, scale=1.0)])
        with self._follower.guard:
            self._after, self.prompt, self.strength = after, prompt, strength
        self._follower.ask()

    def wait(self, timeout: float | None = None) -> SteerLab:
        """Wait until both texts are written. Raises what went wrong, GemmascopeError when the time is up."""
        self._follower.wait(timeout)
        return self

    def cancel(self) -> None:
        """End what is under way; what is written stays."""
        self._follower.cancel()

    @property
    def edits(self) -> list[Edit]:
        """The steering as edits of a run: none at strength 0."""
        return [replace(self.edit, scale=self.strength)] if self.strength else []

    @property
    def trace(self) -> Trace:
        """The prompt's trace, steered."""
        self.wait()
        assert self._after.after is not None
        return self._after.after

    @property
    def base(self) -> Trace:
        """Its trace without steering."""
        self.wait()
        assert self._after.before is not None
        return self._after.before

    @property
    def text(self) -> str:
        """What the model goes on with, steered."""
        self.wait()
        return self._after.text_after or ""

    @property
    def base_text(self) -> str:
        """What it goes on with by itself."""
        self.wait()
        return self._after.text_before or ""

    def code(self) -> str:
        """The Python that makes this run again. The vector stands for itself: it is too long to write out."""
        places = "".join(
            f", {name}={plain(value)!r}"
            for name in ("layer", "pos", "head")
            if (value := getattr(self.edit, name)) is not None
        )
        edits = [f"gs.add({self.edit.site!r}, vector{places}, scale={self.strength!r})"] if self.strength else []
        return script(self.model, self.prompt, edits, self.max_new_tokens)

    def _steps(self) -> Generator[None]:
        with self._follower.guard:
            after, edits = self._after, self.edits
        yield from after.traced(edits)
        yield from after.written(edits)

    @property
    def widget(self) -> ipywidgets.Widget:
        """The live widget. Made once. SweepError where ipywidgets or anywidget is missing."""
        if self._shown is None:
            wishes = {"cancel": lambda _: self.cancel()}
            self._shown = shown_lab("steer_lab.js", self._follower, self._fields, self._state, wishes, self._still)
        return self._shown

    def _fields(self) -> Sequence[Any]:
        import ipywidgets as w

        low, high = self.strengths
        fields = Fields(self.model, lambda: {"prompt": self.prompt}, self._typed)
        slider = w.FloatSlider(
            value=min(max(self.strength, low), high), min=low, max=high, step=(high - low) / N_STEPS, description="strength",
            readout_format=".2f", layout=w.Layout(width="98%"), style={"description_width": "70px"},
        )  # fmt: skip
        slider.observe(lambda change: self._typed("strength", change["new"]), names="value")
        return [fields.box(), slider]

    def _typed(self, name: str, value: Any) -> None:
        try:
            if isinstance(value, GemmascopeError):
                raise value
            self.set(**{name: value})
        except GemmascopeError as error:
            self._follower.refuse(error)

    def _state(self) -> dict[str, Any]:
        with self._follower.guard:
            after, strength = self._after, self.strength
        return {**after.as_data(), "strength": strength, "said": self._said(after, strength), "code": self.code()}

    def _said(self, after: After, strength: float) -> str:
        """How strong the steering is, beside what it is added to."""
        site = self.edit.site if self.edit.layer is None else f"{self.edit.site} of layer {self.edit.layer}"
        length = abs(strength) * float(self.edit.vector.float().norm())
        return f"strength {strength:+.2f}: a vector of length {length:.3g} is added to {site}"

    def _still_html(self) -> str:
        """The texts as HTML: text, whatever is in it."""
        return f"<pre style='white-space:pre-wrap'>{escape(legible(repr(self)))}</pre>"

    def _ipython_display_(self) -> None:
        """The live widget, and a still for notebooks that are saved, exported or have no front end for it."""
        display_lab(self, self._follower, self._still)

    def __repr__(self) -> str:
        lines = [f"SteerLab of {self.model.name}: {self.prompt!r}", f"  {self._said(self._after, self.strength)}"]
        if not self._follower.is_busy and self._after.text_after is not None:
            lines += [f"  before: {self._after.text_before!r}", f"  after:  {self._after.text_after!r}"]
        return "\n".join(lines)


def steer_lab(
    prompt: Any,
    vector: Tensor | Direction,
    *,
    strengths: tuple[float, float] = (-8.0, 8.0),
    site: str | None = None,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    max_new_tokens: int = 24,
    model: Model | None = None,
) -> SteerLab:
    """A lab about a steering vector: strength x vector is added at a site, in the prompt and in what is generated.

    vector: as in gs.add, or what gs.direction returns, which knows its site, layer and head. strengths: the slider's ends,
    the lower one first; it begins at 0. pos: the positions that are steered; None for all. max_new_tokens: how far the text
    goes on, greedily. model: None means nano.
    Raises PromptError, SiteError, EditError, GenerationError or SweepError for what does not fit, before anything is run.
    """
    edit = steering_edit(vector, site, layer, head, pos)
    if not isinstance(strengths, (tuple, list)) or len(strengths) != 2:
        raise SweepError(f"strengths are the slider's two ends, such as (-8, 8); given {strengths!r}")
    low, high = (finite("strengths", end) for end in strengths)
    if not low < high or not low <= 0 <= high:
        raise SweepError(f"strengths go from a lower to a higher number with 0 between them; given {strengths!r}")
    return SteerLab(prompt, edit, (low, high), max_new_tokens, model_or_nano(model))
