"""One trace in many threads: every number equals the serial one."""

from __future__ import annotations

import random
import threading
from typing import Any

import torch
from checkpoints import checkpoint, model_of, prompt

import gemmascope as gs


def test_eight_threads_read_one_trace_as_one_does() -> None:
    model = model_of(checkpoint("lg" * 4))  # more layers than a trace keeps
    edits = [gs.edit("z", lambda z: z + torch.rand_like(z), layer=3)]
    t = gs.trace(prompt(9), model=model, edits=edits)
    keys: list[Any] = [(site, layer) for site in ("z", "pattern", "mlp_act", "resid_mid") for layer in range(8)] + ["logits"]
    right = {key: t[key] for key in keys}
    edges = {layer: t.edges("scores", layer, head=1) for layer in range(8)}
    wrong: list[Any] = []
    start = threading.Barrier(8)

    def read(seed: int) -> None:
        draw = random.Random(seed)
        start.wait()
        for _ in range(120):
            key = draw.choice(keys)
            try:
                if not torch.equal(t[key], right[key]):
                    wrong.append(key)
                layer = draw.randrange(8)
                if not torch.equal(t.edges("scores", layer, head=1), edges[layer]):
                    wrong.append(("edges", layer))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(torch.equal(t[key], right[key]) for key in keys)  # and it stays readable
