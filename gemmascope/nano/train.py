"""Train nano from nothing: `python -m gemmascope.nano.train RUN_FOLDER`; the same command goes on with a stopped run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemmascope.config import GemmaConfig
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.layout import Layout
from gemmascope.nano.batches import IGNORED, batch
from gemmascope.nano.checkpoint import write
from gemmascope.nano.evaluate import measure
from gemmascope.nano.vocabulary import save_tokenizer, train_tokenizer
from gemmascope.tokens import Tokenizer

SEED = 20
STEPS = 8000
WARM_UP = 150
DECAY = 0.35  # share of the steps, at the end, in which the learning rate goes to zero
RATE = 2e-3
WEIGHT_DECAY = 0.05
CLIP = 1.0
MEASURE_EVERY, SAVE_EVERY = 500, 250


def nano_json(vocab_size: int) -> dict[str, Any]:
    """nano's config.json, in the transformers layout."""
    n_layers = 6
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * (n_layers // 2),
        "max_position_embeddings": 512,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "dtype": "float32",
    }


def fresh(config: GemmaConfig) -> Gemma2:
    """A network with random weights; every sublayer adds little to the stream at first."""
    net = Gemma2(config)
    for name, weight in net.named_parameters():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            nn.init.constant_(weight, (2 * config.n_layers) ** -0.5 - 1)  # the norms multiply by 1 + weight
        elif weight.dim() == 2:
            nn.init.normal_(weight, std=0.05 if "embed_tokens" in name else weight.shape[1] ** -0.5)
    return net


def rate(step: int, steps: int) -> float:
    """The learning rate: up, level, and down to zero in a straight line."""
    return RATE * min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


def optimizer_for(net: Gemma2) -> torch.optim.AdamW:
    matrices = [weight for weight in net.parameters() if weight.dim() == 2]
    norms = [weight for weight in net.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))


def loss_of(net: Gemma2, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, over the positions of the rows [run, pos] that have a target."""
    layout = Layout.of_lengths([ids.shape[1]] * len(ids), ids.device)
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = net.unembed(net(ids.reshape(-1), layout))
    return F.cross_entropy(logits.float(), targets.reshape(-1), ignore_index=IGNORED)


Loss = Callable[[Gemma2, Tensor, Tensor], Tensor]


class Run:
    """One training run: its network, optimizer and step, kept in a folder.

    loss: `loss_of`, or a compiled form of it.
    """

    def __init__(self, folder: Path, steps: int, device: str, loss: Loss = loss_of) -> None:
        self.folder, self.steps, self.device, self.loss = folder, steps, device, loss
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "tokenizer.json").exists():
            save_tokenizer(train_tokenizer(SEED), folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        torch.manual_seed(SEED)
        self.config_json = nano_json(self.tokenizer.vocab_size)
        self.net = fresh(GemmaConfig.from_dict(self.config_json)).to(device)
        self.optimizer = optimizer_for(self.net)
        self.step, self.seconds = 0, 0.0
        if (folder / "run.pt").exists():
            self._resume()

    def _resume(self) -> None:
        kept = torch.load(self.folder / "run.pt", weights_only=True, map_location=self.device)
        self.net.load_state_dict(kept["net"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step, self.seconds = kept["step"], kept["seconds"]

    def save(self) -> None:
        kept = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(kept, self.folder / "run.new")
        (self.folder / "run.new").replace(self.folder / "run.pt")  # a stop while writing loses nothing

    def train(self, until: int | None = None) -> None:
        """From the step where the run stands to its last, or to an earlier one."""
        last = self.steps if until is None else until
        while self.step < last:
            started = time.perf_counter()
            loss = self._one_step()
            self.seconds += time.perf_counter() - started
            self.step += 1
            if self.step % 50 == 0:
                print(f"step {self.step}  {self.seconds:.0f} s  loss {loss:.3f}", flush=True)
            if self.step % MEASURE_EVERY == 0:
                print(json.dumps({k: round(v, 3) for k, v in self.skills().items()}), flush=True)
            if self.step % SAVE_EVERY == 0 or self.step == last:
                self.save()

    def _one_step(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.steps)
        ids, targets = (rows.to(self.device) for rows in batch(self.tokenizer, SEED, self.step))
        loss = self.loss(self.net, ids, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()

    def skills(self) -> dict[str, float]:
        return measure(self.net, self.tokenizer, 200, seed=SEED)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gemmascope.nano.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the run is kept")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    # One program for each row length: nearly twice as fast, after a minute or two of compiling.
    run = Run(given.folder, given.steps, given.device, torch.compile(loss_of, dynamic=False))
    run.train()
    write(run.net, run.config_json, given.folder, given.folder / "checkpoint")
    print(f"{run.seconds / 60:.0f} minutes; the checkpoint is in {given.folder / 'checkpoint'}")


if __name__ == "__main__":
    main()
