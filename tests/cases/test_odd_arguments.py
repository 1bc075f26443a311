"""Odd arguments: what users do type by mistake gives the package's own error, or a right answer; never a bare error.

A table of odd values, and one of calls: each takes an odd value in the place of one argument. Add calls to CALLS.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import gemmascope as gs
from gemmascope.errors import GemmascopeWarning

P = "When Mary and John went to the store, John gave a drink to"
D = 128

# Made anew for each call: a generator is read once.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "np.True_": lambda: np.True_,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2.0": lambda: 2.0,
    "-0.0": lambda: -0.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "2**63": lambda: 2**63,
    "-(2**63)": lambda: -(2**63),
    "1j": lambda: 1j,
    "np.int64": lambda: np.int64(1),
    "np.uint8": lambda: np.uint8(1),
    "np.float32": lambda: np.float32(1),
    "0-d array": lambda: np.array(1),
    "array": lambda: np.array([0, 1]),
    "array of floats": lambda: np.array([0.5, 1]),
    "array of texts": lambda: np.array(["a"]),
    "array of objects": lambda: np.array([None, {}]),
    "0-d tensor": lambda: torch.tensor(1),
    "tensor": lambda: torch.tensor([0, 1]),
    "mask": lambda: torch.tensor([True, False]),
    "float tensor": lambda: torch.tensor(1.5),
    "2-d tensor": lambda: torch.zeros(2, 2),
    "no tensor": lambda: torch.empty(0),
    "meta": lambda: torch.zeros(2, device="meta"),
    "0-d meta": lambda: torch.tensor(1, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "complex": lambda: torch.zeros(D, dtype=torch.complex64),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "parameter": lambda: torch.nn.Parameter(torch.zeros(D)),
    "vector": lambda: torch.zeros(D),
    "vector of numpy": lambda: np.zeros(D),
    "[]": lambda: [],
    "()": lambda: (),
    "range": lambda: range(2),
    "range(0)": lambda: range(0),
    "generator": lambda: (i for i in range(2)),
    "set": lambda: {0, 1},
    "dict": lambda: {0: 1},
    "nested list": lambda: [[0], [1]],
    "list of None": lambda: [None],
    "list with True": lambda: [0, True],
    "''": lambda: "",
    "text": lambda: "nothing",
    "bytes": lambda: b"z",
    "...": lambda: ...,
    "object": lambda: object(),
    "type": lambda: int,
    "function": lambda: lambda *x: None,
    "slice": lambda: slice(None),
    "step 0": lambda: slice(None, None, 0),
    "slice of numpy": lambda: slice(np.int64(1), np.int64(3)),
    "slice of floats": lambda: slice(0.0, 2.0),
    "slice of texts": lambda: slice("a", "b"),
    "empty slice": lambda: slice(3, 3),
    "huge slice": lambda: slice(0, 10**400),
}

_TRACE: list[gs.Trace] = []


def trace() -> gs.Trace:
    if not _TRACE:
        _TRACE.append(gs.trace(P))
    return _TRACE[0]


def run(edit: Any) -> gs.Trace:
    found = gs.trace(P, edits=[edit])
    assert torch.isfinite(found.next_logits).all()
    return found


def diff(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 1] - logits[:, 0]


CALLS: dict[str, Callable[[Any], Any]] = {
    # edits, run
    "patch site": lambda x: run(gs.patch(x, trace(), layer=1)),
    "patch source": lambda x: run(gs.patch("resid_post", x, layer=1)),
    "patch layer": lambda x: run(gs.patch("z", trace(), layer=x, pos=3)),
    "patch pos": lambda x: run(gs.patch("z", trace(), layer=1, pos=x)),
    "patch head": lambda x: run(gs.patch("z", trace(), layer=1, head=x)),
    "patch kv head": lambda x: run(gs.patch("k", trace(), layer=1, head=x)),
    "patch q_pos": lambda x: run(gs.patch("pattern", trace(), layer=1, q_pos=x)),
    "ablate value": lambda x: run(gs.ablate("z", layer=1, value=x)),
    "ablate reference": lambda x: run(gs.ablate("z", layer=1, value="mean", reference=x)),
    "ablate pos": lambda x: run(gs.ablate("z", layer=1, pos=x)),
    "add vector": lambda x: run(gs.add("resid_post", x, layer=1)),
    "add scale": lambda x: run(gs.add("resid_post", torch.ones(D), layer=1, scale=x)),
    "scale factor": lambda x: run(gs.scale("z", x, layer=1)),
    "ablate_direction vector": lambda x: run(gs.ablate_direction("resid_post", x, layer=1)),
    "knockout layer": lambda x: run(gs.knockout(layer=x, q_pos=-1, k_pos=3)),
    "knockout q_pos": lambda x: run(gs.knockout(layer=1, q_pos=x, k_pos=3)),
    "knockout k_pos": lambda x: run(gs.knockout(layer=1, q_pos=-1, k_pos=x)),
    "knockout head": lambda x: run(gs.knockout(layer=1, head=x, q_pos=-1, k_pos=3)),
    "edit fn": lambda x: run(gs.edit("z", x, layer=1)),
    "what a function returns": lambda x: run(gs.edit("resid_post", lambda _: x, layer=1, pos=-1)),
    "splice features": lambda x: run(gs.splice(gs.load_sae(), x)),
    "splice feature": lambda x: run(gs.splice(gs.load_sae(), {x: 1.0} if x.__hash__ else x)),
    "splice value": lambda x: run(gs.splice(gs.load_sae(), {3: x})),
    "splice pos": lambda x: run(gs.splice(gs.load_sae(), {3: 1.0}, pos=x)),
    "splice sae": lambda x: gs.splice(x, {3: 1.0}),
    # reading
    "trace prompt": lambda x: gs.trace(x),
    "trace model": lambda x: gs.trace(P, model=x),
    "trace edits": lambda x: gs.trace(P, edits=x),
    "t[x]": lambda x: trace()[x],
    "t[site, x]": lambda x: trace()["z", x],
    "t[x, layer]": lambda x: trace()[x, 1],
    "top k": lambda x: trace().top(x),
    "top pos": lambda x: trace().top(2, pos=x),
    "lens pos": lambda x: trace().lens(pos=x),
    "edges site": lambda x: trace().edges(x, 1),
    "edges layer": lambda x: trace().edges("scores", x),
    "edges head": lambda x: trace().edges("scores", 1, head=x),
    "edges q_pos": lambda x: trace().edges("pattern", 1, q_pos=x),
    "grad sites": lambda x: trace().grad(diff, x),
    "grad layer": lambda x: trace().grad(diff, ("z", x)),
    "grad metric": lambda x: trace().grad(x, ("z", 5)),
    "run prompt": lambda x: gs.load().run(x),
    "run tap": lambda x: gs.load().run(P, tap=x),
    "what a tap returns": lambda x: gs.load().run(P, tap=lambda site, layer, value: x if site == "final" else value),
    "layer": lambda x: gs.load().layer(x),
    "ids": lambda x: gs.load().ids(x),
    # generation
    "generate prompt": lambda x: gs.generate(x, max_new_tokens=1),
    "max_new_tokens": lambda x: gs.generate("Mary", max_new_tokens=x),
    "temperature": lambda x: gs.generate("Mary", max_new_tokens=1, temperature=x),
    "top_p": lambda x: gs.generate("Mary", max_new_tokens=1, temperature=1.0, top_p=x),
    "seed": lambda x: gs.generate("Mary", max_new_tokens=1, seed=x),
    "stop": lambda x: gs.generate("Mary", max_new_tokens=1, stop=x),
    "show": lambda x: gs.generate("Mary", max_new_tokens=1, show=x),
    "generate edits": lambda x: gs.generate("Mary", max_new_tokens=1, edits=x),
    "generate pos": lambda x: gs.generate(P, max_new_tokens=1, edits=[gs.ablate("z", layer=1, pos=x)]),
    "generate k_pos": lambda x: gs.generate(P, max_new_tokens=1, edits=[gs.knockout(layer=1, q_pos=-1, k_pos=x)]),
}  # fmt: skip


# Here int is a function, and what a user's function raises is the user's.
THEIRS = ("edit fn", "grad metric", "run tap", "show")


@pytest.mark.parametrize("call", CALLS)
def test_an_odd_argument_gives_a_right_answer_or_our_own_error(call: str) -> None:
    bare: dict[str, str] = {}
    for name, make in ODD.items():
        if name == "type" and call in THEIRS:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", GemmascopeWarning)
            warnings.filterwarnings(
                "ignore", message=".*(nested tensors|quantiz|Sparse CSR).*"
            )  # torch's, of the odd values
            odd = make()
            try:
                CALLS[call](odd)
            except gs.GemmascopeError:
                continue
            except Exception as error:
                bare[name] = f"{type(error).__name__}: {str(error)[:120]}"
    assert not bare
