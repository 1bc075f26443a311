"""gs.steer_lab: a slider for the strength of a steering vector, on its curve, and the text before and after."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from torch import Tensor

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edits.call_text import load_text, plain
from gemmascope.edits.kinds import Add
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import EditError, SweepError
from gemmascope.labs.followed import Followed
from gemmascope.labs.heads.detail import labels_of
from gemmascope.labs.steering.curve import N_RUNGS, Curve
from gemmascope.labs.steering.ladder import Ladder, stretches
from gemmascope.labs.steering.places import SteeredPlaces
from gemmascope.labs.steering.session import SteerLabSession, SteerSettings
from gemmascope.labs.steering.still import still_html
from gemmascope.labs.typed import as_typed
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.steering.direction import Direction
from gemmascope.steering.strengths import steering_edit

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers


class SteerLab(SteerLabSession):
    """A prompt and a steering vector, as `gs.steer_lab` returns it. The last expression of a cell shows it.

    Everything that it shows can be had in Python: `trace` with the vector added and `base` without, `text` and `base_text`
    that the model writes, `to_dataframe()` (the curve), `ladder()`, `edits` and `code()`. `wait()` waits for them, `close()`
    frees the lab.

    Attributes:
        prompt: The prompt, as it was set last.
        strength: What the vector is multiplied by; 0 at first.
        pos: The positions that are steered; None for all.
        answer: The answer that the curve follows; None for the likeliest token.
        against: The answer whose logit is subtracted; None for none.
        strengths: The two ends of the slider.
        edit: Where the vector was to be added when the lab was opened, as an edit.
        direction: What gs.direction returned, if the vector is one; else None.

    Examples:
        >>> d = gs.direction(["Mary was", "Anna was"], ["John was", "Peter was"], layer=4)
        >>> with gs.steer_lab("Peter was tired because", d, max_new_tokens=4) as lab:
        ...     lab.set(strength=4.0)
        ...     lab.strength, len(lab.edits)
        (4.0, 1)
    """

    MODULE = "steer_lab.js"

    def __init__(
        self,
        edit: Add,
        strengths: tuple[float, float],
        settings: SteerSettings,
        max_new_tokens: int,
        model: Model,
        direction: Direction | None = None,
    ) -> None:
        self.direction = direction
        super().__init__(edit, strengths, settings, max_new_tokens, model)

    def code(self) -> str:
        """The Python that repeats the run, beginning with the call that found the vector.

        A vector that was given as a tensor, too long to write out, is called `vector` there, with its length.

        Returns:
            A script that makes `trace` and `text`.
        """
        if not self.strength:
            return self._script([])
        pos = SteeredPlaces.of(self.pos, self.prompt, self.model).pos
        named = {"layer": self.edit.layer, "pos": pos, "head": self.edit.head}
        places = "".join(f", {name}={plain(value)!r}" for name, value in named.items() if value is not None)
        return self._script(f"[gs.add({self.edit.site!r}, vector{places}, scale={self.strength!r})]", self._vector_code())

    def _vector_code(self) -> str:
        """The lines that make `vector`, or a comment that says what it is."""
        vector = self.edit.vector
        if self.direction is not None:
            made = self.direction.provenance
            found = made.call
            if made.loading == load_text(self.model):
                return f"vector = {found}.vector\n"
            # Found with another model, which the lab was opened on.
            loading = made.loading.replace("model = ", "first_model = ", 1)
            return f"{loading}vector = {found.replace('model=model)', 'model=first_model)')}.vector\n"
        length = f"{float(vector.float().norm()):.6g}"
        return f"# vector: the tensor {list(vector.shape)} of length {length} that the lab was given: give it that name\n"

    # -- showing --

    def _state(self) -> dict[str, object]:
        with self.guard:
            run, settings, model, curve, ladder = self._run, self._now, self.model, self._curve, self._ladder
        places = SteeredPlaces.of(settings.pos, settings.prompt, model)
        followed = None if run.before is None else Followed.of(run, settings.answer, settings.against)
        moved = None if followed is None or run.after is None else list(followed.before_and_after(run))
        return {
            **run.as_data(),
            "typed": {key: as_typed(value) for key, value in self._typed_settings().items()},
            "strength": settings.strength,
            "strengths": list(self.strengths),
            "tokens": [] if run.before is None else labels_of(run.before),
            "positions": list(places.positions),
            "onward": places.onward,
            "where": places.text,
            "curve": {**curve.as_data(), "why_not": self._no_curve},
            "rungs": _rungs_data(curve, ladder),
            "ladder_written": ladder.is_written,
            "is_share": settings.against is None,
            "follows": None if followed is None else followed.name,
            "moved": moved,
            "note": self._note(settings.strength),
            "code": self.code(),
        }

    def _handlers(self) -> Handlers:
        return {
            **super()._handlers(),
            "strength": lambda m: self._slide(m["by"]),
            "where": lambda m: self.click(m["position"], onward=m["on"]),
            "everywhere": lambda _: self.set(pos=None),
        }

    def _note(self, strength: float) -> str:
        """How long the added vector is, and where it is added."""
        site = self.edit.site if self.edit.layer is None else f"{self.edit.site} of layer {self.edit.layer}"
        length = abs(strength) * float(self.edit.vector.float().norm())
        return f"strength {strength:+.2f}: a vector of length {length:.3g} is added to {site}"

    def _fallback_html(self) -> str:
        """The curve and the texts as they are now, with every character escaped."""
        with self.guard:
            run, curve, ladder, strength = self._run, self._curve, self._ladder, self.strength
        facts = {"prompt": str(run.prompt), "": self._note(strength)}
        if run.text_after is not None:
            facts |= {"before": run.text_before or "", "after": run.text_after}
        follows = None if run.before is None else Followed.of(run, self.answer, self.against).name
        title, is_share = f"Steering {legible_line(self.model.name)}", self.against is None
        return still_html(title, facts, curve, ladder, strength, follows, is_share=is_share)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [
            f"SteerLab of {legible_line(self.model.name)}: {self.prompt!r}{self._closed_text}",
            f"  {self._note(self.strength)}",
        ]
        if not self.is_busy and self._run.text_after is not None:
            lines += [f"  before: {self._run.text_before!r}", f"  after:  {self._run.text_after!r}"]
        return "\n".join(lines)


def _rungs_data(curve: Curve, ladder: Ladder) -> list[dict[str, object]]:
    """The rungs of the ladder as JSON: strength (null until the curve decides it), text in stretches, metric, collapsed."""
    if not ladder.strengths:
        return [{"strength": None, "text": None, "metric": None, "collapsed": False}] * N_RUNGS
    data = list[dict[str, object]]()
    for i, strength in enumerate(ladder.strengths):
        point = curve.near(strength)
        metric, has_collapsed = float(curve.metric[point]), bool(curve.collapsed[point])
        if strength == 0 and curve.unsteered is not None:
            metric, has_collapsed = curve.unsteered[0], False
        numbers = {"metric": None if isnan(metric) else metric, "collapsed": has_collapsed}
        text = stretches(ladder.texts[i], ladder.unsteered) if ladder.texts else None
        data.append({"strength": strength, "text": text, **numbers})
    return data


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
    answer: Answer | None = None,
    against: Answer | None = None,
) -> SteerLab:
    """Open a live lab about a steering vector, with a slider for its strength.

    `strength x vector` is added at a site, in the prompt and in what is generated; the likeliest tokens and the text follow
    the slider. The slider lies on a curve of what is followed, above one of the perplexity, and the text is written at five
    strengths. A click on a token says where to steer. In a notebook the last expression of a cell shows the lab.

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
        answer: The token that the curve follows, as text (" Mary", with its leading space) or as an id; None follows the
            likeliest next token of the unsteered run.
        against: Another token. With it the curve follows the difference of the two logits, after the soft cap; without it
            (None) the probability of the answer.

    Returns:
        The lab: what it shows can be read and changed in Python, too.

    Raises:
        PromptError: The prompt or an answer cannot be read.
        SiteError: There is no such site, layer, position or head, or a tensor comes without a site.
        EditError: The vector has another width, or is zero everywhere.
        GenerationError: max_new_tokens is below 1, or the prompt leaves no room to generate.
        SweepError: strengths are not two numbers around 0, or the two answers are the same, or the first is missing.

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
    edit, direction = steering_edit(vector, site, layer, head, pos), vector if isinstance(vector, Direction) else None
    if not isinstance(strengths, (tuple, list)) or len(strengths) != 2:
        raise SweepError(f"strengths are the slider's two ends, such as (-8, 8); given {short_repr(strengths)}")
    low, high = (finite_number(end, "strengths", error=EditError) for end in strengths)
    if not low < high or not low <= 0 <= high:
        raise SweepError(f"strengths go from a lower to a higher number with 0 between them; given {short_repr(strengths)}")
    settings = SteerSettings(prompt, pos=pos, answer=answer, against=against)
    return SteerLab(edit, (low, high), settings, max_new_tokens, model_or_nano(model), direction)
