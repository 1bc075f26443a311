"""Edits as data: an edit prints as its call, equals another that does the same, and is checked when it is created."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import error

import gemmascope as gs
from gemmascope.edits.call_text import source_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Custom
from gemmascope.errors import EditError, GemmascopeError, SiteError, TapError
from gemmascope.run.trace import Trace

CLOSE = 1e-5
N_POS = 9


@cache
def run_of(seed: int) -> Trace:
    return gs.trace(prompt(N_POS, seed=seed), model=model())


def read(text: str) -> Any:
    """The value of the text as Python, with the names of a notebook."""
    return eval(text, {"gs": gs, "torch": torch, "model": model(), "tanh": torch.tanh})


# -- printing --

SAID: list[tuple[Callable[[], Edit], str]] = [
    (lambda: gs.patch("resid_pre", torch.tensor([1.0, 2.5]), layer=3),
     "gs.patch('resid_pre', torch.tensor([1.0, 2.5]), layer=3)"),
    (lambda: gs.patch("z", torch.tensor(1), layer=1, pos=" Mary", head=[0, 2]),
     "gs.patch('z', torch.tensor(1), layer=1, pos=' Mary', head=[0, 2])"),
    (lambda: gs.patch("q", torch.ones(1, dtype=torch.bfloat16), layer=1),
     "gs.patch('q', torch.tensor([1.0], dtype=torch.bfloat16), layer=1)"),
    (lambda: gs.patch("embed", torch.ones(32), pos=0), "gs.patch('embed', <tensor [32]>, pos=0)"),
    (lambda: gs.patch("z", gs.trace([3, 4], model=model()), layer=-1),
     "gs.patch('z', gs.trace([3, 4], model=model), layer=-1)"),
    (lambda: gs.patch("z", gs.trace([3], model=model(), edits=[gs.scale("v", 2, layer=0)]), layer=1),
     "gs.patch('z', gs.trace([3], model=model, edits=[gs.scale('v', 2.0, layer=0)]), layer=1)"),
    (lambda: gs.ablate("z", layer=1, pos=slice(1, None, 2)), "gs.ablate('z', layer=1, pos=slice(1, None, 2))"),
    (lambda: gs.ablate("pattern", layer=1, head=2, q_pos=-1, k_pos=[0, 3], value=0.5),
     "gs.ablate('pattern', layer=1, head=2, q_pos=-1, k_pos=[0, 3], value=0.5)"),
    (lambda: gs.ablate("z", layer=1, value="mean", reference=[gs.trace([3, 4], model=model())]),
     "gs.ablate('z', layer=1, value='mean', reference=[gs.trace([3, 4], model=model)])"),
    (lambda: gs.ablate("z", layer=1, value="mean", reference=[run_of(0)] * 40),
     "gs.ablate('z', layer=1, value='mean', reference=<40 traces>)"),
    (lambda: gs.add("mlp_out", torch.tensor([0.5]), layer=2, pos=4),
     "gs.add('mlp_out', torch.tensor([0.5]), layer=2, pos=4)"),
    (lambda: gs.add("z", torch.tensor([0.5]), layer=2, scale=-3), "gs.add('z', torch.tensor([0.5]), layer=2, scale=-3.0)"),
    (lambda: gs.scale("logits_raw", 2), "gs.scale('logits_raw', 2.0)"),
    (lambda: gs.knockout(layer=1, head=0, q_pos=-1, k_pos=" John"), "gs.knockout(layer=1, head=0, q_pos=-1, k_pos=' John')"),
    (lambda: gs.edit("mlp_act", torch.tanh, layer=1, pos=range(2, 4)), "gs.edit('mlp_act', tanh, layer=1, pos=[2, 3])"),
    (lambda: gs.scale("z", 1.5, layer=np.int64(2), pos=torch.tensor([1, 2]), head=np.array([0])),  # type: ignore[arg-type]
     "gs.scale('z', 1.5, layer=2, pos=[1, 2], head=[0])"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "text"), SAID, ids=[text[:60] for _, text in SAID])
def test_an_edit_prints_as_the_call_that_makes_it(make: Callable[[], Edit], text: str) -> None:
    edit = make()
    assert repr(edit) == text
    if "<" not in text:
        assert read(text) == edit
        assert hash(read(text)) == hash(edit)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    layer=st.integers(-3, 2), number=st.floats(allow_nan=False, width=32), data=st.data(),
    pos=st.none() | st.integers(-9, 8) | st.lists(st.integers(0, 8)) | st.text(max_size=3) | st.slices(9),
    head=st.none() | st.integers(-8, 7) | st.lists(st.integers(0, 7)),
)  # fmt: skip
def test_evaluating_the_repr_of_an_edit_gives_an_equal_one(
    layer: int, number: float, data: Any, pos: Any, head: Any
) -> None:
    places = {"layer": layer, "pos": pos, "head": head}
    edges = {"layer": layer, "q_pos": pos, "k_pos": head, "head": head}
    tensor = torch.tensor(data.draw(st.lists(st.floats(-1e6, 1e6, width=32), max_size=16)))
    edits = [
        gs.patch("z", tensor, **places), gs.patch("z", run_of(1), **places), gs.ablate("z", **places, value=number),
        gs.ablate("z", **places, value="mean", reference=[run_of(1), run_of(2)]),
        gs.add("z", tensor, **places, scale=number),
        gs.scale("z", number, **places), gs.scale("pattern", number, **edges), gs.knockout(**edges),
        gs.edit("z", torch.tanh, **places),
    ]  # fmt: skip
    for edit in edits:
        if "inf" not in repr(edit):
            assert read(repr(edit)) == edit
    assert all(one != other for one, other in itertools.combinations(edits, 2))


DIFFERENT: list[tuple[Edit, Edit]] = [
    (gs.scale("z", 2.0, layer=1), gs.scale("z", 2.0, layer=2)),
    (gs.scale("z", 2.0, layer=1), gs.scale("z", 3.0, layer=1)),
    (gs.scale("z", 2.0, layer=1), gs.scale("q", 2.0, layer=1)),
    (gs.scale("z", 2.0, layer=1, pos=[1, 2]), gs.scale("z", 2.0, layer=1, pos=[1, 3])),
    (gs.patch("z", torch.ones(12), layer=1), gs.patch("z", torch.zeros(12), layer=1)),
    (gs.patch("z", torch.ones(12), layer=1), gs.patch("z", torch.ones(1, 12), layer=1)),
    (gs.patch("z", torch.ones(12), layer=1), gs.patch("z", torch.ones(12).double(), layer=1)),
    (gs.ablate("z", layer=1), gs.scale("z", 0.0, layer=1)),
    (gs.edit("z", torch.tanh, layer=1), gs.edit("z", torch.sin, layer=1)),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_edits_that_differ_are_not_equal(one: Edit, other: Edit) -> None:
    assert one != other
    assert one == one


def test_patches_from_other_runs_are_not_equal() -> None:
    patch = gs.patch("z", run_of(1), layer=1)
    assert patch == gs.patch("z", gs.trace(prompt(N_POS, seed=1), model=model()), layer=1)
    assert patch != gs.patch("z", run_of(2), layer=1)
    edited = gs.trace(prompt(N_POS, seed=1), model=model(), edits=[gs.scale("z", 2.0, layer=0)])
    assert patch != gs.patch("z", edited, layer=1)
    assert patch != gs.patch("z", gs.trace(prompt(N_POS, seed=1), model=model(seed=1)), layer=1)
    assert patch != "patch"


# -- sources --


def test_a_source_may_omit_axes_of_one_place_and_is_broadcast_along_others() -> None:
    full = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    where: dict[str, Any] = {"layer": 1, "pos": [4, 6], "head": [0, 5, 7]}
    for source, expected in [
        (full, full),
        (full[0], full[:1].expand(2, 3, 12)),
        (full[0, 0], full[:1, :1].expand(2, 3, 12)),
        (full.double(), full),
    ]:
        t = gs.trace(prompt(N_POS), model=model(), edits=[gs.patch("z", source, **where)])
        assert error(t["z", 1][[4, 6]][:, [0, 5, 7]], expected) <= CLOSE
    head = gs.trace(prompt(N_POS), model=model(), edits=[gs.patch("z", full[:, 0], layer=1, pos=[4, 6], head=5)])
    assert error(head["z", 1][[4, 6], 5], full[:, 0]) <= CLOSE
    one = gs.trace(prompt(N_POS), model=model(), edits=[gs.patch("z", full[0], layer=1, pos=[4], head=[0, 5, 7])])
    assert error(one["z", 1][4, [0, 5, 7]], full[0]) <= CLOSE


def test_places_may_be_numbers_of_any_kind_and_count_from_the_end() -> None:
    plain = gs.trace(prompt(N_POS), model=model(), edits=[gs.ablate("z", layer=2, pos=[3, 8], head=7)]).logits
    kinds: list[dict[str, Any]] = [
        {"layer": -1, "pos": [3, -1], "head": -1},
        {"layer": np.int64(2), "pos": np.array([3, 8]), "head": torch.tensor(7)},
        {"layer": 2, "pos": (8, 3), "head": range(7, 8)},
        {"layer": 2, "pos": slice(3, None, 5), "head": [7]},
        {"layer": 2, "pos": torch.tensor([3, -1]), "head": np.int32(-1)},
    ]
    for places in kinds:
        assert torch.equal(gs.trace(prompt(N_POS), model=model(), edits=[gs.ablate("z", **places)]).logits, plain)


def test_an_amount_can_be_added_on_edges() -> None:
    added = gs.add("scores", torch.tensor(2.0), layer=1, head=3, q_pos=5, k_pos=[1, 2])
    before = gs.trace(prompt(N_POS), model=model())["scores", 1]
    change = gs.trace(prompt(N_POS), model=model(), edits=[added])["scores", 1] - before
    assert change.nonzero().tolist() == [[3, 5, 1], [3, 5, 2]]
    assert error(change[3, 5, 1:3], torch.tensor([2.0, 2.0])) <= 1e-4


def test_an_edit_can_be_used_again_and_leaves_its_arguments_unchanged() -> None:
    vector, source = torch.ones(32), run_of(1)
    before = source["resid_post", 0].clone()
    edits = [gs.add("resid_post", vector, layer=0, pos=-1, scale=2.0), gs.patch("resid_post", source, layer=0, pos=3)]
    first = gs.trace(prompt(N_POS), model=model(), edits=edits).logits
    assert torch.equal(gs.trace(prompt(N_POS), model=model(), edits=edits).logits, first)
    assert torch.equal(vector, torch.ones(32))
    assert torch.equal(source["resid_post", 0], before)


# -- bad input --

NINE = torch.randn(8, N_POS, 12, generator=torch.Generator().manual_seed(0))
BAD: list[tuple[Callable[[], Edit], type[GemmascopeError], str]] = [
    (lambda: gs.patch("z", NINE, layer=1), EditError,
     r"shape \(8, 9, 12\); 'layers.1.z' .* takes \(9, 8, 12\) \(pos, head, d_head\)"),
    (lambda: gs.patch("resid_pre", [1.0] * 32, layer=1), EditError, "a source is a trace or a tensor; given list"),  # type: ignore[arg-type]
    (lambda: gs.add("resid_pre", [1.0] * 32, layer=1), EditError, "the vector is a tensor; given list"),  # type: ignore[arg-type]
    (lambda: gs.add("resid_pre", torch.ones(32), layer=1, scale=float("nan")), EditError, "holds NaN or infinity"),
    (lambda: gs.add("resid_pre", torch.ones(32), layer=1, scale="2x"), EditError, "scale is a number; given '2x'"),  # type: ignore[arg-type]
    (lambda: gs.scale("resid_pre", float("inf"), layer=1), EditError, "factor is a finite number; given inf"),
    (lambda: gs.scale("resid_pre", "twice", layer=1), EditError, "factor is a number; given 'twice'"),  # type: ignore[arg-type]
    (lambda: gs.ablate("resid_pre", layer=1, value=float("nan")), EditError, "holds NaN or infinity"),
    (lambda: gs.ablate("resid_pre", layer=1, value=None), EditError, "value is a number; given None"),  # type: ignore[arg-type]
    (lambda: gs.ablate("z", layer=1, value=1.0, reference=[run_of(1)]), EditError, "a reference is only for value='mean'"),
    (lambda: gs.ablate("z", layer=1, value="mean", reference=run_of(1)), EditError, r"given one: write reference=\[trace\]"),  # type: ignore[arg-type]
    (lambda: gs.ablate("z", layer=1, value="mean", reference=[gs.trace([3], model=model())]), EditError,
     "the reference has no position after its first one"),
    (lambda: gs.ablate("z", layer=1, value="mean_by_pos", reference=[gs.trace([3, 4], model=model())]), EditError,
     "a mean at each position needs equal lengths: they have 9 and 2 tokens and part at position 0"),
    (lambda: gs.patch("z", gs.trace(prompt(5), model=model()), layer=1, pos=[2, 7]), EditError,
     "the source has no position 7: they have 9 and 5 tokens and part at position 5"),
    (lambda: gs.scale("z", 2.0, layer=1, pos=[0, -9]), SiteError, r"pos names one twice: \[0, -9\]"),
    (lambda: gs.scale("z", 2.0, layer=1, head=[7, -1]), SiteError, r"head names one twice: \[7, -1\]"),
    (lambda: gs.scale("z", 2.0, layer=1, pos=1.5), SiteError, "pos is a number or a list of numbers; given 1.5"),  # type: ignore[arg-type]
    (lambda: gs.scale("z", 2.0, layer=1, pos=[1.5]), SiteError, "a position is a whole number; given 1.5"),  # type: ignore[list-item]
    (lambda: gs.scale("z", 2.0, layer=1, pos=True), SiteError, "given True"),
    (lambda: gs.scale("embed", 2.0, layer=1), SiteError, "'embed' is outside the layers"),
    (lambda: gs.scale("k", 2.0, layer=1, head=7), SiteError, "'k' has 4 kv heads, 0 to 3; given head=7"),
    (lambda: gs.knockout(layer=1, q_pos=9, k_pos=0), SiteError, "there is no position 9"),
    (lambda: gs.knockout(layer=1, head=8, q_pos=3, k_pos=0), SiteError, "there is no head 8"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), BAD, ids=[message[:50] for _, _, message in BAD])
def test_a_bad_edit_is_refused_before_anything_runs(make: Callable[[], Edit], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        gs.trace(prompt(N_POS), model=model(), edits=[make()])


def test_an_edit_cannot_be_changed() -> None:
    edit = gs.edit("z", torch.tanh, layer=1)
    assert isinstance(edit, Custom)
    with pytest.raises(AttributeError):
        edit.layer = 2  # type: ignore[misc]


def test_knockouts_that_together_leave_a_query_no_key_are_refused_when_they_meet() -> None:
    cuts = [gs.knockout(layer=0, head=1, q_pos=2, k_pos=[0, 1]), gs.knockout(layer=0, head=1, q_pos=2, k_pos=2)]
    gs.trace(prompt(5), model=model(), edits=cuts[:1])
    with pytest.raises(TapError, match="a query is left without any key"):
        gs.trace(prompt(5), model=model(), edits=cuts)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int8", "bool"])
def test_an_array_is_shown_as_the_tensor_of_its_numbers(dtype: str) -> None:
    array = np.array([[1, 0, 3]]).astype(dtype)
    shown = source_text(array)
    assert np.array_equal(eval(shown, {"torch": torch}).numpy(), array), shown


def test_an_array_that_is_large_or_of_no_numbers_is_shown_by_its_shape() -> None:
    assert source_text(np.zeros((40, 50))) == "<ndarray [40, 50]>"
    assert source_text(np.array(["a", "b"])) == "<ndarray [2]>"


def test_a_function_may_write_in_place_and_return_nothing() -> None:
    def halve(rows: torch.Tensor) -> None:
        rows *= 0.5

    t = gs.trace(prompt(6), model=model(), edits=[gs.edit("z", halve, layer=1, head=2)])
    scaled = gs.trace(prompt(6), model=model(), edits=[gs.scale("z", 0.5, layer=1, head=2)])
    assert torch.equal(t.logits, scaled.logits)
    assert torch.equal(t["z", 1], scaled["z", 1])  # the layer runs again, with what was written
    metric = gs.logit_diff(3, 4)
    assert torch.allclose(t.grad(metric, ("resid_pre", 1)), scaled.grad(metric, ("resid_pre", 1)), atol=1e-6)
