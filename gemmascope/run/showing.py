"""How a trace shows itself: as text in a terminal, as HTML in a notebook. The same four things in both.

Tokens, the model, the likeliest next tokens, and what each layer would answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import torch

from gemmascope.tokens import shown

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace

N_TOP = 5
# A long prompt is shown by its two ends.
HEAD_TOKENS, TAIL_TOKENS = 40, 40


@dataclass(frozen=True)
class Summary:
    """What a trace shows. Tokens as they are drawn; shares between 0 and 1."""

    model: str
    n_tokens: int
    tokens: list[tuple[str, bool]]
    left_out: int
    edits: list[str]
    top: list[tuple[str, float]]
    layers: list[tuple[int, str, str, float]]
    window: int


def summarise(trace: Trace) -> Summary:
    """Collect what a trace shows: one unembedding per layer of the last position."""
    texts, ids = trace.tokens, trace.ids.tolist()
    special = [trace.model.has_tokenizer and trace.model.tokenizer.is_special(i) for i in ids]
    tokens = [(shown(text), s) for text, s in zip(texts, special, strict=True)]
    left_out = max(0, len(tokens) - HEAD_TOKENS - TAIL_TOKENS)
    if left_out:
        tokens = tokens[:HEAD_TOKENS] + tokens[-TAIL_TOKENS:]
    return Summary(
        model=trace.model.name,
        n_tokens=len(ids),
        tokens=tokens,
        left_out=left_out,
        edits=[repr(edit) for edit in trace.edits],
        top=[(shown(text), p) for text, _, p in trace.top(min(N_TOP, trace.model.config.vocab_size))],
        layers=_answers(trace),
        window=trace.model.config.window,
    )


def _answers(trace: Trace) -> list[tuple[int, str, str, float]]:
    with torch.no_grad():
        best = [trace.model.network.unembed(x[-1:])[0].softmax(-1).max(-1) for x in trace.stream[1:]]
    texts = trace.model.texts(torch.stack([b.indices for b in best]))
    return [
        (layer.index, layer.kind, shown(t), float(b.values)) for layer, t, b in zip(trace.layers, texts, best, strict=True)
    ]


def as_text(trace: Trace) -> str:
    """The text form, for a terminal."""
    s = summarise(trace)
    words = [f"[{text}]" if special else text for text, special in s.tokens]
    if s.left_out:
        words.insert(HEAD_TOKENS, f"… {s.left_out} more …")
    width = max(len(text) for _, _, text, _ in s.layers)
    lines = [
        f"Trace of {s.model}: {s.n_tokens} token{'s' if s.n_tokens > 1 else ''}",
        "  " + " ".join(words),
        *(f"  edit {edit}" for edit in s.edits),
        "next   " + "   ".join(f"{text} {p:.1%}" for text, p in s.top),
        "layer  kind    would answer",
        *(f"{layer:>5}  {kind:<6}  {text:<{width}}  {p:>6.1%}" for layer, kind, text, p in s.layers),
    ]
    return "\n".join(lines)


def as_html(trace: Trace) -> str:
    """A self-contained piece of HTML. Every token is escaped: prompt text is text."""
    s = summarise(trace)
    chips = [_chip(text, special) for text, special in s.tokens]
    if s.left_out:
        chips.insert(HEAD_TOKENS, f"<i>… {s.left_out} more …</i>")
    edits = "".join(f"<div class='gs-edit'>edit <code>{escape(edit)}</code></div>" for edit in s.edits)
    top = "".join(f"<tr><td>{_chip(text)}</td>{_bar(p)}</tr>" for text, p in s.top)
    rows = "".join(
        f"<tr><td>{layer}</td><td class='gs-{kind}'>{_KIND_MARKS[kind]} {kind}</td><td>{_chip(text)}</td>{_bar(p)}</tr>"
        for layer, kind, text, p in s.layers
    )
    return (
        f"<div class='gs-trace'>{_STYLE}<div><b>Trace</b> of <b>{escape(s.model)}</b>, {s.n_tokens} tokens</div>"
        f"<div class='gs-tokens'>{' '.join(chips)}</div>{edits}<div class='gs-columns'>"
        f"<table><caption>next token</caption>{top}</table>"
        f"<table><caption>what each layer would answer</caption>{rows}</table></div></div>"
    )


def as_page(trace: Trace) -> str:
    """A whole, self-contained HTML page."""
    title = f"<title>Trace of {escape(trace.model.name)}</title>"
    head = f"<meta charset='utf-8'><meta name='color-scheme' content='light dark'>{title}"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{as_html(trace)}</body></html>\n"


# Local and global are told apart by a mark as well as by the word.
_KIND_MARKS = {"local": "▭", "global": "◯"}

_STYLE = """<style>
.gs-trace{font:14px/1.5 system-ui,sans-serif;max-width:62em}
.gs-trace .gs-chip{font-family:ui-monospace,monospace;background:rgba(128,128,128,.16);
 border-radius:3px;padding:0 3px;white-space:pre}
.gs-trace .gs-special{outline:1px dashed rgba(128,128,128,.8);background:none}
.gs-trace .gs-tokens{margin:.4em 0;line-height:1.9}
.gs-trace .gs-columns{display:flex;flex-wrap:wrap;gap:2.5em}
.gs-trace table{border-collapse:collapse;margin:0}
.gs-trace caption{text-align:left;opacity:.75;padding:.2em 0;white-space:nowrap}
.gs-trace td{padding:1px 8px 1px 0;text-align:left;vertical-align:middle;border:0;background:none}
.gs-trace .gs-bar{display:inline-block;height:.7em;background:#3b76c4;border-radius:2px;margin-right:6px}
.gs-trace .gs-share{white-space:nowrap;font-variant-numeric:tabular-nums}
</style>"""


def _chip(text: str, special: bool = False) -> str:
    return f"<span class='gs-chip{' gs-special' if special else ''}'>{escape(text)}</span>"


def _bar(share: float) -> str:
    return f"<td class='gs-share'><span class='gs-bar' style='width:{120 * share:.1f}px'></span>{share:.1%}</td>"
