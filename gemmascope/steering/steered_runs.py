"""Runs of prompts and texts at every strength of a steering vector, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gemmascope.edits.edit import BoundEdit
from gemmascope.edits.kinds import Add
from gemmascope.edits.of_run import all_edits
from gemmascope.errors import SweepError
from gemmascope.memory.limits import explain_oom
from gemmascope.model.maths import kl_divergence
from gemmascope.model.model import Model
from gemmascope.run.bound_metric import BoundMetric, RowMetric, measure_stream, read_positions
from gemmascope.run.logits import rows_to_unembed
from gemmascope.run.microbatches import Microbatch, embed_in_microbatches, in_microbatches
from gemmascope.sites import find
from gemmascope.steering.directions import layer_of
from gemmascope.steering.strength_result import StrengthSweep
from gemmascope.sweeps.cells import chunked
from gemmascope.values import in_float64


def measure_strengths(
    model: Model,
    prompts: list[Tensor],
    texts: list[Tensor],
    steering: Add,
    strengths: Sequence[float],
    metrics: Sequence[BoundMetric],
    question: str,
    max_rows: int,
    progress: bool,
) -> StrengthSweep:
    """What gs.strength_sweep returns, for arguments that were checked.

    Args:
        model: The model.
        prompts: The token ids of each prompt.
        texts: The token ids of the texts whose perplexity is measured; empty for the prompts.
        steering: The edit at strength 1.
        strengths: The strengths, each once; the unsteered run is measured beside them.
        metrics: A metric for each prompt.
        question: The metric as text.
        max_rows: How many rows may share a pass.
        progress: Whether to show a progress bar.
    """
    levels = [0.0, *(strength for strength in strengths if strength)]
    runs = SteeredRuns.of(model, prompts, texts, steering, levels, metrics)
    runs.run(max_rows, progress)
    values, kl = runs.measured()
    return StrengthSweep.of(
        strengths=list(strengths),
        levels=levels,
        metric=values,
        kl=kl,
        nll=runs.nll,
        n_predicted=runs.n_predicted,
        reaches=runs.reaches,
        named=(model.name, question, repr(steering)),
        texts=[model.texts(prompt) for prompt in prompts],
    )


class _Run(NamedTuple):
    """One prompt or text at one level of strength, both by number. n_rows: how many rows it takes in a pass."""

    text: int
    level: int
    n_rows: int


@dataclass
class SteeredRuns:
    """Every prompt and text at every level of strength; level 0 is the unsteered run.

    ids: token ids of the prompts, and then of the texts, if there are any. edits: the edits of each at each level. scored:
    which of them count for the perplexity. metrics: that of each prompt. final_residuals: of each prompt, the stream after
    the last layer where its metric reads and at its last position, [level, pos, d_model]. nll: negative log-likelihood in
    nats, summed over predicted tokens, [scored, level].
    """

    model: Model
    ids: list[Tensor]
    edits: list[list[tuple[BoundEdit, ...]]]
    layer: int
    metrics: Sequence[BoundMetric]
    scored: range
    read: list[tuple[int, ...]] = field(init=False)
    final_residuals: list[Tensor] = field(init=False)
    nll: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n_levels, norm = len(self.edits[0]), self.model.network.model.norm.weight
        self.read = [read_positions([one, _last_of(ids)]) for one, ids in zip(self.metrics, self.ids, strict=False)]
        self.final_residuals = [norm.new_empty(n_levels, len(at), self.model.config.d_model) for at in self.read]
        self.nll = torch.zeros(len(self.scored), n_levels, dtype=torch.float64)

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: list[Tensor],
        texts: list[Tensor],
        steering: Add,
        levels: Sequence[float],
        metrics: Sequence[BoundMetric],
    ) -> SteeredRuns:
        ids = [*prompts, *texts]
        bound = [steering.bind(model, each) for each in ids]
        layer = layer_of(bound[0].address, "a strength sweep steers a site with rows in the layers")
        edits_by_level = [[replace(steering, scale=level)] if level else [] for level in levels]
        kept = all_edits(model)
        if late := [edit for edit in kept if find(edit.site, model.n_layers, edit.layer).is_after_layers]:
            raise SweepError(f"a strength sweep reads the logits as the last layer leaves them, not after {late[0]!r}")
        edits = [[tuple(edit.bind(model, each) for edit in (*kept, *level)) for level in edits_by_level] for each in ids]
        return cls(model, ids, edits, layer, metrics, range(len(prompts) if texts else 0, len(ids)))

    @property
    def n_predicted(self) -> int:
        """How many tokens are predicted at each level."""
        return sum(len(self.ids[text]) - 1 for text in self.scored)

    @property
    def reaches(self) -> bool:
        """Whether any predicted token comes after a steered position."""
        n_kept = len(self.edits[0][0])  # by the model, at every level
        steered = [(e.reach[0], len(self.ids[text])) for text in self.scored for e in self.edits[text][-1][n_kept:]]
        return any(first < length - 1 for first, length in steered) or len(self.edits[0][-1]) == n_kept

    def run(self, max_rows: int, progress: bool) -> None:
        """Run everything, in passes of at most max_rows rows, or of a single longer run."""
        from tqdm.auto import tqdm

        n_levels = len(self.edits[0])
        runs = [_Run(text, level, len(ids)) for text, ids in enumerate(self.ids) for level in range(n_levels)]
        with tqdm(total=len(runs), desc="strengths", unit="run", delay=1.0, leave=False, disable=not progress) as bar:
            for chunk in chunked(runs, lambda: max_rows):
                with torch.no_grad(), explain_oom(self.model):
                    for batch in self._carry(chunk):
                        self._collect(batch, chunk)
                bar.update(len(chunk))

    def _carry(self, chunk: Sequence[_Run]) -> list[Microbatch]:
        """Carry a chunk through the layers: each text once as far as the steered layer, then once for each level."""
        texts = sorted({run.text for run in chunk})
        batches = embed_in_microbatches(self.model, [self.ids[text] for text in texts])
        with closing(self.model.layers()) as layers:
            for layer in layers:
                if layer.index == self.layer:
                    entering = {texts[i]: rows for batch in batches for i, rows in batch.each()}
                    edits = [self.edits[run.text][run.level] for run in chunk]
                    batches = in_microbatches(self.model, [entering[run.text] for run in chunk], edits)
                for batch in batches:
                    batch.through(layer)
        return batches

    def _collect(self, batch: Microbatch, chunk: Sequence[_Run]) -> None:
        """Keep the last row of prompts, and the likelihood of scored texts, after the last layer."""
        rows, next_ids, places = [], [], []
        for i, x in batch.each():
            text, level, _ = chunk[i]
            if text < len(self.metrics):
                self.final_residuals[text][level] = x[list(self.read[text])]
            if text in self.scored:
                rows.append(x[:-1])
                next_ids.append(self.ids[text][1:])
                places.append((text - self.scored.start, level))
        if not rows:
            return
        losses = self._losses(torch.cat(rows), torch.cat(next_ids))
        for place, part in zip(places, torch.split(losses, [len(x) for x in rows]), strict=True):
            self.nll[place] = part.sum()

    def _losses(self, rows: Tensor, next_ids: Tensor) -> Tensor:
        """The negative log-likelihood of the token after each row, in nats."""
        parts = zip(torch.split(rows, self._step), torch.split(next_ids, self._step), strict=True)
        losses = []
        for x, ids in parts:
            logits = in_float64(self.model.network.unembed(x))
            losses.append(cross_entropy(logits, ids.to(logits.device), reduction="none").cpu())
        return torch.cat(losses)

    def measured(self) -> tuple[Tensor, Tensor]:
        """The metric of each prompt at each level, and KL(unsteered || steered) in nats: float64 [prompt, level]."""

        def unembed(rows: Tensor, _: Sequence[int]) -> Tensor:
            return self.model.network.unembed(rows.flatten(0, 1)).reshape(*rows.shape[:2], -1)

        values, kl = torch.empty(2, len(self.metrics), len(self.edits[0]), dtype=torch.float64)
        with torch.no_grad(), explain_oom(self.model):
            for prompt, (metric, rows) in enumerate(zip(self.metrics, self.final_residuals, strict=True)):
                unsteered = in_float64(self.model.network.unembed(rows[:1, -1])).log_softmax(-1)
                both = [metric, _last_of(self.ids[prompt], unsteered)]
                of_prompt = measure_stream(both, self.read[prompt], rows, unembed, self._step).cpu()
                values[prompt], kl[prompt] = of_prompt[0], of_prompt[1].clamp(min=0.0)  # negative only by rounding
        return values, kl

    @property
    def _step(self) -> int:
        """Rows to unembed at once."""
        return rows_to_unembed(self.model, bytes_per_logit=16)


def _last_of(ids: Tensor, unsteered: Tensor | None = None) -> RowMetric:
    """The KL divergence from the unsteered log-probabilities, [1, vocab], at a prompt's last position."""

    def rule(logits: Tensor, _: Tensor) -> Tensor:
        assert unsteered is not None
        return kl_divergence(unsteered, in_float64(logits).log_softmax(-1))

    return RowMetric((len(ids) - 1,), rule)
