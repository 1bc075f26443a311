"""What an attention view shows side by side: one run, two runs, or the mean and the standard error over several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gemmascope.analysis.several import listed_traces
from gemmascope.errors import SiteError
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.attention_scores import ShownScores
from gemmascope.views.labels import are_special, require_trace

Pattern = NDArray[np.floating]

# How many different tokens of a position its label spells out.
MOST_TOKENS = 6


class Panels(Protocol):
    """first: the run that the labels come from. lengths: the number of positions of each panel, "first" and "second".

    prompt: what is shown, in words. note: what is to be said above the picture; empty for nothing.
    """

    first: Trace
    lengths: list[int]
    prompt: str
    note: str

    def scores(self, n_heads: int) -> dict[str, ShownScores]:
        """What the heads of each panel that shows attention do, to be filled by `patterns`."""

    def patterns(
        self, layers: Sequence[int], heads: Sequence[int], scores: Mapping[str, ShownScores]
    ) -> Iterator[tuple[str, int, Pattern]]:
        """(panel, layer, pattern [head, q_pos, k_pos]) of every panel and layer, in no given order. Adds to the scores."""

    def spec(self) -> dict[str, object]:
        """What the picture says of the panels."""

    def key_texts(self) -> list[str]:
        """Each position in words: '3: ·Mary'."""


class RunPanels:
    """A run, or two beside each other."""

    def __init__(self, trace: Trace, compare: Trace | None) -> None:
        self.first = trace
        self._runs = {"first": trace} if compare is None else {"first": trace, "second": compare}
        self.lengths = [len(run) for run in self._runs.values()]
        self.prompt = f"{len(trace)} tokens: {' '.join(visible_text(token) for token in trace.tokens)}"
        self.note = ""
        if len(set(self.lengths)) > 1:
            self.note = (
                f"The prompts have {self.lengths[0]} and {self.lengths[1]} tokens, so there is no difference to show."
            )

    def scores(self, n_heads: int) -> dict[str, ShownScores]:
        return {name: ShownScores(run.model, [run.ids], n_heads) for name, run in self._runs.items()}

    def patterns(
        self, layers: Sequence[int], heads: Sequence[int], scores: Mapping[str, ShownScores]
    ) -> Iterator[tuple[str, int, Pattern]]:
        for name, run in self._runs.items():
            for layer, pattern in _patterns_of(run, layers):
                shown = pattern[heads].float()
                scores[name].add(layer, run.ids, shown)
                yield name, layer, shown.cpu().numpy()

    def spec(self) -> dict[str, object]:
        if (compare := self._runs.get("second")) is None:
            return {}
        other = {"tokens": compare.tokens, "special": are_special(compare.model, compare.ids.tolist())}
        return {"other": other, "same": len(compare) == len(self.first)}

    def key_texts(self) -> list[str]:
        return [f"{n}: {visible_text(token)}" for n, token in enumerate(self.first.tokens)]


class MeanPanels:
    """The mean over several runs of one length, and its standard error."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.first = traces[0]
        self._runs = traces
        self.lengths = [len(self.first)] * 2
        # Of each position its different tokens, in the order of the prompts.
        self._tokens = [list(dict.fromkeys(at)) for at in zip(*(run.tokens for run in traces), strict=True)]
        varying = [n for n, texts in enumerate(self._tokens) if len(texts) > 1]
        tokens = " ".join("≠" if n in varying else visible_text(at[0]) for n, at in enumerate(self._tokens))
        self.prompt = f"Mean of {len(traces)} prompts of {len(self.first)} tokens each: {tokens}"
        self.note = (
            f"Tokens with ≠ are not the same in all {len(traces)} prompts; the first prompt's are shown." if varying else ""
        )

    def scores(self, n_heads: int) -> dict[str, ShownScores]:
        return {"first": ShownScores(self.first.model, [run.ids for run in self._runs], n_heads)}

    def patterns(
        self, layers: Sequence[int], heads: Sequence[int], scores: Mapping[str, ShownScores]
    ) -> Iterator[tuple[str, int, Pattern]]:
        # Welford's sums: the mean so far, and the squares of the deviations from it. No run's patterns are kept.
        means: dict[int, NDArray[np.float64]] = {}
        squares: dict[int, NDArray[np.float64]] = {}
        for n, run in enumerate(self._runs, 1):
            for layer, pattern in _patterns_of(run, layers):
                shown = pattern[heads].float()
                scores["first"].add(layer, run.ids, shown)
                values = shown.cpu().numpy().astype(np.float64)
                mean = means.setdefault(layer, np.zeros_like(values))
                deviation = values - mean
                mean += deviation / n
                squares[layer] = squares.get(layer, 0.0) + deviation * (values - mean)
        n = len(self._runs)
        for layer, mean in means.items():
            yield "first", layer, mean
            yield "second", layer, np.sqrt(squares[layer] / (n - 1) / n)

    def spec(self) -> dict[str, object]:
        names = {"first": f"mean of {len(self._runs)} prompts", "second": "standard error of the mean"}
        tokens = {"tokens": self.first.tokens, "special": are_special(self.first.model, self.first.ids.tolist())}
        differ = [None if len(texts) == 1 else [texts[:MOST_TOKENS], len(texts[MOST_TOKENS:])] for texts in self._tokens]
        return {"other": tokens, "same": True, "names": names, "differ": differ}

    def key_texts(self) -> list[str]:
        return [self._text(n) for n in range(len(self.first))]

    def _text(self, n: int) -> str:
        shown = [visible_text(token) for token in self._tokens[n][:MOST_TOKENS]]
        more = len(self._tokens[n]) - len(shown)
        return f"{n}: {', '.join(shown)}{f' and {more} more' if more else ''}"


def panels_of(trace: object, compare: object) -> Panels:
    """The panels of a view. SiteError for what is no trace, and for prompts that do not align."""
    if isinstance(trace, (list, tuple)):
        if compare is not None:
            raise SiteError("compare stands beside one trace, and a list was given: leave one of the two out")
        traces = listed_traces(trace)
        _require_aligned(traces)
        return MeanPanels(traces) if len(traces) > 1 else RunPanels(traces[0], None)
    require_trace(trace, "trace")
    assert isinstance(trace, Trace)
    if compare is None:
        return RunPanels(trace, None)
    require_trace(compare, "compare")
    assert isinstance(compare, Trace)
    if compare.model.config != trace.model.config:
        raise SiteError(f"compare is of {compare.model.name!r}, whose shape is not that of {trace.model.name!r}")
    return RunPanels(trace, compare)


def _require_aligned(traces: Sequence[Trace]) -> None:
    """SiteError for runs that have no mean: of other lengths, or of models of other shapes."""
    first = traces[0]
    for i, run in enumerate(traces):
        if run.model.config != first.model.config:
            raise SiteError(
                f"prompt {i} ran in {run.model.name!r}, whose shape is not that of {first.model.name!r}: a mean is over "
                "runs of one model"
            )
    lengths = [len(run) for run in traces]
    if len(set(lengths)) > 1:
        other = next(i for i, length in enumerate(lengths) if length != lengths[0])
        length, n = Counter(lengths).most_common(1)[0]
        raise SiteError(
            f"prompt 0 has {lengths[0]} positions and prompt {other} has {lengths[other]}, so there is no mean over them: "
            f"give prompts of as many tokens. "
            f"{n} of these {len(traces)} have {length}: [t for t in traces if len(t) == {length}]"
        )


def _patterns_of(trace: Trace, layers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """The patterns of these layers, in order. A single layer is read from the trace, which may hold it."""
    if len(layers) == 1:
        yield layers[0], trace["pattern", layers[0]]
        return
    for layer, values in replay(trace, [("pattern", n) for n in layers]) if layers else ():
        if "pattern" in values:
            yield layer.index, values["pattern"]
        if layer.index == max(layers):
            return  # going on would stream the layers after it for nothing
