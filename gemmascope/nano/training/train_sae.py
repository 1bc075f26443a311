"""Trains a dictionary on nano's stream: `python -m gemmascope.nano.training.train_sae RUN_FOLDER`, which also resumes.

A JumpReLU autoencoder with a single threshold, set so that a row has ACTIVE active features on average (BatchTopK), in Gemma
Scope's format and folder layout. Sources: "BatchTopK Sparse Autoencoders" (arXiv 2412.06410), and for the loss that revives
dead features "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093).
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from gemmascope.files.writing import make_folder, write_file
from gemmascope.loading.load import load
from gemmascope.model.layout import Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import SILENT
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.runs import save_whole, schedule
from gemmascope.nano.training.ties import Texts, ties_of
from gemmascope.sae.about import ABOUT
from gemmascope.sae.catalogue import PARAMS, width_name
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import as_tensors, load_sae

SEED = 6
SITE, LAYER = "resid_post", 3
FEATURES, ACTIVE = 1024, 10
ROWS, BATCH, STEPS = 1_000_000, 2048, 2200
RATE, WARM_UP, DECAY = 1.5e-3, 100, 0.25
# At first WIDE times as many features may be active, falling to ACTIVE over this share of the steps, so that fewer die.
WIDE, WIDE_SHARE = 4.0, 0.2
# Features inactive for DEAD_AFTER steps learn to reconstruct what the others leave, REVIVED of them for each row.
DEAD_AFTER, REVIVED, REVIVED_WEIGHT = 100, 32, 1 / 32
THRESHOLD_ROWS, THRESHOLD_MEMORY = 512, 0.99
SAVE_EVERY = 250


def stream_rows(model: Model, layer: int, prompts: list[Tensor]) -> Tensor:
    """The stream after a layer at every position but `<bos>` [row, d_model]. Layers above are not run."""
    layout = Layout.of_lengths([len(ids) for ids in prompts], model.device)
    with torch.no_grad(), closing(model.layers()) as layers:
        x = model.network.embed(torch.cat(prompts), layout)
        for one in layers:
            x = one(x, layout, SILENT.at(one.index, layout))
            if one.index == layer:
                break
    return x[layout.positions > 0]


def corpus_rows(model: Model, layer: int, seed: str) -> Iterator[Tensor]:
    """Endless rows of the corpus, some hundred texts at a time, in half precision."""
    source = texts(seed)
    while True:
        prompts = sorted((model.ids(text) for text in islice(source, 400)), key=len)
        yield stream_rows(model, layer, prompts).half()


class Run:
    """A training run in a folder: its rows, weights and step.

    The weights apply to rows from which the mean is subtracted, scaled to a mean squared length of 1.
    """

    def __init__(self, folder: Path, model: Model, steps: int = STEPS) -> None:
        self.folder, self.model, self.steps, self.step = folder, model, steps, 0
        self.rows = self._rows()
        some = self.rows[:100_000].float()
        self.mean = some.mean(0)
        self.scale = (some - self.mean).square().sum(1).mean().sqrt()
        first = torch.Generator().manual_seed(SEED)
        W_dec = normalize(torch.randn(FEATURES, some.shape[1], generator=first), dim=1)
        start = {
            "W_enc": W_dec.T.clone(),
            "b_enc": torch.zeros(FEATURES),
            "W_dec": W_dec,
            "b_dec": torch.zeros(some.shape[1]),
        }
        self.weights = {name: weight.requires_grad_() for name, weight in start.items()}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=RATE)
        self.threshold, self.asleep = torch.zeros(()), torch.zeros(FEATURES)
        if (folder / "run.pt").exists():
            self._resume()

    def _rows(self) -> Tensor:
        path = self.folder / "rows.pt"
        if not path.exists():
            parts: list[Tensor] = []
            for part in corpus_rows(self.model, LAYER, f"dictionary {SEED}"):
                parts.append(part)
                if sum(map(len, parts)) >= ROWS:
                    break
            save_whole(torch.cat(parts)[:ROWS], path)
        rows: Tensor = torch.load(path, weights_only=True)
        return rows

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
        last, started = self.steps if until is None else until, time.perf_counter()
        while self.step < last:
            loss = self._one_step()
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == last:
                self.save()
                n_dead = int((self.asleep > DEAD_AFTER).sum())
                print(f"step {self.step}  {time.perf_counter() - started:.0f} s  loss {loss:.4f}  dead {n_dead}", flush=True)

    def _one_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * schedule(self.step, self.steps, WARM_UP, DECAY)
        drawn = torch.Generator().manual_seed(SEED * 10**6 + self.step)  # the same rows for a step, resumed or not
        x = (self.rows[torch.randint(len(self.rows), (BATCH,), generator=drawn)].float() - self.mean) / self.scale
        loss = self._loss(x)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        W_dec = self.weights["W_dec"]
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec.grad * W_dec).sum(
                1, keepdim=True
            ) * W_dec  # rows have a fixed length: no gradient along them
            self.optimizer.step()
            W_dec.copy_(normalize(W_dec, dim=1))
        return loss.item()

    def _loss(self, x: Tensor) -> Tensor:
        """The mean squared error, plus that of dead features on what it leaves."""
        w = self.weights
        pre = (x @ w["W_enc"] + w["b_enc"]).relu()
        acts = pre * (pre >= self._cut(pre.detach()))
        residual = x - (acts @ w["W_dec"] + w["b_dec"])
        self.asleep = torch.where((acts > 0).any(0), 0.0, self.asleep + 1)
        loss = residual.square().sum(1).mean()
        dead = self.asleep > DEAD_AFTER
        if dead.any():
            revived = pre * dead
            revived = revived * (revived >= revived.detach().topk(min(int(dead.sum()), REVIVED), 1).values[:, -1:])
            loss = loss + REVIVED_WEIGHT * (revived @ w["W_dec"] - residual.detach()).square().sum(1).mean()
        return loss

    def _cut(self, pre: Tensor) -> Tensor:
        """The value above which the wanted number of activations lies; its running mean is the threshold."""
        wide = 1 + (WIDE - 1) * max(0.0, 1 - self.step / (WIDE_SHARE * self.steps))
        cut = pre[:THRESHOLD_ROWS].flatten().topk(int(ACTIVE * wide * THRESHOLD_ROWS)).values[-1]
        memory = THRESHOLD_MEMORY if self.step else 0.0
        self.threshold = memory * self.threshold + (1 - memory) * cut
        return cut

    def arrays(self) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]]:
        """The dictionary in Gemma Scope's form: for raw rows, with mean and scale folded in and decoder rows of length 1."""
        w = {name: weight.detach() for name, weight in self.weights.items()}
        folded = {
            "W_enc": w["W_enc"],
            "W_dec": w["W_dec"],
            "b_enc": w["b_enc"] * self.scale - self.mean @ w["W_enc"],
            "b_dec": w["b_dec"] * self.scale + self.mean,
            "threshold": (self.threshold * self.scale).expand(FEATURES),
        }
        return {name: array.numpy().astype(np.float16) for name, array in folded.items()}


def write(run: Run, folder: Path) -> Path:
    """Write the dictionary, with a file about its model and site, its measurements, and its features' ties to concepts."""
    arrays, model = run.arrays(), run.model
    dictionary = Dictionary(**as_tensors(arrays, "cpu"), site=SITE, layer=LAYER)
    measured = [Texts.of(dictionary, model, seed) for seed in ("ties", "ties again")]
    l0 = len(measured[1].pos) / measured[1].n_rows
    target = folder / f"layer_{LAYER}" / f"width_{width_name(FEATURES)}" / f"average_l0_{l0:.0f}"
    make_folder(target)
    with io.BytesIO() as packed:
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        write_file(target / PARAMS, packed.getvalue())
    loss = dictionary.loss_recovered(list(islice(texts("dictionary measured"), 300)), model=model)
    about = {
        "model": model.name,
        "fingerprint": model.network_fingerprint,
        "site": SITE,
        "layer": LAYER,
        "measured": {
            "active features a position": round(l0, 2),
            "explained variance": round(measured[1].explained, 4),
            "loss recovered": round(loss.recovered, 4),
            "loss clean, spliced, zeroed": [round(x, 4) for x in (loss.clean, loss.spliced, loss.zeroed)],
        },
        "concepts": [{"feature": feature, **vars(tie)} for feature, tie in ties_of(*measured).items()],
    }
    write_file(target / ABOUT, json.dumps(about, indent=1) + "\n")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.train_sae", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run; the dictionary is written to FOLDER/dictionary")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    make_folder(args.folder)
    torch.set_num_threads(1)
    run = Run(args.folder, load("nano"), args.steps)
    run.train()
    target = write(run, args.folder / "dictionary")
    print((target / ABOUT).read_text(encoding="utf-8"))
    print(load_sae(target))


if __name__ == "__main__":
    main()
