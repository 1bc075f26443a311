"""The laws of a sweep: it is the loop of single edited runs, and of transformers with hooks, however it is carried."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import worded
from reference import error
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.edits import sources as edit_sources
from gemmascope.edits.edit import Edit
from gemmascope.errors import BudgetError, EditError, GemmascopeError, MetricError, PromptError, SiteError, SweepError
from gemmascope.memory import limits as memory_module
from gemmascope.model.gemma2 import Layer
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.sites import LAYER_SITES, SITES
from gemmascope.sweeps import sources as sweep_sources
from gemmascope.sweeps import variants as variants_module
from gemmascope.sweeps.result import SweepResult
from gemmascope.sweeps.running import runner as runner_module

# Random questions may be of edits that overwrite each other, or of cells that surely change nothing.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(has no effect|every effect is 0).*:gemmascope.GemmascopeWarning",
)

CLOSE = 1e-5
N_POS = 9
METRIC = gs.logit_diff(5, 9)


@cache
def checkpoint_of(kinds: str, kv: int) -> Gemma2ForCausalLM:
    return checkpoint(kinds, num_key_value_heads=kv)


@cache
def model(kinds: str = "lgl", kv: int = 4) -> Model:
    return model_of(checkpoint_of(kinds, kv))


def diff(logits: Tensor) -> Tensor:
    """METRIC, written out."""
    return logits[..., 5] - logits[..., 9]


def sweep(clean: Any, corrupt: Any = None, **arguments: Any) -> SweepResult | None:
    """A sweep; None if it was refused because the mask hides every edge of its grid."""
    try:
        return gs.sweep(clean, corrupt, METRIC, **{"model": model(), **arguments})
    except SweepError as error:
        if "the mask hides every edge" not in str(error):
            raise
        return None


def cells(s: SweepResult) -> list[tuple[tuple[int, ...], dict[str, int]]]:
    """The index of every cell, and where it is."""
    axes = s.question.axes
    indices = itertools.product(*(range(len(numbers)) for numbers in axes.values()))
    return [(i, {name: axes[name][at] for name, at in zip(axes, i, strict=True)}) for i in indices]


# -- against the loop --


class Loop:
    """The plain way: one gs.trace with edits for each cell."""

    def __init__(
        self, m: Model, base: list[int], source: list[int] | None, base_edits: Sequence[Edit] = (), **written: Any
    ) -> None:
        """written: what an ablation writes, as gs.ablate is told."""
        self.m, self.base, self.base_edits, self.written = m, base, base_edits, written
        self.source = None if source is None else gs.trace(source, model=m)

    def seen(self, site: str, layer: int, places: dict[str, Any]) -> bool:
        """Whether the mask lets one of the edges through, at an edge site."""
        if not SITES[site].is_edges:
            return True
        every = range(len(self.base))
        q_pos, k_pos = ([n] if isinstance(n, int) else n or every for n in (places.get("q_pos"), places.get("k_pos")))
        window = 4 if self.m.config.kinds[layer] == "local" else 1000
        return any(k <= q and q - k < window for q in q_pos for k in k_pos)

    def cell(self, site: str, layers: Sequence[int], places: dict[str, Any]) -> float:
        layers = [layer for layer in layers if self.seen(site, layer, places)]
        if not layers:
            return float("nan")
        if self.source is not None:
            edits: list[Edit] = [gs.patch(site, self.source, layer=layer, **places) for layer in layers]
        else:
            edits = [gs.ablate(site, **self.written, layer=layer, **places) for layer in layers]
        return float(diff(gs.trace(self.base, model=self.m, edits=[*self.base_edits, *edits]).next_logits))


def assert_loop(
    s: SweepResult | None, loop: Loop, subset: dict[str, Any] | None = None, window: int = 1, pair: int = 0
) -> None:
    if s is None:  # refused: then no layer may let one of the edges through
        places = {name: place for name, place in (subset or {}).items() if name != "layer"}
        layers = (subset or {}).get("layer") or range(loop.m.n_layers)
        assert not any(loop.seen("pattern", layer, places) for layer in layers)
        return
    site, n_layers, expected = s.question.site, loop.m.n_layers, np.zeros(s.values[pair].shape)
    for index, cell in cells(s):
        layers = list((subset or {}).get("layer") or range(n_layers))
        if "layer" in cell:
            first = cell["layer"] - (window - 1) // 2
            layers = [layer for layer in range(first, first + window) if 0 <= layer < n_layers]
        places = {**(subset or {}), **{"head" if a == "kv_head" else a: n for a, n in cell.items()}}
        places.pop("layer", None)
        expected[index] = loop.cell(site, layers, places)
    assert (np.isnan(expected) == np.isnan(s.values[pair])).all()
    if not np.isnan(expected).all():
        assert error(np.nan_to_num(s.values[pair]), np.nan_to_num(expected)) <= CLOSE
        base = float(diff(gs.trace(loop.base, model=loop.m, edits=loop.base_edits).next_logits))
        assert abs(s.base_metric[pair] - base) <= CLOSE * max(1, abs(base))


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out", "pattern"])
def test_rows_before_the_first_other_token_are_not_run_and_change_nothing(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs have the same values there; a cell of all positions starts where they differ, and is the loop's."""
    m, clean = model(), prompt(N_POS)
    corrupt = [*clean[:5], *prompt(N_POS, seed=1)[5:]]
    assert corrupt[5] != clean[5]
    by = ("layer", "q_pos" if site == "pattern" else "pos")
    rows: list[int] = []
    forward = Layer.forward

    def counting(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return forward(layer, x, *rest)

    monkeypatch.setattr(Layer, "forward", counting)
    s = gs.sweep(clean, corrupt, METRIC, site=site, by=by, model=m, progress=False)
    assert (s.values[0][:, :5] == s.base_metric[0]).all()
    whole = gs.sweep(clean, corrupt, METRIC, site=site, by=("layer",), model=m, progress=False)
    n_variant_rows = sum(rows) - 2 * 2 * N_POS * m.n_layers
    assert n_variant_rows <= (m.n_layers * 4 * 5 // 2 + m.n_layers * 4) * m.n_layers
    monkeypatch.undo()
    assert_loop(s, Loop(m, corrupt, clean))
    assert_loop(whole, Loop(m, corrupt, clean))


def test_an_edited_base_may_differ_before_the_first_other_token() -> None:
    m, clean = model(), prompt(N_POS)
    corrupt = [*clean[:5], *prompt(N_POS, seed=1)[5:]]
    edits = [gs.ablate("mlp_out", layer=0, pos=2)]
    s = gs.sweep(clean, corrupt, METRIC, site="resid_post", edits=edits, model=m, progress=False)
    assert abs(s.effect.sel(layer=0, pos=2).item()) > 1e-4
    assert_loop(s, Loop(m, corrupt, clean, base_edits=edits))


GRIDS: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    *((site, ("layer", "pos"), {}) for site in LAYER_SITES if SITES[site].axes[0] == "pos"),
    *((site, ("layer", "head"), {}) for site in LAYER_SITES if SITES[site].heads),
    *((site, ("pos", "head"), {"layer": [1]}) for site in ("z", "k", "head_out")),
    *((site, ("q_pos", "k_pos"), {"layer": [layer], "head": 2}) for site in ("scores", "pattern") for layer in (0, 1)),
    ("pattern", ("layer", "head", "q_pos"), {"head": [0, 7], "q_pos": [0, 8]}),
    ("scores_capped", ("head", "k_pos", "layer"), {"head": [3], "k_pos": [0, 4, 8]}),
    ("v", ("head", "pos", "layer"), {"pos": [8, 0], "head": [3, 0]}),
    ("resid_mid", ("pos",), {}),
    ("mlp_act", ("layer",), {}),
]


@pytest.mark.parametrize(("site", "by", "subset"), GRIDS, ids=[f"{site}-{'-'.join(by)}" for site, by, _ in GRIDS])
def test_a_sweep_is_the_loop_of_single_edited_runs(site: str, by: tuple[str, ...], subset: dict[str, Any]) -> None:
    """All layers and positions of a prompt longer than the window of 4, two query heads to a kv head."""
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    s = sweep(clean, corrupt, site=site, by=by, **subset)
    assert_loop(s, Loop(model(), corrupt, clean), subset)
    assert abs(s.clean - float(diff(gs.trace(clean, model=model()).next_logits))) <= 1e-4


def base_edits(n_pos: int) -> list[Edit]:
    return [
        gs.scale("z", 0.5, layer=0, head=2),
        gs.add("resid_post", torch.linspace(-1, 1, 32), layer=0, pos=-1),
        gs.edit("mlp_act", torch.tanh, layer=0, pos=slice(n_pos // 2, None)),
        gs.ablate("embed", pos=n_pos // 2, value=0.25),
        gs.knockout(layer=-1, head=1, q_pos=-1, k_pos=-2) if n_pos > 1 else gs.scale("q", 0.5, layer=-1),
    ]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(kinds=st.sampled_from(["lgl", "gl", "l"]), kv=st.sampled_from([8, 4, 2]), n_pos=st.integers(1, N_POS), data=st.data())
def test_any_sweep_is_the_loop(kinds: str, kv: int, n_pos: int, data: Any) -> None:
    m, site = model(kinds, kv), data.draw(st.sampled_from(LAYER_SITES))
    heads = {SITES[site].heads: m.config.size_of(SITES[site].heads, n_pos)} if SITES[site].heads else {}
    sizes = {"layer": m.n_layers, **heads} | {axis: n_pos for axis in SITES[site].axes if axis.endswith("pos")}
    by = data.draw(st.lists(st.sampled_from(list(sizes)), min_size=1, unique=True))
    some = lambda n: st.lists(st.integers(0, n - 1), min_size=1, max_size=2, unique=True)  # noqa: E731
    subset = {"head" if axis == "kv_head" else axis: data.draw(some(n)) for axis, n in sizes.items()}
    subset = {axis: chosen for axis, chosen in subset.items() if axis in by or "head" in axis or data.draw(st.booleans())}
    window = data.draw(st.integers(1, m.n_layers)) if "layer" in by else 1
    edits = data.draw(st.lists(st.sampled_from(base_edits(n_pos)), max_size=2, unique_by=repr))
    clean, corrupt = prompt(n_pos), prompt(n_pos, seed=1)
    means = ["mean_by_pos"] + (["mean"] if n_pos > 1 else [])
    into = data.draw(st.sampled_from(["corrupt", "clean", 0.25, *means]))
    how: dict[str, Any] = {"site": site, "by": by, "window": window, "edits": edits, "model": m}
    if into in ("corrupt", "clean"):
        base, source = (corrupt, clean) if into == "corrupt" else (clean, corrupt)
        s, loop = sweep(clean, corrupt, into=into, **how, **subset), Loop(m, base, source, edits)
    else:
        reference = [gs.trace(prompt(n_pos, seed=s), model=m) for s in (7, 8)] if into in means else []
        s = sweep(clean, None, ablate=into, reference=reference, **how, **subset)
        loop = Loop(m, clean, None, edits, value=into, reference=reference)
    assert_loop(s, loop, subset, window)


@pytest.mark.parametrize(("site", "by"), [("resid_post", ("layer", "pos")), ("v", ("layer", "head")), ("mlp_out", ("pos",))])
def test_a_mean_may_be_over_runs_of_other_lengths_with_edits_of_their_own(site: str, by: tuple[str, ...]) -> None:
    reference = gs.trace([prompt(n, seed=n) for n in (4, 1, 7)], model=model(), edits=[gs.scale("mlp_out", 2.0, layer=0)])
    s = sweep(prompt(N_POS), site=site, by=by, ablate="mean", reference=iter(reference))
    assert_loop(s, Loop(model(), prompt(N_POS), None, value="mean", reference=reference))
    cleans = [prompt(N_POS), prompt(N_POS, seed=5)]
    pairs = sweep(cleans, site=site, by=by, ablate="mean", reference=reference)
    assert_loop(pairs, Loop(model(), cleans[1], None, value="mean", reference=reference), pair=1)


def test_pairs_share_the_means_of_a_reference_and_read_the_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = gs.trace([prompt(N_POS, seed=s) for s in (7, 8, 9)], model=model())
    cleans = [prompt(N_POS, seed=s) for s in (1, 2, 3)]
    counts = {"means": 0, "fingerprints": 0}
    mean, fingerprints = edit_sources._mean, Model.fingerprints

    def counted_mean(*args: Any, **kwargs: Any) -> Tensor:
        counts["means"] += 1
        return mean(*args, **kwargs)

    def counted_fingerprints(self: Model) -> tuple[str, str]:
        counts["fingerprints"] += 1
        return fingerprints(self)

    monkeypatch.setattr(edit_sources, "_mean", counted_mean)
    monkeypatch.setattr(Model, "fingerprints", counted_fingerprints)
    how: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "ablate": "mean_by_pos", "reference": reference}
    shared = gs.sweep(cleans, None, METRIC, model=model(), **how)
    assert counts == {"means": model().n_layers, "fingerprints": 2}  # one of the model, one of the reference's
    monkeypatch.setattr(sweep_sources, "MOST_BYTES_OF_MEANS", 0)
    apart = gs.sweep(cleans, None, METRIC, model=model(), **how)
    assert counts["means"] == model().n_layers * (1 + len(cleans))
    assert np.array_equal(shared.values, apart.values)
    assert shared.question == apart.question


def test_places_are_written_as_in_an_edit() -> None:
    text = "When Mary and John went to the store, John gave a drink to"
    other = text.replace(" Mary", " John", 1)
    by_number = gs.sweep(text, other, METRIC, site="z", by=("layer", "head"), layer=[1], pos=2, head=[7, 0], model=worded())
    by_name = gs.sweep(
        text, other, METRIC, site="z", by=("layer", "head"), layer=-2, pos=[-13], head=[-1, 0], model=worded()
    )
    assert by_number.question.axes == by_name.question.axes == {"layer": [1], "head": [7, 0]}
    assert np.array_equal(by_number.values, by_name.values)
    by_token = gs.sweep(other, text, METRIC, site="resid_pre", by="pos", pos=" Mary", model=worded(), layer=0)
    assert by_token.question.axes == {"pos": [2]}
    assert gs.sweep(text, other, METRIC, site="resid_pre", by="pos", pos=slice(0, 9, 4), model=worded()).values.shape == (
        1,
        3,
    )


@pytest.mark.parametrize(
    "ask", [sweep, lambda *given, **arguments: gs.attribute(*given, METRIC, model=model(), **arguments)]
)
def test_names_of_transformerlens_are_read_as_in_a_trace(ask: Any) -> None:
    clean, corrupt = prompt(5), prompt(5, seed=1)
    for name, layer in [("attn.hook_z", None), ("blocks.2.attn.hook_z", 2), ("layers.-1.z", 2)]:
        theirs, ours = (ask(clean, corrupt, site=site, by=("layer", "head"), layer=layer) for site in (name, "z"))
        assert (theirs.question.site, theirs.question.axes) == ("z", ours.question.axes)
        assert np.array_equal(theirs.values, ours.values)
    alone = ask(clean, corrupt, site="blocks.2.hook_mlp_out", by="pos", layer=[-1])
    assert np.array_equal(alone.values, ask(clean, corrupt, site="mlp_out", by="pos", layer=2).values)
    with pytest.raises(SiteError, match=r"'blocks.2.hook_mlp_out' names layer 2, and layer=\[1, 2\] was given as well"):
        ask(clean, corrupt, site="blocks.2.hook_mlp_out", by="pos", layer=[1, 2])


def test_kv_heads_are_an_axis_of_their_own() -> None:
    s = sweep(prompt(5), prompt(5, seed=1), site="k", by=("head",))
    assert s.question.axes == {"kv_head": [0, 1, 2, 3]}
    assert s.effect.dims == ("kv_head",)


def test_edits_after_the_layers_are_made_to_every_run() -> None:
    edits = [
        gs.add("final", torch.linspace(-1, 1, 32), pos=-1),
        gs.scale("logits_raw", 0.5),
        gs.edit("logits", torch.sin, pos=-1),
        gs.ablate("final", pos=0),
    ]
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    s = sweep(clean, corrupt, site="resid_post", by=("layer", "pos"), pos=[0, 8], edits=edits)
    assert_loop(s, Loop(model(), corrupt, clean, edits), {"pos": [0, 8]})


# -- against transformers --


def by_hook(source: Gemma2ForCausalLM, site: str, layer: int) -> tuple[torch.nn.Module, bool]:
    """The module of transformers whose input (True) or output is the site."""
    at = source.get_submodule(f"model.layers.{layer}")
    return {
        "resid_pre": (at, True), "resid_post": (at, False), "attn_out": (at.post_attention_layernorm, False),
        "mlp_out": (at.post_feedforward_layernorm, False), "z": (at.self_attn.o_proj, True),
        "q": (at.self_attn.q_proj, False), "k": (at.self_attn.k_proj, False),
        "v": (at.self_attn.v_proj, False), "mlp_act": (at.mlp.down_proj, True),
    }[site]  # fmt: skip


@torch.no_grad()
def hooked(source: Gemma2ForCausalLM, ids: list[int], site: str, layer: int, see: Callable[[Tensor], Tensor]) -> Tensor:
    """The last logits of a run of transformers in which a plain forward hook replaces one value, [pos, ...]."""
    module, is_input = by_hook(source, site, layer)
    if is_input:
        hook = module.register_forward_pre_hook(lambda _, given: (see(given[0][0])[None], *given[1:]))
    else:
        hook = module.register_forward_hook(lambda _, __, out: see(out[0])[None])
    try:
        return source(torch.tensor([ids])).logits[0, -1]
    finally:
        hook.remove()


HOOKED = [
    *((site, ("layer", "pos")) for site in ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp_act")),
    *((site, ("layer", "head")) for site in ("z", "q", "k", "v")),
    ("z", ("pos", "head")),
]


@pytest.mark.parametrize(("site", "by"), HOOKED)
def test_a_sweep_is_the_loop_of_hooks_in_transformers(site: str, by: tuple[str, ...]) -> None:
    source, n_pos = checkpoint_of("lg", 4), 7
    clean, corrupt, subset = prompt(n_pos), prompt(n_pos, seed=1), {} if "layer" in by else {"layer": 1, "pos": [0, 3, 6]}
    s = sweep(clean, corrupt, site=site, by=by, model=model("lg"), **subset)
    expected = np.zeros(s.values[0].shape)
    for index, cell in cells(s):
        layer, kept = cell.get("layer", 1), []
        hooked(source, clean, site, layer, lambda value, kept=kept: kept.append(value.clone()) or value)

        def patched(value: Tensor, there: Tensor = kept[0], cell: dict[str, int] = cell) -> Tensor:
            new, head = value.clone(), cell.get("head", cell.get("kv_head"))
            columns = slice(None) if head is None else slice(12 * head, 12 * head + 12)
            rows = cell.get("pos", slice(None))
            new[rows, columns] = there[rows, columns]
            return new

        expected[index] = diff(hooked(source, corrupt, site, layer, patched))
    assert error(s.values[0], expected) <= CLOSE
    assert np.ptp(expected) > 0.1


# -- in bfloat16 --


def cell_by_cell(m: Model, clean: list[int], corrupt: list[int], site: str, s: SweepResult) -> np.ndarray[Any, Any]:
    """The numbers of a sweep, from a run of its own for each cell."""
    loop, found = Loop(m, corrupt, clean), np.zeros(s.values[0].shape)
    for index, cell in cells(s):
        found[index] = loop.cell(site, [cell["layer"]], {axis: n for axis, n in cell.items() if axis != "layer"})
    return found


@pytest.mark.parametrize(("site", "by"), [("resid_pre", ("layer", "pos")), ("z", ("layer", "head"))])
def test_a_sweep_in_bfloat16_is_no_further_from_float32_than_single_runs_are(site: str, by: tuple[str, ...]) -> None:
    """Their products round elsewhere, so that either is nearer in one cell; over many they are as near."""
    ours, loops = [], []
    for kinds, seed in itertools.product(("lgl", "gl"), range(5)):
        m16, m32 = model_of(checkpoint(kinds, seed).bfloat16()), model_of(checkpoint(kinds, seed).bfloat16().float())
        clean, corrupt = prompt(N_POS, seed=seed), prompt(N_POS, seed=seed + 50)
        s, exact = (sweep(clean, corrupt, site=site, by=by, model=m) for m in (m16, m32))
        assert np.isfinite(s.values).all()
        assert np.isfinite([s.clean, s.corrupt]).all()
        ours.append((s.values[0] - exact.values[0]).ravel())
        loops.append((cell_by_cell(m16, clean, corrupt, site, s) - exact.values[0]).ravel())
    our, loop = np.concatenate(ours), np.concatenate(loops)
    assert 0 < np.square(our).mean() ** 0.5 <= 1.2 * np.square(loop).mean() ** 0.5
    assert np.abs(our).max() <= 1.5 * np.abs(loop).max()


# -- how it is carried --


def carried(**arguments: Any) -> SweepResult:
    pairs = [prompt(N_POS), prompt(N_POS, seed=2)], [prompt(N_POS, seed=1), prompt(N_POS, seed=3)]
    return sweep(*pairs, site="resid_pre", by=("layer", "pos"), **arguments)


class Chunks:
    """How often a pass was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        final_residuals = variants_module.final_residuals

        def counting(m: Model, bases: Any, variants: Sequence[Any], sources: Any, *rest: Any) -> Any:
            self.sizes.append(len(variants))
            return final_residuals(m, bases, variants, sources, *rest)

        monkeypatch.setattr(runner_module, "final_residuals", counting)


@pytest.mark.parametrize("rows", [1, 17, 100])
def test_the_result_does_not_depend_on_the_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, whole = Chunks(monkeypatch), carried()
    assert chunks.sizes == [54]
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", rows)
    parts = carried()
    assert len(chunks.sizes) > 3
    assert sum(chunks.sizes) == 108
    assert error(parts.values, whole.values) <= CLOSE
    assert error(parts.base_metric, whole.base_metric) <= CLOSE


def test_the_result_does_not_depend_on_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = carried()
    with pytest.raises(SweepError, match=r"memory of 1,000 bytes is too little for a pass of 'random': it needs") as raised:
        carried(memory=1000)
    needed = int(re.search(r"needs ([\d,]+) bytes", str(raised.value))[1].replace(",", ""))  # type: ignore[index]
    chunks = Chunks(monkeypatch)
    assert error(carried(memory=needed).values, whole.values) <= CLOSE
    assert len(chunks.sizes) > 1
    assert error(carried(memory=f"{2 * needed / 2**20} MiB").values, whole.values) <= CLOSE
    with pytest.raises(SweepError, match="is too little"):
        carried(memory=needed - 1)


def test_each_layer_is_asked_for_once_a_chunk(layers_read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """For bases, sources and variants alike: no layer runs at another time."""
    monkeypatch.setattr(memory_module, "RESIDENT_ROWS", 60)
    chunks = Chunks(monkeypatch)
    carried()
    assert len(chunks.sizes) > 2
    assert layers_read == [0, 1, 2] * len(chunks.sizes)


def test_the_source_rides_in_the_pass_of_the_cells(layers_read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell at the last layer: every layer runs once, with the rows of base and source, and the last with the cell's."""
    rows: list[list[int]] = [[], [], []]
    forward = Layer.forward

    def counting(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
        rows[layer.index].append(len(x))
        return forward(layer, x, *rest)

    monkeypatch.setattr(Layer, "forward", counting)
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    s = sweep(clean, corrupt, site="resid_post", by="pos", layer=2, pos=[N_POS - 1])
    assert layers_read == [0, 1, 2]
    assert rows == [[2 * N_POS], [2 * N_POS], [2 * N_POS, 1]]
    assert s.corrupt != s.clean == pytest.approx(s.values.item(), rel=1e-4)
    layers_read.clear()
    sweep(clean, site="z", by=("layer", "head"), ablate=0)
    assert layers_read == [0, 1, 2]


def test_only_wanted_positions_are_unembedded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    unembed = type(model().network).unembed

    def counting(self: Any, x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return unembed(self, x, *rest)

    monkeypatch.setattr(type(model().network), "unembed", counting)
    carried()
    assert sum(rows) == 4 + 2 + 2 + 54  # the trials of the metric, the sources, the bases, the cells
    monkeypatch.setattr("gemmascope.run.logits.LOGIT_BYTES", 4 * 61 * 5)  # not more than five at once
    rows.clear()
    carried()
    assert max(rows) == 5


# -- pairs --


def test_a_sweep_of_pairs_is_the_mean_of_their_sweeps() -> None:
    cleans, corrupts = ([prompt(N_POS, seed=seed + n) for seed in range(3)] for n in (0, 10))
    arguments: dict[str, Any] = {"site": "attn_out", "by": ("layer", "pos")}
    together = sweep(cleans, corrupts, **arguments)
    single = [sweep(a, b, **arguments) for a, b in zip(cleans, corrupts, strict=True)]
    effects = np.stack([s.effect.values for s in single])
    assert error(together.per_pair.values, effects) <= CLOSE
    assert error(together.effect.values, effects.mean(0)) <= CLOSE
    assert error(together.stderr.values, effects.std(0, ddof=1) / 3**0.5) <= CLOSE
    assert abs(together.clean - np.mean([s.clean for s in single])) <= 1e-4
    assert abs(together.corrupt - np.mean([s.corrupt for s in single])) <= 1e-4
    assert together.per_pair.dims == ("pair", "layer", "pos")


def test_pairs_may_differ_in_length_where_positions_are_no_axis() -> None:
    cleans, corrupts = ([prompt(n, seed=seed + n) for n in (9, 4, 6)] for seed in (0, 50))
    metrics = [gs.logit_diff(5, 9), gs.logit_diff(3, 4), gs.answer_logprob(7)]
    together = gs.sweep(cleans, corrupts, metrics, site="z", by=("layer", "head"), model=model())
    for i, (clean, corrupt, metric) in enumerate(zip(cleans, corrupts, metrics, strict=True)):
        alone = gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"), model=model())
        assert error(together.values[i], alone.values[0]) <= CLOSE
    ablated = gs.sweep(cleans, None, METRIC, site="z", by="head", ablate=0, model=model())
    assert error(ablated.values[1], sweep(cleans[1], site="z", by="head", ablate=0).values[0]) <= CLOSE


# -- what the mask hides --


@pytest.mark.parametrize("site", ["scores", "scores_capped", "pattern"])
def test_an_edge_that_is_masked_has_no_number(site: str) -> None:
    s = sweep(prompt(7), prompt(7, seed=1), site=site, by=("layer", "q_pos", "k_pos"))
    q, k = np.meshgrid(range(7), range(7), indexing="ij")
    seen = [(k <= q) & (q - k < 4), k <= q, (k <= q) & (q - k < 4)]
    assert (~np.isnan(s.effect.values) == np.stack(seen)).all()
    assert (s.effect.values[np.stack(seen)] != 0).any()
    wide = sweep(prompt(7), prompt(7, seed=1), site=site, by=("layer", "q_pos", "k_pos"), window=2)
    assert (~np.isnan(wide.effect.values) == np.stack([seen[1], seen[1], seen[2]])).all()


def test_cells_that_cannot_be_run_are_not_counted(bars: list[Any], tmp_path: Path) -> None:
    """28 of 49 edges lie behind the diagonal, 22 of them in the window of 4; a cell is a layer and two pairs of prompts."""
    pairs = [[prompt(7, seed=s) for s in seeds] for seeds in ((0, 1), (2, 3))]
    arguments: dict[str, Any] = {"site": "pattern", "by": ("layer", "q_pos", "k_pos"), "layer": [0, 1]}
    s = sweep(*pairs, **arguments)
    assert s.progress_text() == "100 of 100 cells finished"
    assert [(bar.total, bar.done) for bar in bars] == [(100, 100)]
    s.save(tmp_path / "s.json")
    assert gs.open_sweep(tmp_path / "s.json").progress_text() == s.progress_text()
    assert gs.attribute(*pairs, METRIC, model=model(), **arguments).progress_text() == s.progress_text()
    wide = sweep(*pairs, **arguments, window=3, out=tmp_path / "wide.json")
    assert wide.progress_text() == "112 of 112 cells finished"
    assert sweep(*pairs, **arguments, window=3, out=tmp_path / "wide.json").progress_text() == wide.progress_text()
    assert (bars[-1].total, bars[-1].done) == (112, 112)


# -- bad input --

TEXT = "When Mary and John went to the store, John gave a drink to"
SHORT = "When Mary and John went to the store, Mary gave a drink"
PAIR: dict[str, Any] = {"clean": TEXT, "corrupt": TEXT.replace(" Mary", " John"), "metric": METRIC, "site": "resid_pre"}


def short(n_pos: int, **shape: int) -> list[Trace]:
    return [gs.trace(prompt(n_pos), model=model_of(checkpoint("lgl", **shape)))]


BAD: list[tuple[dict[str, Any], type[GemmascopeError], str]] = [
    ({"corrupt": SHORT}, SweepError,
     r"positions of the two prompts must match: they have 15 and 14 tokens and part at position 10, at \[' John'\] and "
     r"\[' Mary'\]. The run: \['<bos>', 'When', ' Mary', .* The other: \['<bos>', 'When', "),
    ({"clean": [TEXT, TEXT], "corrupt": [TEXT, SHORT]}, SweepError, "they have 15 and 14 tokens and part at position 10"),
    ({"clean": [TEXT, SHORT], "corrupt": [TEXT, SHORT]}, SweepError,
     "grids of different shapes, .* or leave pos out of by"),
    ({"clean": [TEXT, TEXT], "corrupt": TEXT}, SweepError, "as two prompts, or as two lists of prompts"),
    ({"clean": [TEXT, TEXT], "corrupt": [TEXT]}, SweepError, "there are 2 clean prompts, 1 corrupted ones and 2 metrics"),
    ({"metric": [METRIC, METRIC]}, MetricError, "two metrics are named 'logit_diff': give a mapping with a name for each"),
    ({"metric": {"one": [METRIC, METRIC]}}, SweepError,
     "there are 1 clean prompts, 1 corrupted ones and 2 metrics named 'one'"),
    ({"clean": ""}, PromptError, "the prompt is empty"),
    ({"by": ("layer", "posn")}, SweepError,
     r"by names axes of 'resid_pre', each once: layer, pos; given \('layer', 'posn'\)"),
    ({"by": ("layer", "head")}, SweepError, "by names axes of 'resid_pre', each once: layer, pos; given"),
    ({"by": ("pos", "pos")}, SweepError, "each once"),
    ({"by": ()}, SweepError, "by names axes of 'resid_pre'"),
    ({"by": None}, SweepError, r"by names axes of 'resid_pre'.*given None"),
    ({"by": ("layer", 3)}, SweepError, "by names axes of 'resid_pre'"),
    ({"site": "pattern", "by": ("layer", "pos")}, SweepError,
     "by names axes of 'pattern', each once: layer, head, q_pos, k_pos"),
    ({"site": "k", "by": ("head", "kv_head")}, SweepError, "by names axes of 'k', each once: layer, pos, kv_head"),
    ({"site": "residpre"}, SiteError, "there is no site 'residpre'. Did you mean 'resid_pre'"),
    ({"site": "embed"}, SweepError, "'embed' is outside the layers, so there is no grid over it: use gs.trace with an edit"),
    ({"site": "logits"}, SweepError, "'logits' is outside the layers"),
    ({"site": "hook_embed"}, SweepError, "'embed' is outside the layers"),
    ({"site": "blocks.0.attn.hook_result"}, SiteError, "TransformerLens' 'attn.hook_result' leaves out Gemma 2's post-norm"),
    ({"site": "attn.hook_attn_scores"}, SiteError, "has -inf at masked keys there"),
    ({"site": "blocks.3.hook_resid_pre"}, SiteError, "there is no layer 3"),
    ({"site": "blocks.1.hook_resid_pre", "layer": 2}, SiteError, "names layer 1, and layer=2 was given as well"),
    ({"site": ("z", 1)}, SweepError, r"site is the name of a site, or a list of names; given \('z', 1\)"),
    ({"site": ("z", "residpre")}, SiteError, "there is no site 'residpre'. Did you mean 'resid_pre'"),
    ({"site": 1}, SiteError, "there is no site"),
    ({"layer": 3}, SiteError, "there is no layer 3: layers go from 0 to 2"),
    ({"layer": [0, -3]}, SiteError, "layer names one twice"),
    ({"layer": []}, SweepError, "layer is an empty list"),
    ({"layer": 1.5}, SiteError, "a layer is a whole number.*given 1.5"),
    ({"pos": 15}, SiteError, "there is no position 15: positions go from 0 to 14"),
    ({"pos": [0, -15]}, SiteError, r"pos names one twice: \[0, -15\]"),
    ({"pos": " Anne"}, SiteError, "the token ' Anne' is not in the prompt"),
    ({"q_pos": 1}, SweepError, "'resid_pre' has positions, not edges: say pos"),
    ({"site": "pattern", "by": "head", "pos": 1}, SweepError, "'pattern' lives on attention edges: say q_pos and k_pos"),
    ({"head": 1}, SiteError, "'resid_pre' has no heads: leave head out"),
    ({"site": "z", "by": "head", "head": 8}, SiteError, "there is no head 8: heads go from 0 to 7"),
    ({"site": "k", "by": "head", "head": [0, 5]}, SiteError,
     r"'k' has 4 kv heads, 0 to 3; given head=\[0, 5\]. Each kv head serves 2 query heads: query head h reads"),
    ({"site": "v", "by": "head", "head": 8}, SiteError, "there is no kv head 8: kv heads go from 0 to 3"),
    ({"window": 0}, SweepError, "window is a whole number from 1 to 3; given 0"),
    ({"window": 4}, SweepError, "window is a whole number from 1 to 3; given 4"),
    ({"window": 1.5}, SweepError, "window is a whole number from 1 to 3; given 1.5"),
    ({"window": 2, "by": "pos"}, SweepError, "window needs layer in by"),
    ({"clean": short(4)[0]}, SweepError,
     "clean is a trace, and a sweep runs its prompts itself: give the prompt, or the trace's .ids$"),
    ({"corrupt": short(4)[0]}, SweepError, "corrupt is a trace, and a sweep runs its prompts itself"),
    ({"clean": short(4), "corrupt": short(4)}, SweepError, "clean holds a trace, and a sweep runs its prompts itself"),
    ({"corrupt": gs.trace([3], model=model(), edits=[gs.scale("z", 0.5, layer=0)])}, SweepError,
     "the trace's .ids; edits= are made to the run that is patched"),
    ({"into": "base"}, SweepError, "into, the run to patch, is one of 'corrupt', 'clean'; given 'base'"),
    ({"ablate": 0.0}, SweepError, "corrupt and ablate were both given: leave one out"),
    ({"corrupt": None}, SweepError, "neither corrupt nor ablate was given: give a corrupted prompt, or ablate=0.0"),
    ({"corrupt": None, "ablate": float("nan")}, SweepError, "ablate is a finite number, 'mean' or .*; given nan"),
    ({"corrupt": None, "ablate": "zero"}, SweepError, "ablate is a finite number, 'mean' or 'mean_by_pos'; given 'zero'"),
    ({"corrupt": None, "ablate": "mean"}, EditError, r"'mean' needs reference=\[traces\] to take the mean over"),
    ({"corrupt": None, "ablate": "mean", "reference": [TEXT]}, EditError, "made by gs.trace; it holds 'When Mary"),
    ({"corrupt": None, "ablate": "mean", "reference": TEXT}, EditError, "reference is a list of traces; given 'When Mary"),
    ({"corrupt": None, "ablate": "mean", "reference": short(1)}, EditError, "no position after its first one"),
    ({"corrupt": None, "ablate": "mean_by_pos", "reference": short(4)}, EditError,
     "a mean at each position needs equal lengths: they have 15 and 4 tokens"),
    ({"corrupt": None, "ablate": "mean", "reference": short(4, head_dim=6), "site": "z", "by": "head"}, EditError,
     "a trace of 'random', whose 'layers.0.z' has other sizes than that of 'random'"),
    ({"corrupt": None, "ablate": 0.0, "reference": short(4)}, SweepError, "a reference is only for ablate='mean'"),
    ({"reference": short(4)}, SweepError, "a reference is only for ablate='mean' or 'mean_by_pos'; given ablate=None"),
    ({"metric": 3}, MetricError, r"a metric is a function of soft-capped logits \[run, vocab\] -> \[run\].*given 3"),
    ({"metric": gs.logit_diff(" Mary", ",\n")}, PromptError, r"an answer is one token; ',\\n' is 2: \[',', '\\n'\]"),
    ({"metric": lambda logits: logits}, MetricError, r"returned \(2, 61\) for logits of shape \(2, 61\).*shape \(2,\)"),
    ({"metric": lambda logits: 3.0}, MetricError, "the metric returned float"),
    ({"metric": lambda logits: logits[:, 0] * torch.nan}, MetricError, "the metric returned NaN"),
    ({"edits": [gs.ablate("z", layer=4)]}, SiteError, "there is no layer 4"),
    ({"edits": [gs.patch("resid_pre", torch.full((32,), torch.nan), layer=1)]}, EditError, "holds NaN or infinity"),
    ({"edits": [gs.patch("resid_pre", torch.ones(31), layer=1)]}, EditError, r"the source tensor has shape \(31,\)"),
    ({"edits": [gs.edit("logits", torch.tanh)]}, SweepError,
     "the function of gs.edit.'logits', tanh. names 15: give it pos=-1"),
    ({"edits": gs.ablate("z", layer=1)}, EditError, "edits is a list of edits; given one"),
    ({"edits": ["z"]}, EditError, "edits is a list of edits.*it holds 'z'"),
    ({"memory": "lots"}, BudgetError, "memory is a number of bytes or a text such as '2GiB' or '500MB'; given 'lots'"),
    ({"memory": 0}, BudgetError, "memory is a number of bytes"),
    ({"memory": "100 kB"}, SweepError,
     r"memory of 100,000 bytes is too little for a pass of 'random': it needs [\d,]+ bytes"),
    ({"model": "nano"}, GemmascopeError, "model is what gs.load returns"),
]  # fmt: skip


@pytest.mark.parametrize(("given_instead", "kind", "message"), BAD, ids=[f"{list(g)[-1]}-{m[:30]}" for g, _, m in BAD])
def test_a_sweep_that_cannot_be_is_refused(given_instead: Any, kind: Any, message: str, monkeypatch: Any) -> None:
    chunks = Chunks(monkeypatch)
    with pytest.raises(kind, match=message):
        gs.sweep(**{"by": ("layer", "pos"), "model": worded(), **PAIR, **given_instead})
    assert chunks.sizes == []  # nothing was swept in vain
