"""Odd arguments that users may type by mistake give a package error or a right answer, never a bare Python error.

A table of odd values (tests/odd.py), and one of calls: each takes an odd value in the place of one argument. Add calls to
CALLS. Those of the analyses, the views and the labs stand in test_odd_analyses.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd import D, bare_errors, some_of

import gemmascope as gs

P = "When Mary and John went to the store, John gave a drink to"

_TRACE: list[gs.Trace] = []


def trace() -> gs.Trace:
    if not _TRACE:
        _TRACE.append(gs.trace(P))
    return _TRACE[0]


def run(edit: Any) -> gs.Trace:
    trace = gs.trace(P, edits=[edit])
    assert torch.isfinite(trace.next_logits).all()
    return trace


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
    assert not bare_errors(CALLS[call], [name for name in some_of(call, 24) if name != "type" or call not in THEIRS])
