"""What becomes of a prompt: the likeliest next tokens and the text, before a change and after it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemmascope.edits.edit import Edit
from gemmascope.generation.generate import growing_texts
from gemmascope.labs.patching.detail import likeliest
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace


@dataclass
class After:
    """One prompt with and without edits.

    before, after: the traces, None until they are run. text_before, text_after: what the model goes on with, as far as it
    is written yet; is_written: whether that is all. top: (token, probability before, after) of the likeliest next tokens.
    """

    model: Model
    prompt: Any
    max_new_tokens: int
    before: Trace | None = None
    after: Trace | None = None
    text_before: str | None = None
    text_after: str | None = None
    top: list[tuple[str, float, float]] = field(default_factory=list)
    is_written: dict[str, bool] = field(default_factory=lambda: {"before": False, "after": False})

    @classmethod
    def of(cls, prompt: Any, model: Model, max_new_tokens: int, edits: Sequence[Edit] = ()) -> After:
        """Raises what gs.generate would for a prompt that cannot be gone on with, under these edits. Nothing is run."""
        growing_texts(prompt, model, edits, max_new_tokens)
        return cls(model, prompt, max_new_tokens)

    def traced(self, edits: Sequence[Edit]) -> Generator[None]:
        """Run the prompt with these edits, and without any if that was not done yet."""
        if self.before is None:
            self.before = trace(self.prompt, model=self.model)
        self.after = trace(self.prompt, model=self.model, edits=list(edits)) if edits else self.before
        self.top = likeliest(self.before, self.after)
        self.text_after, self.is_written["after"] = None, False
        yield

    def written(self, edits: Sequence[Edit]) -> Generator[None]:
        """Write both texts, a token a step; the one without edits once."""
        if not self.is_written["before"]:
            for text in growing_texts(self.prompt, self.model, (), self.max_new_tokens):
                self.text_before = text
                yield
            self.is_written["before"] = True
        if edits:
            for text in growing_texts(self.prompt, self.model, edits, self.max_new_tokens):
                self.text_after = text
                yield
        else:
            self.text_after = self.text_before
        self.is_written["after"] = True
        yield

    def forget_runs(self) -> None:
        """Let go of the traces, which are large; the answers and the texts stay."""
        self.before = self.after = None

    def as_data(self) -> dict[str, Any]:
        """As JSON holds it: the likeliest next tokens with their probabilities before and after, and the texts."""
        top = [{"token": token, "before": before, "after": after} for token, before, after in self.top]
        return {"top": top, "text_before": self.text_before, "text_after": self.text_after, "written": dict(self.is_written)}
