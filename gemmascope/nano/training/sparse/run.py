"""Run: training of a dictionary in a folder, which resumes where it was stopped.

A JumpReLU dictionary with a single threshold, set so that a row has the recipe's number of active features on average
(BatchTopK). Sources: "BatchTopK Sparse Autoencoders" (arXiv 2412.06410), and for the loss that revives dead features
"Scaling and evaluating sparse autoencoders" (arXiv 2406.04093).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gemmascope.model.model import Model
from gemmascope.nano.training.runs import save_whole, schedule
from gemmascope.nano.training.sparse.recipe import Recipe
from gemmascope.nano.training.sparse.rows import collect

# Rows that the means and scales are of.
SCALE_ROWS = 100_000


@dataclass(frozen=True)
class _Scaled:
    """Rows with their mean and the square root of their mean squared distance from it."""

    rows: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> _Scaled:
        some = rows[:SCALE_ROWS].float()
        return cls(rows, some.mean(0), (some - some.mean(0)).square().sum(1).mean().sqrt())

    def at(self, numbers: Tensor) -> Tensor:
        """Some rows, less the mean, with a mean squared length of 1."""
        return (self.rows[numbers].float() - self.mean) / self.scale


class Run:
    """A training run in a folder: its rows, weights and step.

    The weights apply to rows less their mean, scaled to a mean squared length of 1, on both sides. W_enc and W_dec have a
    row for each feature.
    """

    def __init__(self, folder: Path, model: Model, recipe: Recipe) -> None:
        self.folder, self.model, self.recipe, self.step = folder, model, recipe, 0
        read, written = self._rows()
        self.read = _Scaled.of(read)
        self.written = self.read if written is read else _Scaled.of(written)
        start = self._first_weights(torch.Generator().manual_seed(recipe.seed))
        self.weights = {name: weight.requires_grad_() for name, weight in start.items()}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=recipe.rate)
        self.threshold, self.asleep = torch.zeros(()), torch.zeros(recipe.features)
        if (folder / "run.pt").exists():
            self._resume()

    def _rows(self) -> tuple[Tensor, Tensor]:
        path = self.folder / "rows.pt"
        if not path.exists():
            save_whole(collect(self.model, self.recipe), path)
        read, written = torch.load(path, weights_only=True)
        return read, read if torch.equal(read, written) else written

    def _first_weights(self, generator: torch.Generator) -> dict[str, Tensor]:
        features, d_out = self.recipe.features, self.written.rows.shape[1]
        if self.recipe.from_examples is not None:
            examples = torch.randint(len(self.read.rows), (features,), generator=generator)
            W_enc, W_dec = (normalize(side.at(examples), dim=1) for side in (self.read, self.written))
            W_enc = W_enc * self.recipe.from_examples
        else:
            W_dec = normalize(torch.randn(features, d_out, generator=generator), dim=1)
            W_enc = W_dec.clone()
        return {"W_enc": W_enc, "b_enc": torch.zeros(features), "W_dec": W_dec, "b_dec": torch.zeros(d_out)}

    def _resume(self) -> None:
        saved = torch.load(self.folder / "run.pt", weights_only=True)
        with torch.no_grad():
            for name, weight in saved["weights"].items():
                self.weights[name].copy_(weight)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.threshold, self.asleep = saved["step"], saved["threshold"], saved["asleep"]

    def save(self) -> None:
        state: dict[str, object] = {
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "step": self.step,
        }
        state |= {"optimizer": self.optimizer.state_dict(), "threshold": self.threshold, "asleep": self.asleep}
        save_whole(state, self.folder / "run.pt")

    def train(self, until: int | None = None) -> None:
        """Continue to the last step, or to an earlier one."""
        last, started = self.recipe.steps if until is None else until, time.process_time()
        while self.step < last:
            loss = self._one_step()
            self.step += 1
            if self.step % self.recipe.save_every == 0 or self.step == last:
                self.save()
                n_dead = int((self.asleep > self.recipe.dead_after).sum())
                seconds = time.process_time() - started
                print(f"step {self.step}  {seconds:.0f} s of CPU  loss {loss:.4f}  dead {n_dead}", flush=True)

    def _one_step(self) -> float:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * schedule(self.step, recipe.steps, recipe.warm_up, recipe.decay)
        drawn = torch.Generator().manual_seed(recipe.seed * 10**6 + self.step)  # the same rows for a step, resumed or not
        numbers = torch.randint(len(self.read.rows), (recipe.batch,), generator=drawn)
        x = self.read.at(numbers)
        loss = self._loss(x, x if self.written is self.read else self.written.at(numbers))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        W_dec = self.weights["W_dec"]
        with torch.no_grad():
            assert W_dec.grad is not None
            # Rows of the decoder have a fixed length: no gradient along them.
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            self.optimizer.step()
            W_dec.copy_(normalize(W_dec, dim=1))
        return loss.item()

    def _loss(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean squared error, plus that of dead features on what it leaves.

        What is active is found without gradients. Values, and gradients, are then computed of the active features alone.
        """
        recipe = self.recipe
        with torch.no_grad():
            pre = (x @ self.weights["W_enc"].T + self.weights["b_enc"]).relu_()
            active = pre >= self._cut(pre).clamp(min=torch.finfo(pre.dtype).tiny)
            self.asleep = torch.where(active.any(0), 0.0, self.asleep + 1)
        residual = target - self._written(x, *active.nonzero(as_tuple=True)) - self.weights["b_dec"]
        loss = residual.square().sum(1).mean()
        dead = (self.asleep > recipe.dead_after).nonzero()[:, 0]
        if len(dead):
            with torch.no_grad():
                strongest = pre[: recipe.revived_rows, dead].topk(min(len(dead), recipe.revived), 1)
                row, nth = (strongest.values > 0).nonzero(as_tuple=True)
                feature = dead[strongest.indices[row, nth]]
            left = residual[: recipe.revived_rows].detach()
            revived = self._written(x[: recipe.revived_rows], row, feature)
            loss = loss + recipe.revived_weight * (revived - left).square().sum(1).mean()
        return loss

    def _written(self, x: Tensor, row: Tensor, feature: Tensor) -> Tensor:
        """What features write for rows, [row, d_out], without the bias. row, feature: the active pairs."""
        w = self.weights
        values = (x.index_select(0, row) * w["W_enc"].index_select(0, feature)).sum(1) + w["b_enc"].index_select(0, feature)
        written = values[:, None] * w["W_dec"].index_select(0, feature)
        return x.new_zeros(len(x), written.shape[1]).index_add(0, row, written)

    def _cut(self, pre: Tensor) -> Tensor:
        """The value above which the wanted number of activations lies; its running mean is the threshold."""
        recipe = self.recipe
        wide = 1 + (recipe.wide - 1) * max(0.0, 1 - self.step / (recipe.wide_share * recipe.steps))
        some = pre[: recipe.threshold_rows]
        cut = some.flatten().topk(int(recipe.active * wide * len(some))).values[-1]
        memory = recipe.threshold_memory if self.step else 0.0
        self.threshold = memory * self.threshold + (1 - memory) * cut
        return cut

    def arrays(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]:
        """The dictionary in Gemma Scope's form: for raw rows: means and scales are folded in, decoder rows have length 1."""
        w = {name: weight.detach() for name, weight in self.weights.items()}
        W_enc = w["W_enc"].T * (self.written.scale / self.read.scale)
        folded = {
            "W_enc": W_enc,
            "W_dec": w["W_dec"],
            "b_enc": w["b_enc"] * self.written.scale - self.read.mean @ W_enc,
            "b_dec": w["b_dec"] * self.written.scale + self.written.mean,
            "threshold": (self.threshold * self.written.scale).expand(self.recipe.features),
        }
        return {name: array.numpy().astype(np.float16) for name, array in folded.items()}
