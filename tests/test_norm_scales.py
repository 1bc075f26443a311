"""The scales of the norms are sites: a run can keep those of another, and a norm whose scale stays is linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model, model_of, prompt
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import EditError
from gemmascope.sites import SCALE_SITES

IDS, OTHER = prompt(9), prompt(9, seed=1)
NORMS = {
    "attn_in_scale": "input_layernorm", "attn_out_scale": "post_attention_layernorm",
    "mlp_in_scale": "pre_feedforward_layernorm", "mlp_out_scale": "post_feedforward_layernorm",
}  # fmt: skip
# What each norm reads and what it gives.
AROUND = {
    "attn_in_scale": ("resid_pre", "attn_in"), "attn_out_scale": ("attn_raw", "attn_out"),
    "mlp_in_scale": ("resid_mid", "mlp_in"), "mlp_out_scale": ("mlp_raw", "mlp_out"),
}  # fmt: skip
CLOSE = 1e-5


def addresses(n_layers: int = 3) -> list[tuple[str, int | None]]:
    inside: list[tuple[str, int | None]] = [(site, layer) for layer in range(n_layers) for site in NORMS]
    return [*inside, ("final_scale", None)]


def test_a_run_that_keeps_its_own_scales_keeps_every_bit() -> None:
    t = gs.trace(IDS, model=model())
    own = [gs.patch(site, t[site, layer], layer=layer) for site, layer in addresses()]
    again = gs.trace(IDS, model=model(), edits=own)
    assert all(torch.equal(a, b) for a, b in zip(t.stream, again.stream, strict=True))
    assert torch.equal(t.logits, again.logits)


@pytest.mark.parametrize("site", [*NORMS, "final_scale"])
def test_a_run_with_the_scales_of_another_is_transformers_with_such_norms(site: str) -> None:
    source = checkpoint("lgl")
    other = gs.trace(OTHER, model=model())
    places = [(name, layer) for name, layer in addresses() if name == site]
    ours = gs.trace(IDS, model=model(), edits=[gs.patch(name, other, layer=layer) for name, layer in places])
    for name, layer in places:
        norm = source.model.norm if layer is None else getattr(source.model.layers[layer], NORMS[name])
        norm.forward = by(norm, other[name, layer])  # type: ignore[method-assign]
    oracle = source(torch.tensor([IDS])).logits[0].detach()
    assert error(ours.logits, oracle) <= CLOSE
    assert error(gs.trace(IDS, model=model()).logits, oracle) > 1e-3


def by(norm: Any, scale: Tensor) -> Callable[[Tensor], Tensor]:
    """A norm that divides by these numbers whatever it reads."""
    return lambda x: x / scale[:, None] * (1 + norm.weight)


@pytest.mark.parametrize("site", NORMS)
def test_a_norm_whose_scale_stays_is_linear(site: str) -> None:
    """Superposition: what two vectors added before the norm change after it is the sum of what each changes."""
    enters, leaves = AROUND[site]
    t, draw = gs.trace(IDS, model=model()), torch.Generator().manual_seed(0)
    a, b = torch.randn(2, len(IDS), 32, generator=draw)

    def after(vector: Tensor, *, keep_scale: bool = True) -> Tensor:
        freeze = [gs.patch(site, t, layer=1)] if keep_scale else []
        edited = gs.trace(IDS, model=model(), edits=[gs.add(enters, vector, layer=1), *freeze])
        return edited[leaves, 1] - t[leaves, 1]

    assert error(after(a) + after(b), after(a + b)) <= CLOSE
    assert error(after(3 * a), 3 * after(a)) <= CLOSE
    assert error(after(a, keep_scale=False) + after(b, keep_scale=False), after(a + b, keep_scale=False)) > 1e-2


def test_a_scale_that_is_doubled_halves_what_the_norm_gives() -> None:
    for site, (_, leaves) in AROUND.items():
        t = gs.trace(IDS, model=model(), edits=[gs.scale(site, 2.0, layer=1, pos=[2, 5])])
        plain = gs.trace(IDS, model=model())
        assert error(t[leaves, 1][[2, 5]], plain[leaves, 1][[2, 5]] / 2) <= CLOSE
        assert torch.equal(t[leaves, 1][[0, 1]], plain[leaves, 1][[0, 1]])


def test_heads_and_parts_add_up_through_a_written_scale() -> None:
    edits = [gs.scale("attn_out_scale", 0.5, layer=1), gs.scale("mlp_out_scale", 3.0, layer=2, pos=-1)]
    t = gs.trace(IDS, model=model(), edits=edits)
    assert error(t["head_out", 1].sum(1), t["attn_out", 1]) <= CLOSE
    for by_part in ("sublayer", "head", "neuron", "token"):
        parts = gs.direct_logits(t, 5, against=7, by=by_part)
        total = float(parts.parts.sum()) + float(parts.rest.sum())
        assert abs(total - float(parts.total)) <= 1e-4 * abs(float(parts.total)), by_part
        assert not [name for name in parts.rest.part.values if str(name).startswith("edit")], by_part
    lens = gs.lens(t, site="head_out", head=3, top=1)
    assert lens is not None


def test_a_gradient_reaches_a_scale() -> None:
    """The derivative of a metric by a scale is that of small steps."""
    metric, t = gs.logit_diff(5, 7), gs.trace(IDS, model=model())
    for site in NORMS:
        grad = t.grad(metric, (site, 1))
        assert isinstance(grad, Tensor)
        assert grad.shape == (len(IDS),)
        pos = int(grad.abs().argmax())
        step = 1e-3 * float(t[site, 1][pos])
        moved = [
            gs.trace(IDS, model=model(), edits=[gs.patch(site, t[site, 1][pos] + s, layer=1, pos=pos)]).next_logits
            for s in (step, -step)
        ]
        slope = float((moved[0][5] - moved[0][7]) - (moved[1][5] - moved[1][7])) / (2 * step)
        assert abs(slope - float(grad[pos])) <= 0.02 * abs(float(grad[pos])), site


@pytest.mark.parametrize("site", SCALE_SITES)
def test_a_scale_is_float32_in_a_model_of_bfloat16(site: str) -> None:
    half = model_of(checkpoint("lgl").to(torch.bfloat16))
    t, layer = gs.trace(IDS, model=half), None if site == "final_scale" else 1
    assert t[site, layer].dtype == torch.float32
    again = gs.trace(IDS, model=half, edits=[gs.patch(site, t[site, layer], layer=layer)])
    assert torch.equal(again.logits, t.logits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: gs.ablate("mlp_in_scale", layer=1), "a norm divides by them, and one is 0 or below"),
        (lambda: gs.patch("attn_in_scale", -torch.ones(9), layer=1), "a norm divides by them, and one is 0 or below"),
        (lambda: gs.scale("mlp_out_scale", 0.0, layer=1), "made 0.0 of what stood at 'layers.1.mlp_out_scale'"),
        (lambda: gs.add("final_scale", torch.tensor(-1e6)), "of what stood at 'final_scale'"),
        (lambda: gs.patch("attn_in_scale", torch.ones(9, 32), layer=1), r"takes \(9,\) \(pos\)"),
    ],
)
def test_a_norm_cannot_divide_by_nothing(edit: Callable[[], Any], message: str) -> None:
    with pytest.raises(EditError, match=message):  # after the layers, once the logits are read
        assert gs.trace(IDS, model=model(), edits=[edit()]).logits is None


def test_a_sweep_goes_over_scales() -> None:
    s = gs.sweep(IDS, OTHER, gs.logit_diff(5, 7), site="mlp_in_scale", by=("layer", "pos"), model=model(), progress=False)
    clean = gs.trace(IDS, model=model())
    one = gs.trace(OTHER, model=model(), edits=[gs.patch("mlp_in_scale", clean, layer=1, pos=8)]).next_logits
    base = gs.trace(OTHER, model=model()).next_logits
    change = float((one[5] - one[7]) - (base[5] - base[7]))
    assert abs(change) > 1e-3
    assert abs(float(s.effect.sel(layer=1, pos=8)) - change) <= 1e-4
