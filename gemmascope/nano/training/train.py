"""Trains nano from scratch: `python -m gemmascope.nano.training.train RUN_FOLDER`, which also resumes a stopped run.

`--shape pico` trains a model of a fifth of its size, with nano's tokenizer: with `--teacher nano` on nano's soft answers
beside the texts, without a teacher on the texts alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.multiprocessing.spawn import spawn

from gemmascope.config import GemmaConfig
from gemmascope.loading.load import load
from gemmascope.model.gemma2 import Gemma2
from gemmascope.nano import CHECKPOINT
from gemmascope.nano.training.batches import batch
from gemmascope.nano.training.distillation.losses import Loss, fused, on_teacher, on_texts, soft_loss, text_loss
from gemmascope.nano.training.evaluate import measure
from gemmascope.nano.training.vocabulary import save_tokenizer, train_tokenizer
from gemmascope.tokens.tokenizer import Tokenizer
from gemmascope.training.recipe import schedule

SEED = 20
STEPS = 2400
WARM_UP = 150
DECAY = 0.35  # the learning rate falls to zero over this share of the steps, at the end
MUON_RATE, ADAM_RATE = 5e-3, 2e-3
WEIGHT_DECAY = 0.05
CLIP = 1.0
MEASURE_EVERY, SAVE_EVERY = 500, 250
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


# The shapes that are trained here: layers, d_model, d_head, d_mlp.
SHAPES = {"nano": (6, 128, 32, 512), "pico": (4, 64, 16, 128)}
TEMPERATURE, SOFT_SHARE = 2.0, 0.8  # of a teacher's answers


def config_json_of(shape: str, vocab_size: int) -> dict[str, object]:
    """The config.json of a shape, in the transformers layout."""
    n_layers, d_model, d_head, d_mlp = SHAPES[shape]
    config = GemmaConfig(
        d_model=d_model, n_heads=4, n_kv_heads=2, d_head=d_head, d_mlp=d_mlp, vocab_size=vocab_size,
        kinds=("local", "global") * (n_layers // 2), window=16, context=512, query_scalar=d_head,
    )  # fmt: skip
    more = {"hidden_act": "gelu_pytorch_tanh", "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True}
    return {**config.to_dict(), **more, "dtype": "float32"}


def fresh(config: GemmaConfig) -> Gemma2:
    """A network with random weights, whose sublayers add little to the stream."""
    net = Gemma2(config).to_empty(device="cpu")
    for name, weight in net.named_parameters():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            nn.init.constant_(weight, (2 * config.n_layers) ** -0.5 - 1)  # the norms multiply by 1 + weight
        elif weight.dim() == 2:
            nn.init.normal_(weight, std=0.05 if "embed_tokens" in name else weight.shape[1] ** -0.5)
        else:
            nn.init.zeros_(weight)
    return net


def optimizers_for(net: Gemma2) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    layers = [weight for name, weight in net.named_parameters() if weight.dim() == 2 and "embed" not in name]
    norms = [weight for weight in net.parameters() if weight.dim() < 2]
    embedding = [net.model.embed_tokens.weight]
    return (
        torch.optim.Muon(layers, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(embedding, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(norms, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    )


class Run:
    """A training run in a folder: its network, optimizers and step.

    loss: what each step reduces; None means that of the texts. worker, workers: which part of each step's rows this process
    takes; the first worker measures and saves.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        device: str,
        loss: Loss | None = None,
        worker: int = 0,
        workers: int = 1,
        shape: str = "nano",
    ) -> None:
        self.folder, self.steps, self.device, self.loss = folder, steps, device, loss or on_texts()
        self.worker, self.workers = worker, workers
        self.tokenizer = Tokenizer.from_folder(folder)
        torch.manual_seed(SEED)
        self.config_json = config_json_of(shape, self.tokenizer.vocab_size)
        self.net = fresh(GemmaConfig.from_dict(self.config_json)).to(device)
        self.optimizers = optimizers_for(self.net)
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step, self.seconds = 0, 0.0
        if (folder / "run.pt").exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.folder / "run.pt", weights_only=True, map_location=self.device)
        self.net.load_state_dict(saved["net"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self) -> None:
        state = {
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        save_whole(state, self.folder / "run.pt")

    def train(self, until: int | None = None) -> None:
        """Continue to the last step, or to an earlier one."""
        last = self.steps if until is None else until
        while self.step < last:
            started = time.perf_counter()
            loss = self._one_step()
            self.seconds += time.perf_counter() - started
            self.step += 1
            if self.worker == 0:
                self._report(loss, last)

    def _report(self, loss: float, last: int) -> None:
        if self.step % 50 == 0:
            print(f"step {self.step}  {self.seconds:.0f} s  loss {loss:.3f}", flush=True)
        if self.step % MEASURE_EVERY == 0:
            print(json.dumps({k: round(v, 3) for k, v in self.skills().items()}), flush=True)
        if self.step % SAVE_EVERY == 0 or self.step == last:
            self.save()

    def _one_step(self) -> float:
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule(self.step, self.steps, WARM_UP, DECAY)
        rows = batch(self.tokenizer, SEED, self.step)
        ids, targets = (part[self.worker :: self.workers].to(self.device) for part in rows)
        loss = self.loss(self.net, ids, targets)
        self.net.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.workers > 1:
            self._average_gradients()
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    def _average_gradients(self) -> None:
        gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient) / self.workers)
            start += gradient.numel()

    def skills(self) -> dict[str, float]:
        return measure(self.net, self.tokenizer, 200, seed=SEED)


def write(net: Gemma2, config_json: Mapping[str, object], tokenizer_folder: Path, folder: Path) -> None:
    """Write nano as a folder in the transformers layout. Weights are rounded to bfloat16, to halve the file."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {key: config_json[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in (("config.json", config_json), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)


def loss_with(teacher: str | None, device: str) -> Loss:
    """The loss on the texts, or with a teacher's soft answers beside them. teacher: its source, as gs.load takes it."""
    if teacher is None:
        return on_texts(fused(text_loss))
    return on_teacher(load(teacher, device=device).network, TEMPERATURE, SOFT_SHARE, fused(soft_loss))


def run_worker(worker: int, args: argparse.Namespace) -> None:
    """One worker's part of a run. The first worker writes the checkpoint at the end."""
    folder, workers = args.folder, args.workers
    if workers > 1:
        # One thread each: threads would wait for each other at every product, workers do so once per step.
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder.resolve()}/meeting", rank=worker, world_size=workers)
    run = Run(folder, args.steps, args.device, loss_with(args.teacher, args.device), worker, workers, args.shape)
    run.train()
    if worker == 0:
        write(run.net, run.config_json, folder, folder / "checkpoint")
        print(f"{run.seconds / 60:.0f} minutes; the checkpoint is in {folder / 'checkpoint'}")


def save_whole(state: object, path: Path) -> None:
    """Save with torch.save. An interrupt while writing leaves what was there before."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.training.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of the run")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that share every step's rows, one thread each")
    parser.add_argument("--shape", choices=SHAPES, default="nano", help="pico takes nano's tokenizer")
    parser.add_argument("--teacher", help="a model with the same tokenizer, whose soft answers are learnt beside the texts")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "tokenizer.json").exists():
        if args.shape == "nano":
            save_tokenizer(train_tokenizer(SEED), args.folder)
        else:
            for name in TOKENIZER_FILES:
                shutil.copyfile(CHECKPOINT / name, args.folder / name)
    (args.folder / "meeting").unlink(missing_ok=True)
    if args.workers == 1:
        run_worker(0, args)
    else:
        spawn(run_worker, (args,), args.workers)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
