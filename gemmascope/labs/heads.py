"""gs.head_lab: type a prompt, look at its heads, ablate or scale them, and see the answer move."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edits.edit import Edit
from gemmascope.edits.make import scale
from gemmascope.edits.places import find_heads
from gemmascope.errors import EditError, SweepError
from gemmascope.labs.before_after import BeforeAfter, token_text
from gemmascope.labs.fields import Fields, text_field
from gemmascope.labs.head_views import head_views
from gemmascope.labs.recompute import RecomputingLab
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer, bind_metric
from gemmascope.sites import find_layer, find_site
from gemmascope.sweeps.metrics import AnswerMetric, answer_prob, logit_diff
from gemmascope.sweeps.remarks import Remark, answer_remarks, prompt_remarks, raise_first_error
from gemmascope.views.page import View

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers

SETTINGS = ("prompt", "answer", "against")


class HeadLab(RecomputingLab):
    """A prompt and its heads, as `gs.head_lab` returns it. The last expression of a cell shows it.

    Everything that it shows can be had in Python: `trace` with the scaled heads and `base` without, `text` and `base_text`
    that the model writes, `moved()`, `views`, `edits` and `code()`. `wait()` waits for them, `close()` frees the lab.

    Attributes:
        prompt: The prompt, as it was set last.
        answer: The answer that is followed; None for the likeliest token.
        against: The answer whose logit is subtracted; None for none.
        views: The pictures of the attention patterns and of the logit lens; empty for a prompt too long for a page.

    Examples:
        >>> with gs.head_lab("When Mary and John went to the store, John gave a drink to", " Mary", " John") as lab:
        ...     lab.scale(2, 3, 0.0)
        ...     lab.factors
        {(2, 3): 0.0}
    """

    MODULE = "head_lab.js"

    def __init__(
        self,
        prompt: Prompt,
        answer: Answer | None = None,
        against: Answer | None = None,
        model: Model | None = None,
        max_new_tokens: int = 16,
    ) -> None:
        super().__init__(model_or_nano(model), max_new_tokens)
        self.prompt, self.answer, self.against = prompt, answer, against
        self.views: tuple[View, ...] = ()
        self._factors: dict[tuple[int, int], float] = {}
        self._n_views = 0
        self.set(prompt=prompt, answer=answer, against=against)

    # -- settings --

    def set(self, **changes: Any) -> None:
        """Change the prompt or the answers and compute again. Scaled heads stay scaled.

        Args:
            **changes: `prompt`, `answer` or `against`, as in `gs.head_lab`; what is left out stays as it is.

        Raises:
            PromptError: A prompt or an answer cannot be read.
            GenerationError: The prompt leaves no room to generate.
            SweepError: There is no such setting, or the answers do not go together. Nothing is changed then.
        """
        self._worker.require_open()
        self._apply(changes, self.model)

    def _take_model(self, model: Model, changes: Mapping[str, object]) -> None:
        """No head stays scaled: those of another model are others."""
        self._apply(changes, model)

    def _apply(self, changes: Mapping[str, object], model: Model) -> None:
        if unknown := sorted(set(changes) - set(SETTINGS)):
            raise SweepError(f"a head lab has no {unknown[0]!r}; it has {', '.join(SETTINGS)}")
        is_new = model is not self.model
        settings: dict[str, Any] = {**self._settings(), **changes}
        remarks = _remarks(**settings, model=model)
        raise_first_error(remarks, SweepError)
        run = BeforeAfter.of(settings["prompt"], model, self.max_new_tokens) if is_new or "prompt" in changes else self._run
        with self.guard:
            self._run = run
            self.prompt, self.answer, self.against = settings["prompt"], settings["answer"], settings["against"]
            if is_new:
                self._switch_to(model)
                self._factors.clear()
                self.views, self._n_views = (), self._n_views + 1
        self._recompute()
        self._warn(remarks)

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
        self._worker.require_open()
        layer = find_layer(layer, self.model.n_layers)
        heads = find_heads(head, find_site("z"), self.model) or []
        if len(heads) != 1:
            raise EditError(f"one head is scaled at a time; given {short_repr(head)}")
        by = finite_number(by, "by", error=EditError)
        with self.guard:
            self._factors[layer, heads[0]] = by
            if by == 1:
                del self._factors[layer, heads[0]]
        self._recompute()

    def reset(self) -> None:
        """Leave every head as it is."""
        self._worker.require_open()
        with self.guard:
            self._factors.clear()
        self._recompute()

    # -- results --

    @property
    def factors(self) -> dict[tuple[int, int], float]:
        """The factor of every scaled head, by (layer, head)."""
        with self.guard:
            return dict(sorted(self._factors.items()))

    @property
    def edits(self) -> list[Edit]:
        """The scaled heads as edits, for gs.trace or gs.generate."""
        return [scale("z", by, layer=layer, head=head) for (layer, head), by in self.factors.items()]

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
        edits = [f"gs.scale('z', {by!r}, layer={layer}, head={head})" for (layer, head), by in self.factors.items()]
        return self._script(edits)

    # -- computing --

    def _steps(self) -> Generator[None]:
        with self.guard:
            run, edits, answer = self._run, self.edits, self.answer
        yield from run.run(edits)
        assert run.after is not None
        views, refused = head_views(run.after, answer)
        self.views, self._n_views = views, self._n_views + 1
        yield
        yield from run.write(edits)
        if refused is not None:
            raise refused

    def _moved(self, run: BeforeAfter) -> tuple[str, float, float]:
        assert run.before is not None
        if self.answer is None:
            token = int(run.before.next_logits.argmax())
            return _measured(answer_prob(token), f"probability of {token_text(run.model, token)!r}", run)
        if self.against is None:
            return _measured(answer_prob(self.answer), f"probability of {self.answer!r}", run)
        return _measured(logit_diff(self.answer, self.against), f"logit of {self.answer!r} less {self.against!r}", run)

    # -- showing --

    def _end(self) -> None:
        super()._end()
        self.views = ()

    def _fields(self) -> Fields:
        controls = {name: text_field(name, is_wide=name == "prompt") for name in SETTINGS}
        rows = [["prompt"], ["answer", "against"]]
        return Fields(self.model, controls, rows, self._settings, self._typed, optional=("answer", "against"))

    def _settings(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in SETTINGS}

    def _token_settings(self) -> Mapping[str, object]:
        return self._settings()

    def _handlers(self) -> Handlers:
        return {"scale": lambda m: self.scale(m["layer"], m["head"], m["by"]), "reset": lambda _: self.reset()}

    def _state(self) -> dict[str, object]:
        with self.guard:
            run = self._run
            scaled = [{"layer": layer, "head": head, "by": by} for (layer, head), by in self.factors.items()]
        moved = None
        if run.before is not None and run.after is not None:
            name, before, after = self._moved(run)
            moved = {"name": name, "before": before, "after": after}
        return {**run.as_data(), "scaled": scaled, "moved": moved, "code": self.code()}

    def _pictures(self) -> dict[str, object]:
        views = [{"spec": dict(view.spec), "arrays": dict(view.arrays)} for view in self.views]
        return {"number": self._n_views, "views": views}

    def _fallback_html(self) -> str:
        return "\n".join(view.to_html() for view in self.views)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [f"HeadLab of {legible_line(self.model.name)}: {self.prompt!r}{self._closed_text}"]
        lines += [f"  layer {layer} head {head} x {by:g}" for (layer, head), by in self.factors.items()]
        if not self.is_busy and self._run.after is not None:
            name, before, after = self._moved(self._run)
            lines += [f"  {name}: {before:.4g} before, {after:.4g} after", f"  goes on with {self._run.text_after!r}"]
        return "\n".join(lines)


def head_lab(
    prompt: Prompt,
    answer: Answer | None = None,
    against: Answer | None = None,
    model: Model | None = None,
    max_new_tokens: int = 16,
) -> HeadLab:
    """Open a live lab about a prompt and its attention heads.

    Patterns, logit lens and text follow what is typed and which heads are scaled. Scaling a head multiplies its `z` at every
    position, generated ones included: 0 ablates it. In a notebook the last expression of a cell shows the lab.

    Args:
        prompt: Text (`<bos>` is put in front), token ids, or chat messages.
        answer: The token to follow, as text (" Mary", with its leading space) or as an id; None follows the likeliest next
            token of the unchanged run.
        against: Another token. With it the lab follows the difference of the two logits, after the soft cap; without it
            (None) the probability of the answer.
        model: The model to run; None means nano.
        max_new_tokens: How many tokens the model writes after the prompt, greedily.

    Returns:
        The lab: what it shows can be read and changed in Python, too.

    Raises:
        PromptError: A prompt or an answer cannot be read.
        GenerationError: max_new_tokens is below 1, or the prompt leaves no room to generate.
        SweepError: The two answers are the same, or against is given without an answer.

    Examples:
        >>> lab = gs.head_lab("When Mary and John went to the store, John gave a drink to", " Mary", " John")
        >>> lab.scale(2, 3, 0.0)
        >>> name, before, after = lab.moved()
        >>> print(f"{name}: {before:.1f} before, {after:.1f} after")
        logit of ' Mary' less ' John': ... before, ... after
        >>> lab.close()
    """
    return HeadLab(prompt, answer, against, model, max_new_tokens)


def _remarks(prompt: Prompt, answer: Answer | None, against: Answer | None, model: Model) -> list[Remark]:
    """Errors and warnings about a prompt and its answers. SweepError if the answer is missing."""
    if against is not None and answer is None:
        raise SweepError(f"against={short_repr(against)} is what an answer is held against: give the answer, too")
    ids = model.ids(prompt)
    answers = {name: value for name, value in (("answer", answer), ("against", against)) if value is not None}
    return [*prompt_remarks("prompt", ids, model), *answer_remarks(answers, ids, model)]


def _measured(metric: AnswerMetric, name: str, run: BeforeAfter) -> tuple[str, float, float]:
    bound = bind_metric(metric, run.model)
    before, after = (float(bound(one.next_logits[None])[0]) for one in (run.before, run.after) if one is not None)
    return name, before, after
