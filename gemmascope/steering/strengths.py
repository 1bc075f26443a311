"""Sweeps of a steering vector's strength: what it does to a metric, and what it costs in fluency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gemmascope.arguments import as_list, finite_number, shown
from gemmascope.edits.bound import BoundEdit
from gemmascope.edits.call_text import metric_text
from gemmascope.edits.edit import Add
from gemmascope.edits.make import add
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import EditError, PromptError, SiteError, SweepError
from gemmascope.loading.default import model_or_nano
from gemmascope.memory.limits import explain_oom, rows_within
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.model.prompts import as_prompts, listed_prompts
from gemmascope.run.metric import Metric, bind_metric, measure, try_metric
from gemmascope.run.microbatches import Microbatch, embed_in_microbatches, in_microbatches
from gemmascope.steering.direction import Direction
from gemmascope.steering.strength_result import StrengthSweep
from gemmascope.sweeps.remarks import prompts_remarks, raise_or_warn
from gemmascope.values import in_float64, is_array, real_tensor

# Logits held at once, in elements: 32 MB in float64, which is held a few times over.
LOGIT_ELEMENTS = 2**22


@computes
def strength_sweep(
    prompts: Any,
    vector: Tensor | Direction,
    metric: Any,
    *,
    strengths: Iterable[float],
    site: str | None = None,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    texts: Any = None,
    model: Model | None = None,
    memory: int | str | None = None,
    progress: bool = True,
) -> StrengthSweep:
    """Steer with strength x vector for every strength: what becomes of a metric, and of the model's perplexity.

    prompts: a prompt or a list of them. vector: as in gs.add, or what gs.direction returns, which knows its site, layer and
    head. metric: of the next token after each prompt, as in gs.sweep, or a list with one for each. strengths: what the
    vector is multiplied by, each number once; the unsteered run is measured in any case. pos: the positions that are
    steered, in prompts and texts alike; None for all.
    texts: a text or a list of them, each token of which, but the first, is predicted from those before it by the model
    steered in the same way; without it, the prompts. Perplexity is exp of the mean negative log-likelihood of these tokens,
    NaN where none of them comes after a steered position. kl: KL(unsteered || steered) of the next token, in nats.
    memory, progress: as in gs.sweep. As many runs as fit share a pass; below the layer each text is carried once.
    Raises PromptError, SiteError, EditError, MetricError, BudgetError or SweepError for what does not fit, before
    anything is run.
    """
    model = model_or_nano(model)
    asked = _listed_strengths(strengths)
    steering = steering_edit(vector, site, layer, head, pos)
    ids = _ids(prompts, "prompts", model)
    metrics = _metrics(metric, ids, model)
    others = [] if texts is None else _ids(texts, "texts", model)
    raise_or_warn(prompts_remarks(ids, metric, model), SweepError)
    levels = [0.0, *(strength for strength in asked if strength)]
    runs = _Runs.of(model, ids, others, steering, levels)
    runs.run(rows_within(memory, model), progress)
    values, kl = runs.measured(metrics)
    return StrengthSweep.of(
        strengths=asked,
        levels=levels,
        metric=values,
        kl=kl,
        nll=runs.nll,
        n_predicted=runs.n_predicted,
        reaches=runs.reaches,
        named=(model.name, metric_text(metric), repr(steering)),
        texts=[model.texts(one) for one in ids],
    )


def _listed_strengths(given: Any) -> list[float]:
    """The strengths as numbers. SweepError for none, one given twice, or something that is no finite number."""
    if is_array(given):
        given = real_tensor(given, "strengths, a list of numbers,", SweepError).tolist()
    found = as_list(given, "strengths, such as [-4, -2, 0, 2, 4],", error=SweepError)
    if not found:
        raise SweepError("strengths is an empty list: give at least one number, such as [-4, -2, 0, 2, 4]")
    numbers = [finite_number(one, "a strength", error=SweepError) for one in found]
    if len(set(numbers)) < len(numbers):
        raise SweepError(f"strengths name a number twice: {shown(found)}")
    return numbers


def steering_edit(vector: Any, site: str | None, layer: int | None, head: Head, pos: Pos) -> Add:
    """The edit that is scaled. A direction says where it is, unless the call does."""
    if isinstance(vector, Direction):
        head = vector.head if head is None and site in (None, vector.site) else head
        site, layer = site or vector.site, vector.layer if layer is None else layer
        vector = vector.vector
    if site is None:
        raise SiteError("say the site and layer to steer at: a tensor does not know them, as what gs.direction returns does")
    if is_array(vector) and (found := real_tensor(vector, "the vector", EditError)).numel() and not bool(found.any()):
        raise EditError("the vector holds zeros alone, which steer nowhere")
    return add(site, vector, layer=layer, pos=pos, head=head)


def _ids(given: Any, name: str, model: Model) -> list[Tensor]:
    given = as_prompts(given)
    if isinstance(given, Sequence) and not isinstance(given, str) and not given:
        raise PromptError(f"the list of {name} is empty: give at least one")
    return model.each_ids(listed_prompts(given)[0], name.removesuffix("s"))


def _metrics(metric: Any, ids: Sequence[Tensor], model: Model) -> list[Metric]:
    metrics = list(metric) if isinstance(metric, (list, tuple)) else [metric] * len(ids)
    if len(metrics) != len(ids):
        raise SweepError(f"there are {len(ids)} prompts and {len(metrics)} metrics: give one for all, or one for each")
    bound = [bind_metric(one, model) for one in metrics]
    for one, prompt in zip(bound, ids, strict=True):
        try_metric(one, model, prompt)
    return bound


@dataclass
class _Runs:
    """Every text at every level of strength, level 0 being the unsteered run.

    ids: of the prompts, and then of the texts that are only read. edits: for each of these, those of every level. ends: the
    stream after the last layer at each prompt's last position. nll: summed over the predicted tokens, in nats; which texts
    are read is `reading`.
    """

    model: Model
    ids: list[Tensor]
    edits: list[list[tuple[BoundEdit, ...]]]
    layer: int
    n_prompts: int
    reading: range
    ends: Tensor = field(init=False)
    nll: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n_levels, norm = len(self.edits[0]), self.model.network.model.norm.weight
        self.ends = norm.new_empty(self.n_prompts, n_levels, self.model.config.d_model)
        self.nll = torch.zeros(len(self.reading), n_levels, dtype=torch.float64)

    @classmethod
    def of(cls, model: Model, prompts: list[Tensor], others: list[Tensor], steering: Add, levels: Sequence[float]) -> _Runs:
        ids = [*prompts, *others]
        whole = [steering.bind(model, one) for one in ids]
        layer, site = whole[0].address.layer, whole[0].address.site
        if layer is None or site.is_edges:
            where = "lives on attention edges" if site.is_edges else "is outside the layers"
            raise SiteError(f"'{site.name}' {where}: a strength sweep steers a site with rows in the layers")
        at_level = [[replace(steering, scale=level)] if level else [] for level in levels]
        edits = [[tuple(edit.bind(model, one) for edit in found) for found in at_level] for one in ids]
        return cls(model, ids, edits, layer, len(prompts), range(len(prompts) if others else 0, len(ids)))

    @property
    def n_predicted(self) -> int:
        """How many tokens are predicted at each level."""
        return sum(len(self.ids[text]) - 1 for text in self.reading)

    @property
    def reaches(self) -> bool:
        """Whether any predicted token comes after a steered position."""
        steered = [(edit.reach[0], len(self.ids[text])) for text in self.reading for edit in self.edits[text][-1]]
        return any(first < length - 1 for first, length in steered) or not any(self.edits[0])

    def run(self, max_rows: int, progress: bool) -> None:
        """Run everything, in passes of at most so many rows, and of one run at least."""
        from tqdm.auto import tqdm

        jobs = [(text, level) for text in range(len(self.ids)) for level in range(len(self.edits[0]))]
        with tqdm(total=len(jobs), desc="strengths", unit="run", delay=1.0, leave=False, disable=not progress) as bar:
            for chunk in self._chunks(jobs, max_rows):
                with torch.no_grad(), explain_oom(self.model):
                    for one in self._through(chunk):
                        self._take(one, chunk)
                bar.update(len(chunk))

    def _chunks(self, jobs: Sequence[tuple[int, int]], max_rows: int) -> Iterator[list[tuple[int, int]]]:
        chunk: list[tuple[int, int]] = []
        n_rows = 0
        for job in jobs:
            if chunk and n_rows + len(self.ids[job[0]]) > max_rows:
                yield chunk
                chunk, n_rows = [], 0
            chunk.append(job)
            n_rows += len(self.ids[job[0]])
        yield chunk

    def _through(self, chunk: Sequence[tuple[int, int]]) -> list[Microbatch]:
        """Carry a chunk through the layers: each text once as far as the steered layer, then once for each level."""
        texts = sorted({text for text, _ in chunk})
        bins = embed_in_microbatches(self.model, [self.ids[text] for text in texts])
        with closing(self.model.layers()) as layers:
            for layer in layers:
                if layer.index == self.layer:
                    entering = {texts[run]: rows for one in bins for run, rows in one.each()}
                    edits = [self.edits[text][level] for text, level in chunk]
                    bins = in_microbatches(self.model, [entering[text] for text, _ in chunk], edits)
                for one in bins:
                    one.through(layer)
        return bins

    def _take(self, one: Microbatch, chunk: Sequence[tuple[int, int]]) -> None:
        """Take what is wanted of a bin's runs after the last layer: the last rows of prompts, the likelihood of texts."""
        rows, wanted, places = [], [], []
        for run, x in one.each():
            text, level = chunk[run]
            if text < self.n_prompts:
                self.ends[text, level] = x[-1]
            if text in self.reading:
                rows.append(x[:-1])
                wanted.append(self.ids[text][1:])
                places.append((text - self.reading.start, level))
        if not rows:
            return
        losses = self._losses(torch.cat(rows), torch.cat(wanted))
        for place, part in zip(places, torch.split(losses, [len(x) for x in rows]), strict=True):
            self.nll[place] = part.sum()

    def _losses(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """The negative log-likelihood of a token after each row, in nats."""
        parts = zip(torch.split(rows, self._step), torch.split(wanted, self._step), strict=True)
        unembed = self.model.network.unembed
        found = []
        for x, ids in parts:
            logits = in_float64(unembed(x))
            found.append(cross_entropy(logits, ids.to(logits.device), reduction="none").cpu())
        return torch.cat(found)

    def measured(self, metrics: Sequence[Metric]) -> tuple[Tensor, Tensor]:
        """The metric of each prompt at each level, and KL(unsteered || steered) in nats: float64 [prompt, level]."""
        values, kl = torch.empty(2, self.n_prompts, len(self.edits[0]), dtype=torch.float64)
        with torch.no_grad(), explain_oom(self.model):
            for prompt, metric in enumerate(metrics):
                base = in_float64(self.model.network.unembed(self.ends[prompt, :1])).log_softmax(-1)
                for first in range(0, kl.shape[1], self._step):
                    part = slice(first, first + self._step)
                    logits = self.model.network.unembed(self.ends[prompt, part])
                    values[prompt, part] = measure(metric, logits).cpu()
                    found = (base.exp() * (base - in_float64(logits).log_softmax(-1))).sum(-1)
                    kl[prompt, part] = found.clamp(min=0.0).cpu()  # never negative but for rounding
        return values, kl

    @property
    def _step(self) -> int:
        return max(1, LOGIT_ELEMENTS // self.model.config.vocab_size)
