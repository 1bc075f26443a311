"""A prompt with and without a change: the likeliest next tokens, and the text that the model writes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch

from gemmascope.edits.edit import Edit
from gemmascope.generation.generate import growing_texts
from gemmascope.model.model import Model, Prompt
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace

N_TOP = 5

# A token with its probability before and after a change.
TokenChange = tuple[str, float, float]


@dataclass
class BeforeAfter:
    """One prompt without and with edits.

    before, after: the traces, None until they are run. text_before, text_after: what the model writes after the prompt, as
    far as it has come, and ids_before the tokens of the first; is_written: which of them are complete. top: the likeliest
    next tokens.
    """

    model: Model
    prompt: Prompt
    max_new_tokens: int
    before: Trace | None = None
    after: Trace | None = None
    text_before: str | None = None
    text_after: str | None = None
    ids_before: list[int] = field(default_factory=list)
    top: list[TokenChange] = field(default_factory=list)
    is_written: dict[str, bool] = field(default_factory=lambda: {"before": False, "after": False})

    @classmethod
    def of(cls, prompt: Prompt, model: Model, max_new_tokens: int, edits: Sequence[Edit] = ()) -> BeforeAfter:
        """Raises what gs.generate would for this prompt and these edits. Nothing is run."""
        growing_texts(prompt, model, [edits], max_new_tokens)
        return cls(model, prompt, max_new_tokens)

    def run(self, edits: Sequence[Edit]) -> Generator[None]:
        """Run the prompt with these edits, and without any unless that is done."""
        if self.before is None:
            self.before = trace(self.prompt, model=self.model)
        self.after = trace(self.prompt, model=self.model, edits=list(edits)) if edits else self.before
        self.top = token_changes(self.before, self.after)
        self.text_after, self.is_written["after"] = None, False
        yield

    def write(self, edits: Sequence[Edit]) -> Generator[None]:
        """Write both texts together, one token a step; the text without edits only once."""
        lacks_before, is_changed = not self.is_written["before"], bool(edits)
        runs: list[Sequence[Edit]] = [*([()] if lacks_before else []), *([edits] if is_changed else [])]
        for continuations in growing_texts(self.prompt, self.model, runs, self.max_new_tokens) if runs else ():
            if lacks_before:
                self.text_before, self.ids_before = continuations[0]
            if is_changed:
                self.text_after = continuations[-1][0]
            yield
        self.is_written["before"] = True
        if not is_changed:
            self.text_after = self.text_before
        self.is_written["after"] = True
        yield

    def forget_runs(self) -> None:
        """Let go of the traces, which are large; the answers and the texts stay."""
        self.before = self.after = None

    def as_data(self) -> dict[str, object]:
        """The likeliest next tokens with their probabilities before and after, and the texts, as JSON."""
        texts = {"text_before": self.text_before, "text_after": self.text_after, "written": dict(self.is_written)}
        return {"top": changes_as_data(self.top), **texts}


def token_changes(before: Trace, after: Trace) -> list[TokenChange]:
    """The N_TOP likeliest next tokens of either run, with their probability in both."""
    p_before, p_after = (run.next_logits.softmax(-1) for run in (before, after))
    n_top = min(N_TOP, len(p_before))
    ids = dict.fromkeys([*p_after.topk(n_top).indices.tolist(), *p_before.topk(n_top).indices.tolist()])
    return [(token_text(before.model, i), float(p_before[i]), float(p_after[i])) for i in ids]


def changes_as_data(changes: Sequence[TokenChange]) -> list[dict[str, object]]:
    return [{"token": token, "before": before, "after": after} for token, before, after in changes]


def token_text(model: Model, token_id: int) -> str:
    """A token as text; without a tokenizer, its id."""
    return model.texts(torch.tensor([token_id]))[0]
