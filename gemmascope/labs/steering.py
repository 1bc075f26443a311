"""gs.steer_lab: a slider for the strength of a steering vector, and the text before and after."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from torch import Tensor

from gemmascope.arguments import shown
from gemmascope.edits.call_text import plain
from gemmascope.edits.edit import Add, Edit
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import SweepError
from gemmascope.labs.base import FollowingLab, finite
from gemmascope.labs.before_after import After
from gemmascope.labs.fields import Fields
from gemmascope.legible import legible, legibly, spelled
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.steering.direction import Direction
from gemmascope.steering.strengths import steering_edit
from gemmascope.sweeps.remarks import prompt_remarks

N_STEPS = 64


class SteerLab(FollowingLab):
    """A prompt and a vector: the last expression of a cell shows it. Everything that it shows can be had in Python.

    set(prompt=, strength=); wait(), cancel(). trace: steered, base: not. text, base_text: what the model goes on with.
    edits, code().
    """

    LIVE = "steer_lab.js"

    def __init__(self, prompt: Any, edit: Add, strengths: tuple[float, float], max_new_tokens: int, model: Model) -> None:
        super().__init__(model, max_new_tokens)
        self.edit, self.strengths = edit, strengths
        self.prompt, self.strength = prompt, 0.0
        self.set(prompt=prompt)

    def set(self, **changes: Any) -> None:
        """Change the prompt or the strength, which may lie beyond the slider's ends.

        Raises PromptError, GenerationError, EditError or SweepError for what cannot be, and then nothing is changed.
        """
        self._follower.require_open()
        if odd := sorted(set(changes) - {"prompt", "strength"}):
            raise SweepError(f"a steer lab has no {odd[0]!r}; it has prompt, strength")
        strength = finite("strength", changes.get("strength", self.strength))
        prompt = changes.get("prompt", self.prompt)
        edits = [replace(self.edit, scale=1.0)]
        after = After.of(prompt, self.model, self.max_new_tokens, edits) if "prompt" in changes else self._after
        with self._follower.guard:
            self._after, self.prompt, self.strength = after, prompt, strength
        self._follower.ask()
        if "prompt" in changes:
            self._warn(list(prompt_remarks("prompt", self.model.ids(prompt), self.model)))

    @property
    def edits(self) -> list[Edit]:
        """The steering as edits of a run: none at strength 0."""
        return [replace(self.edit, scale=self.strength)] if self.strength else []

    def code(self) -> str:
        """The Python that makes this run again. The vector stands for itself: it is too long to write out."""
        places = "".join(
            f", {name}={plain(value)!r}"
            for name in ("layer", "pos", "head")
            if (value := getattr(self.edit, name)) is not None
        )
        edits = [f"gs.add({self.edit.site!r}, vector{places}, scale={self.strength!r})"] if self.strength else []
        note = "# vector: the one that the lab steers with, which is too long to write out: give it that name\n"
        return self._script(edits, note if edits else "")

    def _steps(self) -> Generator[None]:
        with self._follower.guard:
            after, edits = self._after, self.edits
        yield from after.traced(edits)
        yield from after.written(edits)

    def _controls(self) -> Sequence[Any]:
        import ipywidgets as w

        low, high = self.strengths
        fields = Fields(self.model, lambda: {"prompt": self.prompt}, self._typed)
        slider = w.FloatSlider(
            value=min(max(self.strength, low), high), min=low, max=high, step=(high - low) / N_STEPS, description="strength",
            readout_format=".2f", layout=w.Layout(width="98%"), style={"description_width": "70px"},
        )  # fmt: skip
        slider.observe(lambda change: self._typed("strength", lambda: change["new"]), names="value")
        return [fields.box(), slider]

    def _state(self) -> dict[str, Any]:
        with self._follower.guard:
            after, strength = self._after, self.strength
        return {**after.as_data(), "strength": strength, "said": self._said(strength), "code": self.code()}

    def _said(self, strength: float) -> str:
        """How strong the steering is, beside what it is added to."""
        site = self.edit.site if self.edit.layer is None else f"{self.edit.site} of layer {self.edit.layer}"
        length = abs(strength) * float(self.edit.vector.float().norm())
        return f"strength {strength:+.2f}: a vector of length {length:.3g} is added to {site}"

    def _still_html(self) -> str:
        """The texts as HTML: text, whatever is in it."""
        return f"<pre style='white-space:pre-wrap'>{escape(legible(repr(self)))}</pre>"

    @legibly
    def __repr__(self) -> str:
        lines = [
            f"SteerLab of {spelled(self.model.name)}: {self.prompt!r}{self._closed_text}",
            f"  {self._said(self.strength)}",
        ]
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
        raise SweepError(f"strengths are the slider's two ends, such as (-8, 8); given {shown(strengths)}")
    low, high = (finite("strengths", end) for end in strengths)
    if not low < high or not low <= 0 <= high:
        raise SweepError(f"strengths go from a lower to a higher number with 0 between them; given {shown(strengths)}")
    return SteerLab(prompt, edit, (low, high), max_new_tokens, model_or_nano(model))
