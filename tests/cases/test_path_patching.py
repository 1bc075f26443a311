"""gs.path_sweep against transformers with hooks: two runs a cell, as in Wang et al. (arXiv 2211.00593)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from torch import Tensor, nn

import gemmascope as gs
from gemmascope.errors import SweepError

CLEAN, CORRUPT = prompt(9, seed=1), prompt(9, seed=2)
SHAPES: dict[str, dict[str, Any]] = {
    "two heads a kv head": {},
    "every head its own keys": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "one kv head": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8},
}
KINDS = "lglg"
CLOSE = 1e-5


@cache
def source(shape: str) -> Any:
    return checkpoint(KINDS, seed=3, **SHAPES[shape])


@contextmanager
def hooked(hf: Any, hooks: dict[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Hooks by module name: on the input (z) of o_proj, on the output of the others."""
    handles = []
    for name, change in hooks.items():
        module: nn.Module = hf.get_submodule(name)
        if name.endswith("o_proj"):
            handles.append(module.register_forward_pre_hook(lambda _, args, change=change: change(args[0].clone())))
        else:
            handles.append(module.register_forward_hook(lambda _, args, out, change=change: change(out.clone())))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@cache
@torch.no_grad()
def values_of(hf: Any, ids: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """The value at every hooked module in a plain run, and the last position's logits."""
    values: dict[str, Tensor] = {}
    names = [f"model.layers.{i}.{part}" for i in range(len(KINDS)) for part in PARTS]
    with hooked(hf, {name: lambda x, name=name: values.__setitem__(name, x) for name in names}):  # type: ignore[misc]
        return values, hf(torch.tensor([list(ids)])).logits[0, -1]


PARTS = ("self_attn.o_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "post_feedforward_layernorm",
         "post_attention_layernorm")  # fmt: skip


@torch.no_grad()
def by_hooks(hf: Any, sender: tuple[str, int, list[int] | None, int | None], receivers: Any, mlps: str) -> Tensor:
    """The last position's logits of the base run with the path patched."""
    site, at, heads, pos = sender
    base, _ = values_of(hf, tuple(CORRUPT))
    clean_values, _ = values_of(hf, tuple(CLEAN))
    d_head = hf.config.head_dim
    rows = slice(None) if pos is None else slice(pos, pos + 1)
    columns = [head * d_head + i for head in heads for i in range(d_head)] if heads else slice(None)

    def frozen(name: str, *, sends: bool) -> Callable[[Tensor], Tensor]:
        value = base[name].clone()
        if sends:
            sent = clean_values[name][0, rows]
            value[0, rows, columns] = sent[:, columns]
        return lambda _: value

    # The first run: all heads but the sender keep their z; what the receiver reads is recorded.
    hooks = {}
    for layer in range(len(KINDS)):
        z, mlp = f"model.layers.{layer}.self_attn.o_proj", f"model.layers.{layer}.post_feedforward_layernorm"
        hooks[z] = frozen(z, sends=layer == at and site == "z")
        if site == "attn_out" and layer == at:
            hooks[f"model.layers.{layer}.post_attention_layernorm"] = frozen(
                f"model.layers.{layer}.post_attention_layernorm", sends=True
            )
        if mlps == "frozen" or (site == "mlp_out" and layer == at):
            hooks[mlp] = frozen(mlp, sends=site == "mlp_out" and layer == at)
    read: dict[str, Tensor] = {}
    for kind, layer, _ in receivers or ():
        name = f"model.layers.{layer}.self_attn.{kind}_proj"
        hooks[name] = lambda x, name=name: read.__setitem__(name, x)  # type: ignore[misc]
    with hooked(hf, hooks):
        logits: Tensor = hf(torch.tensor([CORRUPT])).logits[0, -1]
    if receivers is None:
        return logits

    # The second run: the receivers after the sender get what they read in the first.
    def arriving(name: str, only: list[int] | None) -> Callable[[Tensor], Tensor]:
        mine = slice(None) if only is None else [head * d_head + i for head in only for i in range(d_head)]

        def write(x: Tensor) -> Tensor:
            x[:, :, mine] = read[name][:, :, mine]
            return x

        return write

    late = [(kind, layer, only) for kind, layer, only in receivers if layer > at]
    with hooked(hf, {f"model.layers.{i}.self_attn.{kind}_proj": arriving(f"model.layers.{i}.self_attn.{kind}_proj", only)
                     for kind, i, only in late}):  # fmt: skip
        logits = hf(torch.tensor([CORRUPT])).logits[0, -1]
    return logits


RECEIVERS: list[Any] = [None, [("q", 3, [0, 3])], [("k", 2, [0])], [("v", 3, None)], [("q", 2, [1]), ("v", 3, [0])]]


@pytest.mark.parametrize("mlps", ["live", "frozen"])
@pytest.mark.parametrize("receivers", RECEIVERS, ids=str)
@pytest.mark.parametrize("sender", ["z", "attn_out", "mlp_out"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_path_is_what_transformers_gives_with_hooks(shape: str, sender: str, receivers: Any, mlps: str) -> None:
    hf = source(shape)
    receivers = None if receivers is None else [r for r in receivers if r[2] is None or max(r[2]) < heads_of(hf, r[0])]
    by = ("layer", "head") if sender == "z" else ("layer", "pos")
    token = 7

    def logit(logits: Tensor) -> Tensor:
        return logits[:, token]

    arguments: dict[str, Any] = {"sender": sender, "receiver": receivers or "final", "by": by, "mlps": mlps}
    result = gs.path_sweep(CLEAN, CORRUPT, logit, **arguments, model=model_of(hf), progress=False)
    n_late = len(KINDS) if receivers is None else max(layer for _, layer, _ in receivers)
    moved = 0.0
    for layer in range(n_late):
        for place in [(0, hf.config.num_attention_heads - 1)[layer % 2]] if sender == "z" else [(2, 8)[layer % 2]]:
            sent = (sender, layer, [place], None) if sender == "z" else (sender, layer, None, place)
            expected = by_hooks(hf, sent, receivers, mlps)
            scale = float(expected.abs().max())
            assert abs(result.values[0, layer, place] - float(expected[token])) <= CLOSE * scale, (layer, place)
            moved = max(moved, abs(float(result.effect[layer, place])))
    assert moved > 1e-3, "nothing moved: the test would hold for anything"
    assert np.isnan(result.values[0, n_late:]).all()


def heads_of(hf: Any, site: str) -> int:
    return int(hf.config.num_attention_heads if site == "q" else hf.config.num_key_value_heads)


def ask(**arguments: Any) -> Any:
    return gs.path_sweep(
        CLEAN, CORRUPT, gs.logit_diff(5, 9), model=model_of(source("one kv head")), progress=False, **arguments
    )


def test_live_mlps_are_the_default_and_give_other_numbers() -> None:
    live, frozen = ask(mlps="live"), ask(mlps="frozen")
    assert np.array_equal(ask().values, live.values, equal_nan=True)
    assert float(abs(live.effect - frozen.effect).max()) > 1e-2


def test_live_and_frozen_mlps_differ_in_the_code_and_the_digest() -> None:
    live, frozen = ask().question, ask(mlps="frozen").question
    assert "mlps='live'" in live.code
    assert "mlps='frozen'" in frozen.code
    assert live.digest != frozen.digest


def test_cells_of_several_layers_equal_single_runs_however_many_share_a_pass() -> None:
    """A cell may send from all layers; which cells share a pass does not change the numbers."""
    from gemmascope.sweeps.paths.live import LivePaths

    result = ask(by=("head",), receiver=("v", 3))
    hf = source("one kv head")
    model = model_of(hf)
    assert result.finished.all()
    # By edits: every later head is frozen, the senders of layers 0 to 2 have their source's z.
    clean, base = gs.trace(CLEAN, model=model), gs.trace(CORRUPT, model=model)
    for head in range(4):
        frozen = [gs.patch("z", base, layer=layer) for layer in range(3)]
        sent = [gs.patch("z", clean, layer=layer, head=head) for layer in range(3)]
        first = gs.trace(CORRUPT, model=model, edits=[*frozen, *sent])
        second = gs.trace(CORRUPT, model=model, edits=[gs.patch("v", first["v", 3], layer=3)]).next_logits
        assert result.values[0, head] == pytest.approx(float(second[5] - second[9]), abs=3e-4)
    n_groups: list[int] = []
    run_layers = LivePaths._run_layers
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gemmascope.sweeps.paths.path_sweep.rows_within", lambda memory, model: 20)
        patched.setattr(LivePaths, "_run_layers", lambda self, runs: (n_groups.append(len(runs)), run_layers(self, runs))[1])
        few = ask(receiver=("v", 3))
    assert max(n_groups) == 2
    assert np.allclose(few.values, ask(receiver=("v", 3)).values, equal_nan=True, atol=1e-4)


@pytest.mark.parametrize("mlps", ["melted", None, True, 1])
def test_an_unknown_value_of_mlps_is_refused(mlps: Any) -> None:
    with pytest.raises(SweepError, match=r"mlps is one of 'live', 'frozen'; given"):
        ask(mlps=mlps)
