"""One of several processes that share a model: computes what tests/test_parallel.py compares, and writes it to a file.

    python tests/parallel_process.py SOURCE FOLDER RANK SIZE

SIZE 0: one process with a whole model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import gemmascope as gs
from gemmascope.model.model import Model

METRIC = gs.logit_diff(5, 9)
IDS, OTHER = [2, 5, 9, 11, 3, 30], [2, 5, 8, 11, 3, 30]


def answers(model: Model) -> dict[str, Any]:
    vector = torch.linspace(-1, 1, 12)
    run = gs.trace(IDS, model=model)
    edits = [
        gs.knockout(layer=1, q_pos=-1, k_pos=2), gs.ablate("z", layer=0, head=5), gs.add("q", vector, layer=2, head=1),
        gs.edit("mlp_act", lambda x: x * 2, layer=1), gs.scale("head_out", 0.5, layer=2, head=3),
    ]  # fmt: skip
    edited = gs.trace(IDS, model=model, edits=edits)
    tapped = model.run(IDS, lambda site, layer, x: x * 1.5 if (site, layer) == ("v", 1) else x)

    def swept(site: str, by: tuple[str, ...]) -> Any:
        return gs.sweep(IDS, OTHER, METRIC, site=site, by=by, model=model, progress=False).values

    grads = run.grad(METRIC, [("z", 1), ("pattern", 0), ("mlp_act", 2), ("resid_pre", 0), "embed"])
    made = gs.generate([IDS, OTHER[:3]], model=model, max_new_tokens=5, edits=[gs.ablate("z", layer=1, head=2)])
    return {
        "logits": run.logits, "edited": edited.logits, "tapped": tapped,
        **{site.name: run[site.name, 1] for site in gs.SITES.values() if site.in_layer},
        "edges": run.edges("pattern", 2, head=[1, 6], q_pos=-1),
        "gradients": torch.cat([grad.flatten() for grad in grads.values()]),
        "sweep resid_pre": swept("resid_pre", ("layer", "pos")), "sweep z": swept("z", ("layer", "head")),
        "sweep k": swept("k", ("layer", "head")), "sweep pattern": swept("pattern", ("layer", "head")),
        "attribute": gs.attribute(IDS, OTHER, METRIC, site="z", by=("layer", "head"), model=model).values,
        "lens": gs.lens(run).entropy.values,
        "attention_summary": gs.attention_summary(run).mean["entropy"].values,
        "head_scores": gs.head_scores(model, "sink", prompts=[IDS, OTHER]).scores.values,
        "path_sweep": gs.path_sweep(IDS, OTHER, METRIC, sender="mlp_out", model=model, progress=False).values,
        "tokens": torch.cat([one.ids for one in made]), "logprobs": [p for one in made for p in one.logprobs],
        "sampled": gs.generate(IDS, model=model, max_new_tokens=4, temperature=1.0, seed=3).ids,
    }  # fmt: skip


def refusals(model: Model) -> str:
    """What reads whole matrices, and how each is refused."""
    run = gs.trace(IDS, model=model)
    reading: dict[str, Callable[[], object]] = {
        "ov": lambda: model.layer(1).ov(0),
        "composition": lambda: gs.composition(model),
        "direct_logits": lambda: gs.direct_logits(run, 5, by="head"),
        "neurons": lambda: gs.direct_logits(run, 5, by="neuron"),
        "lens": lambda: gs.lens(run, site="head_out", head=1),
        "path_sweep": lambda: gs.path_sweep(IDS, OTHER, METRIC, model=model, progress=False),
        "receiver": lambda: gs.path_sweep(
            IDS, OTHER, METRIC, sender="mlp_out", receiver=("q", 2, 0), mlps="frozen", model=model, progress=False
        ),
    }
    return "\n".join(f"{name}: {_refusal_of(read)}" for name, read in reading.items())


def _refusal_of(read: Callable[[], object]) -> str:
    try:
        read()
    except gs.errors.DeviceError as error:
        return str(error)
    return "none"


def main(source: str, folder: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
        model = gs.load_parallel(source, device="cpu")
        (folder / f"refusals{rank}").write_text(f"{model!r}\n{refusals(model)}", encoding="utf-8")
    else:
        model = gs.load(source, device="cpu")
    arrays = {
        name: value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in answers(model).items()
    }
    np.savez(folder / f"{rank if size else 'whole'}.npz", **arrays)  # type: ignore[arg-type]
    if size:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
