"""Variants: a run that joins a pass at its first difference equals the run of gs.trace with the same edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import error
from torch import Tensor

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.edits.places import find_positions
from gemmascope.model import prefix_attention
from gemmascope.model.gemma2 import Layer
from gemmascope.model.maths import visible
from gemmascope.model.model import Model
from gemmascope.sites import LAYER_SITES, SCALE_SITES, SITES
from gemmascope.sweeps import variants as variants_module
from gemmascope.sweeps.variants import BaseRun, Variant, final_residuals

CLOSE = 1e-5
N_POS = 9
Bases = Sequence[tuple[list[int], Sequence[Edit], int]]


@cache
def model(kinds: str = "lgl", kv: int = 4) -> Model:
    return model_of(checkpoint(kinds, num_key_value_heads=kv))


def run(m: Model, bases: Bases, variants: Sequence[tuple[int, Sequence[Edit]]]) -> tuple[Tensor, Tensor]:
    """final_residuals of these bases (ids, edits, position to read) and variants (number of the base, edits)."""
    ids = [m.ids(prompt) for prompt, _, _ in bases]
    bound = [BaseRun(i, tuple(e.bind(m, i) for e in edits), (pos,)) for i, (_, edits, pos) in zip(ids, bases, strict=True)]
    bound_variants = [Variant(base, tuple(e.bind(m, ids[base]) for e in edits)) for base, edits in variants]
    residuals = final_residuals(m, bound, bound_variants)
    return torch.cat(list(residuals.bases)), residuals.rows


def alone(m: Model, bases: Bases, variant: tuple[int, Sequence[Edit]]) -> Tensor:
    """The same row, from a trace of its own."""
    base, edits = variant
    ids, base_edits, pos = bases[base]
    return gs.trace(ids, model=m, edits=[*base_edits, *edits]).stream[-1][pos]


def assert_alone(m: Model, bases: Bases, variants: Sequence[tuple[int, Sequence[Edit]]]) -> None:
    of_bases, of_variants = run(m, bases, variants)
    one = torch.ones(1)  # the scale of a stream of which edits left next to nothing
    runs = [*((of_bases[i], (i, ())) for i in range(len(bases))), *zip(of_variants, variants, strict=True)]
    for row, variant in runs:
        assert error(torch.cat((row, one)), torch.cat((alone(m, bases, variant), one))) <= CLOSE, variant


# -- any edits, anywhere --


def minus_mean(value: Tensor) -> Tensor:
    """A function that mixes all places of its argument, so each must be present."""
    return value - value.mean(tuple(range(value.dim() - 1)), keepdim=True) + 0.1


def above_zero(value: Tensor) -> Tensor:
    """The same for the scale of a norm, which divides by it."""
    return minus_mean(value).abs() + 0.1


FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (torch.tanh, minus_mean, lambda value: value.flip(0))


@st.composite
def an_edit(draw: Any, m: Model, n_pos: int, functions: bool = True) -> Edit:
    """An edit with an effect: edges that the mask hides would be refused."""
    edit: Edit = draw(any_edit(m, n_pos, functions))
    if SITES[edit.site].is_edges:
        axes = (find_positions(edit.q_pos, m, torch.arange(n_pos)), find_positions(edit.k_pos, m, torch.arange(n_pos)))
        assert edit.layer is not None
        assume(bool(visible(*map(torch.tensor, axes), m.config.window_of(edit.layer)).any()))
    return edit


@st.composite
def any_edit(draw: Any, m: Model, n_pos: int, functions: bool = True) -> Edit:
    site = SITES[draw(st.sampled_from(("embed", *LAYER_SITES)))]
    some = lambda n: st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True)  # noqa: E731
    places: dict[str, Any] = {"layer": draw(st.integers(0, m.n_layers - 1)) if site.in_layer else None}
    if site.heads:
        places["head"] = draw(st.none() | some(m.config.size_of(site.heads, n_pos)))
    for axis in ("q_pos", "k_pos") if site.is_edges else ("pos",):
        places[axis] = draw(st.none() | some(n_pos) | st.just(slice(n_pos // 2, None)) | st.just(-1))
    if site.name in SCALE_SITES:
        return gs.scale(site.name, draw(st.sampled_from([0.5, 2.0])), **places)
    size = m.config.size_of(site.axes[-1], n_pos)
    kinds = ["add", "scale", "ablate", "knockout"] + (["edit"] if functions else []) + ([] if site.is_edges else ["patch"])
    kind = draw(st.sampled_from(kinds))
    if kind == "knockout" and n_pos > 1:
        q_pos = draw(st.integers(1, n_pos - 1))
        k_pos = draw(st.lists(st.integers(0, q_pos - 1), min_size=1, unique=True))
        return gs.knockout(layer=places["layer"] or 0, head=draw(st.none() | some(8)), q_pos=q_pos, k_pos=k_pos)
    if kind == "edit":
        return gs.edit(site.name, draw(st.sampled_from(FUNCTIONS)), **places)
    if kind == "patch":
        vector = torch.randn(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
        return gs.patch(site.name, vector, **places)
    if kind == "add" and not site.is_edges:
        vector = torch.randn(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
        return gs.add(site.name, vector, **places, scale=0.5)
    if kind == "ablate":
        return gs.ablate(site.name, **places, value=draw(st.sampled_from([0.0, 0.25])))
    return gs.scale(site.name, 0.5, **places)


@pytest.mark.filterwarnings("ignore::gemmascope.GemmascopeWarning")  # of edits that are overwritten, or partly hidden
@settings(deadline=None, max_examples=120, derandomize=True)
@given(kinds=st.sampled_from(["lgl", "gl", "l", "g"]), kv=st.sampled_from([8, 4, 2]), data=st.data())
def test_variants_of_several_bases_are_runs_of_their_own(kinds: str, kv: int, data: Any) -> None:
    m = model(kinds, kv)
    bases = []
    for seed in range(data.draw(st.integers(1, 2))):
        n_pos = data.draw(st.integers(1, N_POS))
        edits = data.draw(st.lists(an_edit(m, n_pos), max_size=2))
        bases.append((prompt(n_pos, seed=seed), edits, data.draw(st.integers(0, n_pos - 1) | st.just(n_pos - 1))))
    numbers = data.draw(st.lists(st.integers(0, len(bases) - 1), min_size=1, max_size=5))
    variants = [(i, data.draw(st.lists(an_edit(m, len(bases[i][0])), min_size=1, max_size=3))) for i in numbers]
    assert_alone(m, bases, variants)


# -- each site, each place --


def edits_at(site: str, layer: int | None, pos: int) -> list[Edit]:
    """Edits of a site at one position, or from it on."""
    info = SITES[site]
    if info.is_edges:
        return [
            gs.scale(site, 0.5, layer=layer, q_pos=pos),
            gs.ablate(site, layer=layer, head=3, q_pos=pos, k_pos=max(0, pos - 1)),
            gs.edit(site, minus_mean, layer=layer, head=[1, 2], q_pos=slice(pos, None)),
        ]
    head = {"head": 1} if info.heads else {}
    mixed = above_zero if site in SCALE_SITES else minus_mean
    return [
        gs.ablate(site, layer=layer, pos=pos, **head, value=0.25),
        gs.scale(site, 2.0, layer=layer, pos=slice(pos, None)),
        gs.edit(site, mixed, layer=layer, pos=slice(pos, None, 2), **head),
    ]


@pytest.mark.parametrize("pos_read", [N_POS - 1, 5])
@pytest.mark.parametrize("site", ["embed", *LAYER_SITES])
def test_a_variant_at_any_place_equals_a_run_with_its_edit(site: str, pos_read: int) -> None:
    """First and last layer, first and last position, behind the window of 4 and within it, all in one pass."""
    layers = range(3) if SITES[site].in_layer else [None]
    variants = [
        (0, [edit]) for layer in layers for pos in (0, 3, pos_read, N_POS - 1) for edit in edits_at(site, layer, pos)
    ]
    assert_alone(model(), [(prompt(N_POS), (), pos_read)], variants)


def test_edits_at_several_layers_join_at_the_first() -> None:
    edits: list[Edit] = [
        gs.ablate("z", layer=1, pos=4, head=2),
        gs.scale("resid_post", 0.5, layer=0, pos=6),
        gs.ablate("mlp_act", layer=2, pos=[2, 7]),
        gs.knockout(layer=1, head=3, q_pos=-1, k_pos=5),
    ]
    bases = [(prompt(N_POS), (), N_POS - 1), (prompt(7, seed=1), [gs.scale("v", 2.0, layer=1, pos=3)], 5)]
    variants = [(base, edits[:n]) for base in (0, 1) for n in (1, 2, 4) if base == 0 or n < 3]
    assert_alone(model(), bases, variants)


def test_variants_of_a_base_with_a_weight_on_a_later_key_equal_single_runs() -> None:
    """A weight on a key ahead of its query: what a variant changes on the right then reaches rows on the left."""
    ahead = gs.ablate("pattern", layer=1, head=2, q_pos=3, k_pos=7, value=0.5)
    variants: list[tuple[int, list[Edit]]] = [
        (0, [gs.ablate("resid_post", layer=0, pos=7)]),
        (0, [gs.ablate("z", layer=1, pos=3, head=1)]),
        (0, [gs.ablate("attn_out", layer=1, pos=[2, 3])]),
        (0, [gs.ablate("v", layer=1, pos=7)]),
    ]
    assert_alone(model("lgg"), [(prompt(N_POS), [ahead], 5)], variants)


# -- the pass --


def some_variants() -> list[tuple[int, list[Edit]]]:
    layers = [(site, layer) for site in ("resid_pre", "mlp_out") for layer in range(3)]
    return [
        (base, [gs.ablate(site, layer=layer, pos=pos)])
        for base in (0, 1) for site, layer in [("embed", None), *layers] for pos in (0, 4, 6)
    ]  # fmt: skip


BASES: Bases = [(prompt(N_POS), (), N_POS - 1), (prompt(7, seed=1), (), 6)]


def test_the_base_runs_are_untouched_by_their_variants() -> None:
    with_variants, _ = run(model(), BASES, some_variants())
    without, nothing = run(model(), BASES, [])
    assert torch.equal(with_variants, without)
    assert nothing.shape == (0, 32)


def test_an_edit_after_the_position_that_is_read_changes_nothing() -> None:
    _, of_variants = run(model(), [(prompt(N_POS), (), 4)], [(0, [gs.ablate("resid_pre", layer=0, pos=5)])])
    assert torch.equal(of_variants[0], run(model(), [(prompt(N_POS), (), 4)], [])[0][0])


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_results_do_not_depend_on_which_rows_share_a_microbatch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, together = run(model(), BASES, some_variants())
    monkeypatch.setattr(variants_module, "microbatch_rows", lambda _: rows)
    _, apart = run(model(), BASES, some_variants())
    assert error(apart, together) <= CLOSE


@pytest.mark.parametrize("spare", [0, 40, 2**20])
def test_blocks_of_unlike_lengths_share_a_product_or_not(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No block is padded, some are, or all: every run is still its own, also where only the last rows are queries."""
    monkeypatch.setattr(prefix_attention, "PADDING_ELEMENTS", 8 * spare)
    shapes: list[tuple[int, int]] = []
    read_padded = prefix_attention.PrefixAttention._read_padded

    def counting(self: Any, q: Tensor, k: Tensor, v: Tensor, group: Any, *rest: Any) -> None:
        shapes.append((len(group.queries), len(group.into)))
        read_padded(self, q, k, v, group, *rest)

    monkeypatch.setattr(prefix_attention.PrefixAttention, "_read_padded", counting)
    assert_alone(model(), BASES, some_variants())
    assert shapes
    assert any(n_padded > n_real for n_padded, n_real in shapes) == (spare > 0)


def test_writes_of_many_runs_in_one_copy_are_those_of_each_alone() -> None:
    """Constants and vectors, with and without heads, at rows that some runs lack."""
    vector = torch.randn(model().config.d_head, generator=torch.Generator().manual_seed(3))
    heads: dict[str, list[int] | None] = {"z": [1, 4], "k_rot": [0], "mlp_out": None, "resid_pre": None}
    variants = [
        (base, [gs.ablate(site, layer=1, pos=pos, head=head, value=0.25), gs.ablate("resid_post", layer=0, pos=start)])
        for base in (0, 1) for site, head in heads.items() for pos, start in ((3, 1), ([5, 2], 4), (slice(2, 6), 3))
    ]  # fmt: skip
    variants += [(0, [gs.patch("z", vector, layer=1, pos=pos, head=2)]) for pos in (1, 6)]
    assert_alone(model(), BASES, variants)


def test_each_layer_is_read_once_a_pass(layers_read: list[int]) -> None:
    run(model(), BASES, some_variants())
    assert layers_read == [0, 1, 2]


def test_a_variant_costs_the_rows_that_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below its first layer and left of its first position it is its base."""
    rows = [0, 0, 0]
    forward = Layer.forward

    def counting(layer: Layer, x: Tensor, *args: Any) -> Tensor:
        rows[layer.index] += len(x)
        return forward(layer, x, *args)

    monkeypatch.setattr(Layer, "forward", counting)
    base = [(prompt(N_POS), (), N_POS - 1)]
    run(model(), base, [(0, [gs.ablate("resid_pre", layer=1, pos=5)])])
    assert rows == [9, 9 + 4, 9 + 4]
    rows[:] = [0, 0, 0]
    run(model(), base, [(0, [gs.ablate("resid_post", layer=1, pos=5)])])
    assert rows == [9, 9 + 1, 9 + 4]
