"""Splices: without a change the run stays as it was; a changed feature has the effect of a hook in transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from random_dictionaries import FEATURES, arrays, dictionary, plain_acts, plain_decode
from reference import error
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.edits.edit import BoundEdit
from gemmascope.errors import DictionaryError, EditError, SiteError, TraceError
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.splice import Splice
from gemmascope.sweeps.digest import digest, run_parts
from gemmascope.sweeps.variants import BaseRun, Variant, final_residuals

CLOSE = 1e-5
N_POS = 9
IDS = [2, *prompt(N_POS - 1)]  # <bos> in front
KINDS = "lgl"
WIDTHS = {"resid_post": 32, "mlp_out": 32, "z": 96, "attn_out": 32, "resid_pre": 32, "transcoder": 32}


@cache
def pair() -> tuple[Gemma2ForCausalLM, Model]:
    source = checkpoint(KINDS)
    return source, model_of(source)


def model() -> Model:
    return pair()[1]


def sae(site: str, layer: int = 1, seed: int = 0) -> Dictionary:
    return dictionary(WIDTHS[site], site, layer, seed=seed)


def run(*edits: Any, ids: Any = IDS) -> gs.Trace:
    return gs.trace(ids, model=model(), edits=edits)


def own_values(features: gs.Features, pos: int) -> dict[int, float]:
    return dict(
        zip(features.feature[features.pos == pos].tolist(), features.value[features.pos == pos].tolist(), strict=True)
    )


# -- the law of the error term --


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("layer", [0, 2])
def test_a_splice_that_changes_no_feature_leaves_the_run_as_it_was(site: str, layer: int) -> None:
    d, clean = sae(site, layer), run()
    assert torch.equal(run(gs.splice(d)).logits, clean.logits)
    inactive = [f for f in range(FEATURES) if f not in own_values(d.encode(clean), 5)]
    assert inactive
    assert torch.equal(run(gs.splice(d, dict.fromkeys(inactive, 0.0), pos=5)).logits, clean.logits)
    same = gs.splice(d, own_values(d.encode(clean), 5), pos=5)
    assert error(run(same).logits, clean.logits) <= CLOSE


@settings(deadline=None, max_examples=12, derandomize=True)
@given(site=st.sampled_from(list(WIDTHS)), seed=st.integers(0, 5), data=st.data())
def test_the_error_term_is_kept_exactly(site: str, seed: int, data: Any) -> None:
    d = sae(site, seed=seed)
    features = data.draw(st.dictionaries(st.integers(0, FEATURES - 1), st.floats(0, 5), min_size=1, max_size=4))
    clean = d.encode(run())
    written = run(gs.splice(d, features))[d.writes, 1].flatten(1)
    acts = torch.tensor(dense(clean))
    before = d.decode(acts)
    acts[1:, list(features)] = torch.tensor(list(features.values()))
    expected = clean.error + d.decode(acts)
    expected[0] = clean.error[0] + before[0]
    assert error(written, expected) <= CLOSE
    assert torch.equal(written[0], clean.target[0])  # <bos> is left alone


def dense(features: gs.Features) -> np.ndarray[Any, Any]:
    acts = np.zeros((len(features), FEATURES), np.float32)
    acts[features.pos, features.feature] = features.value
    return acts


# -- transformers with a hook --


def in_transformers(site: str, layer: int, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The logits with a hook at the site in transformers. change: (value read, value at the site) -> new value."""
    source = pair()[0]
    block = source.model.layers[layer]
    stream: list[Tensor] = []
    keep = block.pre_feedforward_layernorm.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
    if site == "z":
        hook = block.self_attn.o_proj.register_forward_pre_hook(lambda _, args: (change(args[0], args[0]),))
    elif site == "resid_post":
        hook = block.register_forward_hook(lambda _, __, out: change(out, out))
    else:
        norm = block.post_feedforward_layernorm
        hook = norm.register_forward_hook(lambda _, __, out: change(stream[-1] if site == "transcoder" else out, out))
    try:
        with torch.no_grad():
            return source(torch.tensor([IDS])).logits[0]
    finally:
        keep.remove()
        hook.remove()


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "z", "transcoder"])
@pytest.mark.parametrize("keep_error", [True, False])
def test_a_changed_feature_does_what_a_hook_in_transformers_does(site: str, keep_error: bool) -> None:
    d, params, features = sae(site), arrays(WIDTHS[site]), {3: 2.0, 11: 0.0, 17: 4.5}

    def change(read: Tensor, out: Tensor) -> Tensor:
        x = read[0].double().numpy()
        if site == "transcoder":
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        before = plain_acts(params, x)
        after = before.copy()
        after[:, list(features)] = list(features.values())
        new = plain_decode(params, after)
        if keep_error:
            new = out[0].double().numpy() + new - plain_decode(params, before)
        new[0] = out[0, 0].numpy()
        return torch.from_numpy(new).float()[None]

    spliced = run(gs.splice(d, features, keep_error=keep_error))
    assert error(spliced.logits, in_transformers(site, 1, change)) <= CLOSE
    assert error(spliced.logits, run().logits) > 100 * CLOSE


@pytest.mark.parametrize("site", ["resid_post", "z", "transcoder"])
def test_a_splice_is_a_patch_of_what_it_writes(site: str) -> None:
    d = sae(site)
    spliced = run(gs.splice(d, {4: 3.0}, pos=[2, 5]))
    patched = run(gs.patch(d.writes, spliced[d.writes, 1], layer=1))
    for key in ("logits", ("resid_mid", 2), ("pattern", 2)):
        assert torch.equal(spliced[key], patched[key])


# -- everywhere that edits go --


def test_rerunning_the_layer_of_a_transcoder_gives_the_same_bits() -> None:
    d = sae("transcoder")
    spliced = run(gs.splice(d, {4: 3.0}))
    stream = spliced.stream[2]
    assert torch.equal(spliced["resid_mid", 1] + spliced["mlp_out", 1], stream)
    assert torch.equal(spliced["mlp_raw", 1], run()["mlp_raw", 1])
    assert not torch.equal(spliced["mlp_out", 1], run()["mlp_out", 1])


def test_a_transcoder_reads_the_stream_with_the_edits_before_it() -> None:
    d = sae("transcoder")
    push = gs.add("resid_mid", torch.linspace(-3, 3, 32), layer=1)
    spliced = run(push, gs.splice(d, {4: 3.0}))
    pushed = run(push)
    change = (torch.tensor([3.0]) - d.activations(d.input_of(pushed["resid_mid", 1]), torch.tensor([4]))) @ d.W_dec[[4]]
    change[0] = 0
    assert error(spliced["mlp_out", 1], pushed["mlp_out", 1] + change) <= CLOSE


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "z", "transcoder", "resid_pre"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_spliced_variants_of_a_pass_equal_single_runs(site: str, layer: int) -> None:
    d = sae(site, layer)
    ids = model().ids(IDS)
    edits = [gs.splice(d, {f: v}, pos=pos) for f, v, pos in ((3, 2.0, 4), (3, 2.0, [2, 7]), (8, 0.5, None), (9, 4.0, -1))]
    base = [gs.add("resid_pre", torch.ones(32), layer=1, pos=3)]
    bound = tuple(edit.bind(model(), ids) for edit in base)
    residuals = final_residuals(
        model(), [BaseRun(ids, bound, (N_POS - 1,))], [Variant(0, (edit.bind(model(), ids),)) for edit in edits]
    )
    for row, edit in zip(residuals.rows, edits, strict=True):
        assert error(row, run(*base, edit).stream[-1][-1]) <= CLOSE


def test_prompts_of_different_lengths_are_spliced_in_one_pass() -> None:
    d = sae("transcoder")
    prompts = [[2, *prompt(n, seed=n)] for n in (3, 8, 3, 6)]
    edit = gs.splice(d, {4: 3.0})
    for spliced, ids in zip(gs.trace(prompts, model=model(), edits=[edit]), prompts, strict=True):
        assert error(spliced.logits, run(edit, ids=ids).logits) <= CLOSE


@pytest.mark.parametrize("site", ["resid_post", "transcoder"])
def test_generation_splices_new_positions_as_well(site: str) -> None:
    edit = gs.splice(sae(site), {4: 6.0, 7: 3.0})
    generation = gs.generate(IDS, model=model(), edits=[edit], max_new_tokens=6)
    ids = list(IDS)
    for _ in range(6):
        ids.append(int(run(edit, ids=ids).next_logits.argmax()))
    assert list(map(int, generation.ids)) == ids


def test_gradients_go_through_a_splice() -> None:
    edit = gs.splice(sae("transcoder"), {4: 3.0}, pos=-1)
    metric = gs.logit_diff(5, 9)
    gradient = run(edit).grad(metric, [("resid_pre", 1)])["resid_pre", 1]
    step = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 1e-2
    moved = [run(gs.add("resid_pre", step * sign, layer=1, pos=-1), edit).next_logits for sign in (1, -1)]
    change = float((moved[0] - moved[1])[5] - (moved[0] - moved[1])[9]) / 2
    assert abs(float(gradient[-1] @ step) - change) <= 2e-2 * abs(change) + 1e-4


# -- how it prints, compares and is told apart --


def test_a_splice_prints_as_its_call_and_compares() -> None:
    d = dictionary(32, "resid_post", 1, call="gs.load_sae('x')")
    edit = gs.splice(d, {np.int64(3): 2, 5: 0.0}, pos=torch.tensor([1, 2]))
    assert repr(edit) == "gs.splice(gs.load_sae('x'), features={3: 2.0, 5: 0.0}, pos=[1, 2])"
    assert repr(gs.splice(d, keep_error=False)) == "gs.splice(gs.load_sae('x'), keep_error=False)"
    assert edit == gs.splice(d, {3: 2.0, 5: 0.0}, pos=[1, 2])
    assert edit != gs.splice(d, {3: 2.0, 5: 0.5}, pos=[1, 2])
    assert run(edit).edits == (edit,)
    assert run(gs.splice(d, {3: 1.0})).edits == (gs.splice(d, {3: 1.0}),)


def test_dictionaries_with_different_numbers_have_different_digests() -> None:
    ids = model().ids(IDS)

    def digest_of(edit: Splice) -> str:
        return digest(run_parts(ids, [edit.bind(model(), ids)]))

    first, second = (dictionary(32, "resid_post", 1, seed=seed, call="gs.load_sae('x')") for seed in (0, 1))
    assert digest_of(gs.splice(first, {3: 1.0})) == digest_of(gs.splice(first, {3: 1.0}))
    assert digest_of(gs.splice(first, {3: 1.0})) != digest_of(gs.splice(second, {3: 1.0}))


def test_a_sweep_over_a_spliced_run_equals_a_loop() -> None:
    edit, metric = gs.splice(sae("transcoder"), {4: 3.0, 6: 2.0}), gs.logit_diff(5, 9)
    corrupt = [2, *prompt(N_POS - 1, seed=3)]
    s = gs.sweep(IDS, corrupt, metric, site="resid_pre", edits=[edit], model=model())
    source = gs.trace(IDS, model=model())
    base = run(edit, ids=corrupt).next_logits
    for layer in range(3):
        for pos in (1, 4, 8):
            cell = run(edit, gs.patch("resid_pre", source, layer=layer, pos=pos), ids=corrupt).next_logits
            change = float((cell - base)[5] - (cell - base)[9])
            assert abs(float(s.effect.sel(layer=layer, pos=pos)) - change) <= 1e-4


def test_a_trace_with_a_splice_is_not_saved_and_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot be saved.*t\['mlp_out', 1\], and patch that instead"):
        run(gs.splice(sae("transcoder"), {4: 3.0})).save(tmp_path / "x.trace")
    assert not (tmp_path / "x.trace").exists()


# -- refusals --


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({40: 1.0}, "no feature 40: the features of sae go from 0 to 39"),
        ({-1: 1.0}, "no feature -1"),
        ({True: 1.0}, "no feature True"),
        ({"3": 1.0}, "no feature '3'"),
        ({3: "x"}, "a feature's value is a number; given 'x'"),
        ({3: None}, "a feature's value is a number; given None"),
        ({3: float("nan")}, "finite number; given nan"),
        ({3: float("inf")}, "finite number; given inf"),
        ([3], "features is a mapping of numbers"),
    ],
)
def test_bad_features_are_refused(features: Any, message: str) -> None:
    with pytest.raises(DictionaryError) as caught:
        gs.splice(sae("resid_post"), features)
    assert message in str(caught.value)


def test_a_splice_that_does_not_fit_the_run_is_refused() -> None:
    with pytest.raises(DictionaryError, match=r"gs\.load_sae returns; given str"):
        gs.splice("nano", {3: 1.0})  # type: ignore[arg-type]
    with pytest.raises(DictionaryError, match=r"trained for .*'resid_post' of layer 7; given 'random'.*there is no layer 7"):
        run(gs.splice(sae("resid_post", 7), {3: 1.0}))
    with pytest.raises(DictionaryError, match=r"layer 1, and reads 24 numbers; given 'random'.*whose 'resid_post' has 32"):
        run(gs.splice(dictionary(24, "resid_post", 1), {3: 1.0}))
    with pytest.raises(SiteError, match="no position 40"):
        run(gs.splice(sae("resid_post"), {3: 1.0}, pos=40))
    with pytest.raises(EditError, match="leaves <bos> alone, and the run has nothing else: name pos=0"):
        run(gs.splice(sae("resid_post"), {3: 1.0}), ids=[2])
    alone = run(gs.splice(sae("resid_post"), {3: 1.0}, pos=0), ids=[2])
    assert not torch.equal(alone.logits, run(ids=[2]).logits)


def test_an_edit_that_reads_gets_the_rows_of_its_own_positions() -> None:
    """The mechanism behind a transcoder's splice: rows that start later, positions in any order."""
    values_read: list[Tensor] = []

    class Decomposition(Splice):
        def write(self, old: Tensor, values: Tensor | None) -> Tensor:
            assert values is not None
            values_read.append(values)
            return old + values[:, :1]

    d = sae("transcoder")
    edit = Decomposition(site="mlp_out", layer=1, pos=[6, 3], dictionary=d, features={})
    bound: BoundEdit = edit.bind(model(), model().ids(IDS))
    value, read = torch.zeros(5, 32), torch.arange(5.0)[:, None].expand(5, 32)
    bound.write_to(value, 4, read)  # the rows of positions 4 to 8: position 3 is not among them
    assert [v.tolist() for v in values_read] == [read[2:3].tolist()]
    assert value.nonzero()[:, 0].unique().tolist() == [2]
