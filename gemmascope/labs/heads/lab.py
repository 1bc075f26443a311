"""gs.head_lab: type a prompt, look at its heads, mute, solo or turn them, and see the answer move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemmascope.edits.edit import Edit
from gemmascope.labs.before_after import BeforeAfter, token_text
from gemmascope.labs.followed import Followed
from gemmascope.labs.heads.detail import labels_of
from gemmascope.labs.heads.session import HeadLabSession
from gemmascope.labs.typed import as_typed
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer

if TYPE_CHECKING:
    from gemmascope.labs.widget import Handlers, Trait


class HeadLab(HeadLabSession):
    """A prompt and its heads, as `gs.head_lab` returns it. The last expression of a cell shows it.

    The heads stand on a mixing desk: each can be muted, soloed or turned up and down. Everything that the lab shows can be
    had in Python: `trace` with the changed heads and `base` without, `text` and `base_text` that the model writes,
    `moved()`, `views`, `edits` and `code()`. `wait()` waits for them, `close()` frees the lab.

    Attributes:
        prompt: The prompt, as it was set last.
        answer: The answer that is followed; None for the likeliest token.
        against: The answer whose logit is subtracted; None for none.
        views: The pictures of the attention patterns and of the logit lens; empty for a prompt too long for a page.
        selected: The layer and head whose pattern the page shows.

    Examples:
        >>> with gs.head_lab("When Mary and John went to the store, John gave a drink to", " Mary", " John") as lab:
        ...     lab.scale(2, 3, 0.0)
        ...     lab.factors
        {(2, 3): 0.0}
    """

    MODULE = "head_lab.js"

    def _state(self) -> dict[str, object]:
        with self.guard:
            run, settings, model = self._run, self._now, self.model
        return {
            **run.as_data(),
            "typed": {name: as_typed(value) for name, value in self._typed_settings().items()},
            "shape": [model.n_layers, model.config.n_heads],
            "kinds": list(model.config.kinds),
            "desk": settings.desk.as_data(),
            "factors": [[*channel, by] for channel, by in settings.factors(model).items()],
            "others": [legible_line(repr(edit)) for edit in settings.others],
            "selected": list(self.selected),
            "tokens": [] if run.before is None else labels_of(run.before),
            "moved": self._moved_data(run),
            "code": self.code(),
        }

    def _moved_data(self, run: BeforeAfter) -> dict[str, object] | None:
        """What `moved` returns, with the texts of the answers for and against; None before it is known."""
        if run.before is None or run.after is None:
            return None
        followed = Followed.of(run, self.answer, self.against)
        before, after = followed.before_and_after(run)
        answer, against = ([token_text(run.model, i) for i in ids] for ids in (followed.answer, followed.against))
        return {"name": followed.name, "before": before, "after": after, "answer": answer, "against": against}

    def _pictures(self) -> dict[str, object]:
        return self._shown.as_data()

    def _snapshot(self) -> dict[str, Trait]:
        pattern = self._shown.pattern
        return {**super()._snapshot(), "pattern": {} if pattern is None else pattern.as_data()}

    def _handlers(self) -> Handlers:
        return {
            **super()._handlers(),
            "scale": lambda m: self._turn(m["layer"], m["head"], m["by"]),
            "mute": lambda m: self.mute(m["layer"], m["head"], m["on"]),
            "solo": lambda m: self.solo(m["layer"], m["head"], m["on"]),
            "select": lambda m: self.select(m["layer"], m["head"]),
            "remove": lambda m: self.remove(m["position"]),
            "reset": lambda _: self.reset(),
        }

    def _fallback_html(self) -> str:
        return "\n".join(view.to_html() for view in self.views)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [f"HeadLab of {legible_line(self.model.name)}: {self.prompt!r}{self._closed_text}"]
        lines += [f"  {edit!r}" for edit in self._now.others]
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
    edits: Sequence[Edit] = (),
) -> HeadLab:
    """Open a live lab about a prompt and its attention heads.

    Patterns, logit lens and text follow what is typed and which heads are scaled: muted, soloed, or turned up and down.
    Scaling a head multiplies its `z` at every position, generated ones included: 0 ablates it, which is what muting it does.
    In a notebook the last expression of a cell shows the lab.

    Args:
        prompt: Text (`<bos>` is put in front), token ids, or chat messages.
        answer: The token to follow, as text (" Mary", with its leading space) or as an id; None follows the likeliest next
            token of the unchanged run.
        against: Another token. With it the lab follows the difference of the two logits, after the soft cap; without it
            (None) the probability of the answer.
        model: The model to run; None means nano.
        max_new_tokens: How many tokens the model writes after the prompt, greedily.
        edits: Changes to begin with, as in gs.trace: whole heads whose `z` is scaled or ablated go onto the desk, others,
            such as a patch, are made before what the desk does. The unchanged run has none of them.

    Returns:
        The lab: what it shows can be read and changed in Python, too.

    Raises:
        PromptError: A prompt or an answer cannot be read.
        GenerationError: max_new_tokens is below 1, or the prompt leaves no room to generate.
        SweepError: The two answers are the same, or against is given without an answer.
        SiteError, EditError: An edit does not fit the prompt or the model.

    Examples:
        >>> lab = gs.head_lab("When Mary and John went to the store, John gave a drink to", " Mary", " John")
        >>> lab.scale(2, 3, 0.0)
        >>> name, before, after = lab.moved()
        >>> print(f"{name}: {before:.1f} before, {after:.1f} after")
        logit of ' Mary' less ' John': ... before, ... after
        >>> lab.close()
    """
    return HeadLab(prompt, answer, against, model, max_new_tokens, edits)
