"""gs.steer_lab: a slider for the strength of a steering vector, and the text before and after."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from html import escape
from typing import Any

from torch import Tensor

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edits.call_text import plain
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Add
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import EditError, SiteError, SweepError
from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.fields import LABEL_STYLE, Fields, text_field
from gemmascope.labs.recompute import RecomputingLab
from gemmascope.legible import legible, legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.steering.direction import Direction
from gemmascope.steering.strengths import steering_edit
from gemmascope.sweeps.remarks import Remark, prompt_remarks

SLIDER_STEPS = 64

_OTHERWISE = "it is another direction, unless that is the same model in another form, or was trained from it"


class SteerLab(RecomputingLab):
    """A prompt and a steering vector, as `gs.steer_lab` returns it. The last expression of a cell shows it.

    Everything that it shows can be had in Python: `trace` with the vector added and `base` without, `text` and `base_text`
    that the model writes, `edits` and `code()`. `wait()` waits for them, `close()` frees the lab.

    Attributes:
        prompt: The prompt, as it was set last.
        strength: What the vector is multiplied by; 0 at first.
        strengths: The two ends of the slider.
        edit: Where the vector is added, as an edit.

    Examples:
        >>> d = gs.direction(["Mary was", "Anna was"], ["John was", "Peter was"], layer=4)
        >>> with gs.steer_lab("Peter was tired because", d, max_new_tokens=4) as lab:
        ...     lab.set(strength=4.0)
        ...     lab.strength, len(lab.edits)
        (4.0, 1)
    """

    MODULE = "steer_lab.js"

    def __init__(self, prompt: Prompt, edit: Add, strengths: tuple[float, float], max_new_tokens: int, model: Model) -> None:
        super().__init__(model, max_new_tokens)
        self.edit, self.strengths = edit, strengths
        self.prompt, self.strength = prompt, 0.0
        self.set(prompt=prompt)

    def set(self, **changes: Any) -> None:
        """Change the prompt or the strength and compute again.

        Args:
            **changes: `prompt`, as in `gs.steer_lab`, or `strength`, a number that may lie beyond the slider's ends; what is
                left out stays as it is.

        Raises:
            PromptError: The prompt cannot be read.
            GenerationError: The prompt leaves no room to generate.
            EditError: The strength is no finite number.
            SweepError: There is no such setting. Nothing is changed then.
        """
        self._worker.require_open()
        self._apply(changes, self.model)

    def _token_settings(self) -> Mapping[str, object]:
        return {"prompt": self.prompt}

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """The vector stays, if the model has a place of its width for it."""
        old = self.model.name
        try:
            self._apply(changes, model)
        except (EditError, SiteError) as error:
            text = f"the vector that this lab adds does not go into {model.name!r}: {error}. Find one with that model, as "
            raise EditError(f"{text}gs.direction does, and open a lab with it") from error
        self._warn([Remark("warning", "vector", f"the vector was given for {old!r}: in {model.name!r} {_OTHERWISE}")])

    def _apply(self, changes: Mapping[str, object], model: Model) -> None:
        if unknown := sorted(set(changes) - {"prompt", "strength"}):
            raise SweepError(f"a steer lab has no {unknown[0]!r}; it has prompt, strength")
        settings: dict[str, Any] = {"prompt": self.prompt, "strength": self.strength, **changes}
        prompt, strength = settings["prompt"], finite_number(settings["strength"], "strength", error=EditError)
        edits = [replace(self.edit, scale=1.0)]
        is_new = model is not self.model or "prompt" in changes
        run = BeforeAfter.of(prompt, model, self.max_new_tokens, edits) if is_new else self._run
        with self.guard:
            self._run, self.prompt, self.strength = run, prompt, strength
            self._switch_to(model)
        self._recompute()
        if is_new:
            self._warn(list(prompt_remarks("prompt", model.ids(prompt), model)))

    @property
    def edits(self) -> list[Edit]:
        """The steering as edits, for gs.trace or gs.generate; none at strength 0."""
        return [replace(self.edit, scale=self.strength)] if self.strength else []

    def code(self) -> str:
        """The Python that repeats the run. The vector, too long to write out, is called `vector` there.

        Returns:
            A script that makes `trace` and `text`.
        """
        places = "".join(
            f", {name}={plain(value)!r}"
            for name in ("layer", "pos", "head")
            if (value := getattr(self.edit, name)) is not None
        )
        edits = [f"gs.add({self.edit.site!r}, vector{places}, scale={self.strength!r})"] if self.strength else []
        comment = "# vector: the one that the lab steers with, which is too long to write out: give it that name\n"
        return self._script(edits, comment if edits else "")

    def _steps(self) -> Generator[None]:
        with self.guard:
            run, edits = self._run, self.edits
        yield from run.run(edits)
        yield from run.write(edits)

    def _fields(self) -> Fields:
        import ipywidgets as w

        low, high = self.strengths
        slider = w.FloatSlider(
            min=low, max=high, step=(high - low) / SLIDER_STEPS, description="strength", readout_format=".2f",
            layout=w.Layout(width="98%"), style=LABEL_STYLE,
        )  # fmt: skip
        controls = {"prompt": text_field("prompt", is_wide=True), "strength": slider}
        return Fields(self.model, controls, [["prompt"], ["strength"]], self._settings, self._typed)

    def _settings(self) -> dict[str, object]:
        low, high = self.strengths
        return {"prompt": self.prompt, "strength": min(max(self.strength, low), high)}

    def _state(self) -> dict[str, object]:
        with self.guard:
            run, strength = self._run, self.strength
        return {**run.as_data(), "strength": strength, "note": self._note(strength), "code": self.code()}

    def _note(self, strength: float) -> str:
        """How long the added vector is, and where it is added."""
        site = self.edit.site if self.edit.layer is None else f"{self.edit.site} of layer {self.edit.layer}"
        length = abs(strength) * float(self.edit.vector.float().norm())
        return f"strength {strength:+.2f}: a vector of length {length:.3g} is added to {site}"

    def _fallback_html(self) -> str:
        """The texts as HTML, with every character escaped."""
        return f"<pre style='white-space:pre-wrap'>{escape(legible(repr(self)))}</pre>"

    @prints_legibly
    def __repr__(self) -> str:
        lines = [
            f"SteerLab of {legible_line(self.model.name)}: {self.prompt!r}{self._closed_text}",
            f"  {self._note(self.strength)}",
        ]
        if not self.is_busy and self._run.text_after is not None:
            lines += [f"  before: {self._run.text_before!r}", f"  after:  {self._run.text_after!r}"]
        return "\n".join(lines)


def steer_lab(
    prompt: Prompt,
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
    """Open a live lab about a steering vector, with a slider for its strength.

    `strength x vector` is added at a site, in the prompt and in what is generated; the likeliest tokens and the text follow
    the slider. In a notebook the last expression of a cell shows the lab.

    Args:
        prompt: Text (`<bos>` is put in front), token ids, or chat messages.
        vector: What to add: a tensor [d], d being the site's width (d_model, or d_head at a site with heads), or what
            `gs.direction` returns, which knows its site, layer and head.
        strengths: The two ends of the slider, the lower one first, with 0 between them. The lab begins at strength 0.
        site: Where to add, such as "resid_post"; None takes the direction's.
        layer: Number of the layer; None takes the direction's.
        pos: The positions that are steered, as in `gs.add`; None means all, generated ones included.
        head: The heads that are steered, at sites with heads; None means all, or the direction's.
        max_new_tokens: How many tokens the model writes after the prompt, greedily.
        model: The model to run; None means nano.

    Returns:
        The lab: what it shows can be read and changed in Python, too.

    Raises:
        PromptError: The prompt cannot be read.
        SiteError: There is no such site, layer, position or head, or a tensor comes without a site.
        EditError: The vector has another width, or is zero everywhere.
        GenerationError: max_new_tokens is below 1, or the prompt leaves no room to generate.
        SweepError: strengths are not two numbers around 0.

    Examples:
        >>> d = gs.direction(["Mary was", "Anna was"], ["John was", "Peter was"], layer=4)
        >>> lab = gs.steer_lab("Peter was tired because", d, strengths=(-4, 4), max_new_tokens=4)
        >>> lab.set(strength=4.0)
        >>> lab.text == gs.generate("Peter was tired because", edits=lab.edits, max_new_tokens=4).text
        True
        >>> lab.close()

    References:
        Turner et al. 2023, "Activation Addition: Steering Language Models Without Optimization", arXiv:2308.10248.
    """
    edit = steering_edit(vector, site, layer, head, pos)
    if not isinstance(strengths, (tuple, list)) or len(strengths) != 2:
        raise SweepError(f"strengths are the slider's two ends, such as (-8, 8); given {short_repr(strengths)}")
    low, high = (finite_number(end, "strengths", error=EditError) for end in strengths)
    if not low < high or not low <= 0 <= high:
        raise SweepError(f"strengths go from a lower to a higher number with 0 between them; given {short_repr(strengths)}")
    return SteerLab(prompt, edit, (low, high), max_new_tokens, model_or_nano(model))
