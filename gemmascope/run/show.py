"""Shows a trace as text, as HTML and as JSON: tokens, model, edits, top next tokens, and the top token of each layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from unicodedata import east_asian_width

import torch

from gemmascope.errors import GemmascopeError
from gemmascope.legible import legible as legible
from gemmascope.legible import legible_line
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.recorded import RecordedRun
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import chunks, moved

N_TOP = 5
# A long prompt shows its first and last tokens only.
HEAD_TOKENS, TAIL_TOKENS = 40, 40


@dataclass(frozen=True)
class Answer:
    """A token that may come next, and its probability."""

    text: str
    id: int
    probability: float

    @property
    def share(self) -> str:
        return f"{self.probability:.1%}" if self.probability >= 0.0005 else "<0.1%"


@dataclass(frozen=True)
class LayerAnswers:
    """The top next tokens read from the stream after a layer. window: how many keys a query sees, None for all."""

    layer: int
    kind: str
    window: int | None
    top: list[Answer]


@dataclass(frozen=True)
class Summary:
    """What is shown of a trace. tokens: text, id, and whether it is a control token such as `<bos>`."""

    model: str
    tokens: list[tuple[str, int, bool]]
    edits: list[str]
    top: list[Answer]
    layers: list[LayerAnswers]

    @property
    def title(self) -> str:
        n = len(self.tokens)
        return f"{n} token" if n == 1 else f"{n} tokens"


def summarise(trace: RecordedRun) -> Summary:
    """Collect what is shown of a trace. Unembeds the last position after every layer."""
    model, ids = trace.model, trace.ids.tolist()
    trace.require_weights(None)
    special = [model.has_tokenizer and model.tokenizer.is_special(i) for i in ids]
    # Together: for one row, reading the embedding takes as long as for many.
    last = torch.cat([moved(x[-1:], model.device) for x in trace.residuals[1:]])
    with torch.no_grad():
        read = [row for part in chunks(len(last), rows_to_unembed(model)) for row in model.network.unembed(last[part])]
    return Summary(
        model=model.name,
        tokens=list(zip(trace.tokens, ids, special, strict=True)),
        edits=[repr(edit) for edit in trace.edits],
        top=[Answer(*answer) for answer in trace.top(min(N_TOP, model.config.vocab_size))],
        layers=[
            LayerAnswers(info.index, info.kind, info.window, _answers(trace, logits))
            for info, logits in zip(trace.layers, read, strict=True)
        ],
    )


def _answers(trace: RecordedRun, logits: torch.Tensor) -> list[Answer]:
    probabilities, ids = logits.softmax(-1).topk(min(N_TOP, len(logits)))
    texts = trace.model.texts(ids)
    return [Answer(*answer) for answer in zip(texts, ids.tolist(), probabilities.tolist(), strict=True)]


def to_dict(trace: RecordedRun) -> dict[str, object]:
    """What a trace shows, as JSON: raw token texts, probabilities between 0 and 1."""
    s = summarise(trace)
    return {**asdict(s), "tokens": [{"pos": pos, "text": text, "id": i} for pos, (text, i, _) in enumerate(s.tokens)]}


def as_text(trace: RecordedRun) -> str:
    """The text form, which is read downwards as the layers run.

    Control and direction characters in tokens are spelled out, so that they cannot act on a terminal.
    """
    try:
        s = summarise(trace)
    except GemmascopeError as error:  # such as changed weights: a repr must not raise
        return f"Trace of {legible_line(trace.model.name)}: {len(trace)} tokens\n{legible_line(str(error))}"
    words = [_drawn(text) for text, _, _ in s.tokens]
    top, layers = [_drawn(a.text) for a in s.top], [_drawn(row.top[0].text) for row in s.layers]
    wide = max(map(_columns, layers))
    lines = [
        f"Trace of {legible_line(s.model)}: {s.title}",
        "  " + " ".join(_abridged(words, f"… {len(words) - HEAD_TOKENS - TAIL_TOKENS} more …")),
        *(f"  edit {legible_line(edit)}" for edit in s.edits),
        "next   " + "   ".join(f"{text} {a.share}" for text, a in zip(top, s.top, strict=True)),
        "layer  kind    would answer",
        *(
            f"{row.layer:>5}  {row.kind:<6}  {text}{' ' * (wide - _columns(text))}  {row.top[0].share:>6}"
            for text, row in zip(layers, s.layers, strict=True)
        ),
    ]
    return "\n".join(lines)


def _abridged(parts: list[str], between: str) -> list[str]:
    """All parts, or only the first and last ones of many."""
    if len(parts) <= HEAD_TOKENS + TAIL_TOKENS:
        return parts
    return [*parts[:HEAD_TOKENS], between, *parts[-TAIL_TOKENS:]]


def _drawn(token: str) -> str:
    """A token with a space as ·, and with invisible and direction characters spelled out."""
    return legible_line(visible_text(token))


def _columns(text: str) -> int:
    """The width of a text in a terminal."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def as_html(trace: RecordedRun) -> str:
    """A self-contained piece of HTML, with layer 0 at the bottom. Every token is escaped: prompt text is text."""
    try:
        s = summarise(trace)
    except GemmascopeError:
        return f"<pre>{escape(as_text(trace))}</pre>"
    chips = [_chip(text, special) for text, _, special in s.tokens]
    chips = _abridged(chips, f"<i>… {len(chips) - HEAD_TOKENS - TAIL_TOKENS} more …</i>")
    edits = "".join(f"<div class='gs-edit'>edit <code>{escape(legible_line(edit))}</code></div>" for edit in s.edits)
    top = "".join(f"<tr><td>{_chip(a.text)}</td>{_bar(a)}</tr>" for a in s.top)
    return (
        f"<div class='gs-trace'>{_STYLE}<div><b>Trace</b> of <b>{escape(legible_line(s.model))}</b>, {s.title}</div>"
        f"<div class='gs-tokens'>{' '.join(chips)}</div>"
        f"{edits}<div class='gs-columns'><table><caption>next token</caption>{top}</table>"
        f"<table><caption>what each layer would answer</caption>{''.join(map(_row, reversed(s.layers)))}</table></div></div>"
    )


# A mark beside the word, so that local and global layers differ at a glance.
_KIND_MARKS = {"local": "▭", "global": "◯"}

# unicode-bidi: isolate, so that a right-to-left token does not reorder its neighbours.
_STYLE = """<style>
.gs-trace{font:14px/1.5 system-ui,sans-serif;max-width:62em}
.gs-trace .gs-chip{font-family:ui-monospace,monospace;background:rgba(128,128,128,.16);
 border-radius:3px;padding:0 3px;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.gs-trace .gs-special{outline:1px dashed rgba(128,128,128,.8);background:none}
.gs-trace .gs-tokens{margin:.4em 0;line-height:1.9}
.gs-trace .gs-columns{display:flex;flex-wrap:wrap;gap:2.5em}
.gs-trace table{border-collapse:collapse;margin:0;align-self:flex-start}
.gs-trace caption{text-align:left;opacity:.75;padding:.2em 0;white-space:nowrap}
.gs-trace td{padding:1px 8px 1px 0;text-align:left;vertical-align:middle;border:0;background:none}
.gs-trace .gs-bar{display:inline-block;height:.7em;background:#3b76c4;border-radius:2px;margin-right:6px}
.gs-trace .gs-share{white-space:nowrap;font-variant-numeric:tabular-nums}
</style>"""


def _row(row: LayerAnswers) -> str:
    sees = "every position before it" if row.window is None else f"the {row.window} latest positions"
    kind = f"<td class='gs-{row.kind}' title='a query sees {sees}'>{_KIND_MARKS[row.kind]} {row.kind}</td>"
    return f"<tr><td>{row.layer}</td>{kind}<td>{_chip(row.top[0].text)}</td>{_bar(row.top[0])}</tr>"


def _chip(text: str, special: bool = False) -> str:
    return f"<span class='gs-chip{' gs-special' if special else ''}'>{escape(_drawn(text))}</span>"


def _bar(answer: Answer) -> str:
    width = f"width:{120 * answer.probability:.1f}px"
    return f"<td class='gs-share'><span class='gs-bar' style='{width}'></span>{answer.share}</td>"
