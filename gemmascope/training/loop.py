"""Training: the steps of a training in a folder, which goes on where it was stopped."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmascope.errors import DictionaryError
from gemmascope.training.checkpoint import FILE, Checkpoint, read_checkpoint
from gemmascope.training.network import Network, first_weights
from gemmascope.training.recipe import JUMP_RELU, Recipe, schedule
from gemmascope.training.rows import Rows
from gemmascope.training.scaling import Scaling, folded

# What the history keeps of a step, and about how many steps it keeps.
MEASURES = ("step", "loss", "explained", "l0", "dead")
MOST_POINTS = 400


class Training:
    """A training in a folder.

    Attributes:
        step: How many steps are done.
        history: Of some steps the MEASURES, on the batch of the step.
    """

    def __init__(self, recipe: Recipe, rows: Rows, folder: Path, device: torch.device) -> None:
        self.recipe, self.rows, self.folder, self.device = recipe, rows, folder, device
        self.step = 0
        self.history: list[list[float]] = []
        found = read_checkpoint(folder)
        if found is not None:
            self._require_same(found)
            self.read, self.written = (Scaling(**found.part(f"scaling.{side}")) for side in ("read", "written"))
        else:
            x, target = rows.sample()
            self.read = Scaling.of(x, recipe.centre)
            self.written = self.read if x is target else Scaling.of(target, recipe.centre)
        self.read, self.written = self.read.to(device), self.written.to(device)
        weights = found.part("weights") if found is not None else self._first(x, target)
        self.network = Network(recipe, {name: weight.to(device) for name, weight in weights.items()})
        betas = (0.0, 0.999) if recipe.architecture == JUMP_RELU else (0.9, 0.999)
        self.optimizer = torch.optim.Adam(list(self.network.weights.values()), lr=recipe.rate, betas=betas)
        if found is not None:
            self._resume(found)

    def _first(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        scaled = self.read.apply(x.to(self.device)), self.written.apply(target.to(self.device))
        return first_weights(self.recipe, *scaled)

    @property
    def n_dead(self) -> int:
        """How many features were not active for as many rows as make one dead."""
        return int((self.network.asleep > self.recipe.dead_after).sum())

    def run(self, save_every: int, progress: bool) -> None:
        """Take the steps that are left, with a checkpoint after every save_every of them and after the last."""
        from tqdm.auto import tqdm

        recipe = self.recipe
        every = max(1, recipe.steps // MOST_POINTS)
        batches = self.rows.batches(recipe.batch_size, recipe.seed, self.step)
        with (
            closing(batches),  # type: ignore[type-var]
            tqdm(
                desc="train", unit="row", unit_scale=True, delay=1.0, leave=False, disable=not progress,
                total=recipe.steps * recipe.batch_size, initial=self.step * recipe.batch_size,
            ) as bar,
        ):  # fmt: skip
            while self.step < recipe.steps:
                x, target = next(batches)
                measures = self._one_step(x, target)
                self.step += 1
                if self.step % every == 0 or self.step in (1, recipe.steps):
                    self.history.append([float(self.step), *measures])
                    bar.set_postfix_str(
                        f"explained {measures[1]:.1%}, L0 {measures[2]:.1f}, dead {self.n_dead}", refresh=False
                    )
                if self.step % save_every == 0 or self.step == recipe.steps:
                    self.save()
                bar.update(len(x))

    def _one_step(self, x: Tensor, target: Tensor) -> list[float]:
        """A step, and its measures. DictionaryError if the loss is no number any more."""
        recipe, network = self.recipe, self.network
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * schedule(self.step, recipe.steps, recipe.warm_up, recipe.decay)
        same = target is x
        x = self.read.apply(x.to(self.device))
        target = x if same else self.written.apply(target.to(self.device))
        with torch.enable_grad():
            found = network.loss(x, target, self.step)
            self.optimizer.zero_grad()
            found.loss.backward()  # type: ignore[no-untyped-call]
        loss = found.loss.item()
        if loss != loss or loss == float("inf"):
            raise DictionaryError(
                f"the loss of step {self.step + 1} is {loss}: a smaller rate than {recipe.rate:g} may help, in another "
                "folder"
            )
        network.constrain_gradient()
        self.optimizer.step()
        network.constrain()
        variance = float((target - target.mean(0)).square().sum(1).mean())
        explained = 1 - found.error / variance if variance else float("nan")
        return [loss, explained, found.l0, float(self.n_dead)]

    def arrays(self) -> dict[str, Tensor]:
        """The dictionary's arrays for rows as they are, float32 on the CPU."""
        network = self.network
        weights = {name: weight for name, weight in network.weights.items() if name != "log_threshold"}
        return folded(weights, network.thresholds(), self.read, self.written)

    def save(self) -> None:
        """Write the checkpoint."""
        network, optimizer = self.network, self.optimizer.state_dict()["state"]
        tensors = {f"weights.{name}": weight for name, weight in network.weights.items()}
        for number, name in enumerate(network.weights):
            tensors |= {f"adam.{key}.{name}": value for key, value in optimizer.get(number, {}).items()}
        tensors |= {"asleep": network.asleep, "threshold": network.threshold}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(MEASURES))
        for side, scaling in (("read", self.read), ("written", self.written)):
            tensors |= {f"scaling.{side}.mean": scaling.mean, f"scaling.{side}.size": scaling.size}
        about: dict[str, Any] = {"recipe": self.recipe.as_data(), "rows": self.rows.fingerprint, "step": self.step}
        Checkpoint(tensors, about).write(self.folder)

    def _require_same(self, found: Checkpoint) -> None:
        """DictionaryError for the checkpoint of another training."""
        different = self.recipe.differences(found.about["recipe"])
        if found.about["rows"] != self.rows.fingerprint:
            different.append("other rows")
        if different:
            raise DictionaryError(
                f"{self.folder / FILE} is of another training ({'; '.join(different)}): give the same arguments to go on "
                "with it, or another folder"
            )

    def _resume(self, found: Checkpoint) -> None:
        """Take what the file holds beside the weights and the scaling."""
        network = self.network
        names = list(network.weights)
        state: dict[int, dict[str, Tensor]] = {}
        for key in ("step", "exp_avg", "exp_avg_sq"):
            for name, value in found.part(f"adam.{key}").items():
                state.setdefault(names.index(name), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        network.asleep = found.tensors["asleep"].to(self.device)
        network.threshold = found.tensors["threshold"].to(self.device)
        self.history = found.tensors["history"].tolist()
        self.step = int(found.about["step"])
