"""nano's transcoders: what they explain, alone and all at once, the concepts of their features, and how they are made."""

from __future__ import annotations

import json
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import gemmascope as gs
from gemmascope.errors import DictionaryError
from gemmascope.nano.training.concepts import CONCEPTS
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.sparse.recipe import Recipe
from gemmascope.nano.training.sparse.rows import pass_rows
from gemmascope.nano.training.sparse.run import Run
from gemmascope.nano.training.sparse.write import rounded, write
from gemmascope.nano.training.train_transcoders import BITS, all_spliced, recipe
from gemmascope.sae.about import ABOUT
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.files import OWN
from gemmascope.sae.load import as_tensors
from gemmascope.sae.loss import LossRecovered

FOLDER = OWN["nano-transcoders"]
LAYERS = range(6)
SMALL = Recipe(
    seed=3, site="transcoder", layer=1, features=96, active=4, rows=3000, batch=64, steps=40, dead_after=2, revived=4,
    revived_rows=32, threshold_rows=32, from_examples=0.2,
)  # fmt: skip


@cache
def transcoders() -> list[Dictionary]:
    return [gs.load_sae("nano-transcoders", layer=layer, model=gs.load()) for layer in LAYERS]


@cache
def fresh(n: int = 40) -> list[str]:
    """Texts that no transcoder was trained on."""
    return list(islice(texts("fresh texts"), n))


@pytest.mark.nano
def test_there_is_one_a_layer_in_gemma_scopes_layout_and_they_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 4_000_000
    for layer, one in enumerate(transcoders()):
        assert (one.site, one.layer, one.n_features, one.d_in, one.d_out) == ("transcoder", layer, 1536, 128, 128)
        assert (one.read_from, one.writes, one.reads_normed) == ("resid_mid", "mlp_out", True)
        assert torch.allclose(one.W_dec.norm(dim=1), torch.ones(1536), atol=1e-2)
        assert f"gs.load_sae('nano-transcoders', layer={layer})" in repr(one)
    with pytest.raises(DictionaryError, match=r"'?nano-transcoders'? has 6 dictionaries that fit: say which, by layer"):
        gs.load_sae("nano-transcoders")
    with pytest.raises(DictionaryError, match="whose weights or dtype differ"):
        transcoders()[0].require_fit(gs.load(dtype="bfloat16"))


@pytest.mark.nano
@pytest.mark.parametrize("layer", LAYERS)
def test_a_transcoder_explains_what_its_file_says(layer: int) -> None:
    one, model = transcoders()[layer], gs.load()
    read, written = pass_rows(model, recipe(layer), [model.ids(text) for text in fresh(150)])
    pos, feature, value = one.sparse(read)
    left = written - one.summed(pos, feature, value, len(read))
    explained = 1 - float(left.square().sum() / (written - written.mean(0)).square().sum())
    (path,) = (FOLDER / f"layer_{layer}").rglob(ABOUT)
    measured = json.loads(path.read_text(encoding="utf-8"))["measured"]
    assert explained >= 0.89
    assert abs(explained - measured["explained variance"]) <= 0.02
    assert 9 <= len(pos) / len(read) <= 13
    assert abs(len(pos) / len(read) - measured["active features a position"]) <= 1


@pytest.mark.nano
def test_all_six_in_the_place_of_the_mlps_keep_most_of_what_the_mlps_do() -> None:
    loss = all_spliced(gs.load(), transcoders(), fresh())
    assert loss.recovered >= 0.99
    # The same numbers by single runs.
    edits = [gs.splice(one, keep_error=False) for one in transcoders()]
    logprobs = [gs.trace(text, edits=edits).logits.log_softmax(-1)[1:-1] for text in fresh(5)]
    ids = [gs.load().ids(text)[2:] for text in fresh(5)]
    each = torch.cat([-row.gather(1, one[:, None])[:, 0] for row, one in zip(logprobs, ids, strict=True)])
    few = all_spliced(gs.load(), transcoders(), fresh(5))
    assert abs(float(each.mean()) - few.spliced) <= 1e-4
    assert few.n_tokens == len(each)


@pytest.mark.nano
def test_features_tie_to_concepts_and_are_read_in_a_run() -> None:
    assert all(tie.concept in CONCEPTS for one in transcoders() for tie in one.concepts.values())
    assert min(len(one.concepts) for one in transcoders()) >= 30
    features = transcoders()[2].encode(gs.trace("When Mary and John went to the store, John gave a drink to"))
    assert features.explained > 0.8
    assert features.reconstruction.shape == (15, 128)


# -- how they are made --


@pytest.mark.nano
def test_rows_are_what_a_trace_reads() -> None:
    model, ids = gs.load(), [gs.load().ids(text) for text in fresh(3)]
    read, written = pass_rows(model, SMALL, ids)
    expected = [gs.trace(one.tolist()) for one in ids]
    stream = torch.cat([trace["resid_mid", 1][1:] for trace in expected])
    assert torch.allclose(read, stream / stream.square().mean(1, keepdim=True).sqrt(), atol=1e-4)
    assert torch.allclose(written, torch.cat([trace["mlp_out", 1][1:] for trace in expected]), atol=1e-4)


@pytest.mark.nano
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight, stopped = (Run(tmp_path / name, gs.load(), SMALL) for name in ("straight", "stopped"))
    straight.train()
    stopped.train(17)
    resumed = Run(tmp_path / "stopped", gs.load(), SMALL)
    assert resumed.step == 17
    assert (resumed.asleep > SMALL.dead_after).any()  # the loss that revives features is at work
    resumed.train()
    for name, array in straight.arrays().items():
        assert np.array_equal(array, resumed.arrays()[name]), name


@pytest.mark.nano
def test_the_loss_and_its_gradients_are_those_of_dense_activations(tmp_path: Path) -> None:
    run = Run(tmp_path, gs.load(), SMALL)
    run.train(9)
    numbers = torch.arange(64)
    x, target = run.read.at(numbers), run.written.at(numbers)
    asleep = run.asleep.clone()
    sparse = run._loss(x, target)
    found = torch.autograd.grad(sparse, list(run.weights.values()))
    w = run.weights
    pre = (x @ w["W_enc"].T + w["b_enc"]).relu()
    acts = pre * (pre >= run._cut(pre.detach()))
    residual = target - acts @ w["W_dec"] - w["b_dec"]
    dead = torch.where((acts > 0).any(0), 0.0, asleep + 1) > SMALL.dead_after
    assert dead.any()
    revived = (pre * dead)[: SMALL.revived_rows]
    revived = revived * (revived >= revived.detach().topk(min(int(dead.sum()), SMALL.revived), 1).values[:, -1:])
    more = (revived @ w["W_dec"] - residual[: SMALL.revived_rows].detach()).square().sum(1).mean()
    dense = residual.square().sum(1).mean() + SMALL.revived_weight * more
    assert torch.allclose(sparse, dense, rtol=1e-5)
    for one, expected in zip(found, torch.autograd.grad(dense, list(w.values())), strict=True):
        assert torch.allclose(one, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.nano
def test_the_saved_format_reconstructs_as_the_trained_weights_do(tmp_path: Path) -> None:
    run = Run(tmp_path, gs.load(), SMALL)
    run.train()
    w = {name: weight.detach() for name, weight in run.weights.items()}
    numbers = torch.arange(200)
    pre = (run.read.at(numbers) @ w["W_enc"].T + w["b_enc"]).relu()
    expected = ((pre * (pre > run.threshold)) @ w["W_dec"] + w["b_dec"]) * run.written.scale + run.written.mean
    saved = Dictionary(**as_tensors(run.arrays(), "cpu"), site="transcoder", layer=1)
    found = saved.encode(run.read.rows[:200].float()).reconstruction
    near = (found - expected).norm(dim=1) <= 1e-2 * expected.norm(dim=1)
    assert float(near.float().mean()) >= 0.95  # float16, and a few that cross the threshold


def test_rounding_keeps_so_many_bits_to_the_nearest() -> None:
    numbers = np.linspace(-3, 3, 1001).astype(np.float16)
    short = rounded(numbers, BITS)
    assert np.array_equal(rounded(numbers, 10), numbers)
    assert (np.abs(short.astype(np.float32) - numbers) <= np.abs(numbers.astype(np.float32)) * 2.0 ** -(BITS + 1)).all()
    assert len(np.unique(short)) < len(np.unique(numbers))
    assert not (short.view(np.uint16) & ((1 << (10 - BITS)) - 1)).any()


@pytest.mark.nano
def test_a_run_is_written_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dictionary, "loss_recovered", lambda *_, **__: LossRecovered(1.0, 2.0, 3.0, 4))
    run = Run(tmp_path, gs.load(), SMALL)
    run.train(20)
    path = write(run, tmp_path / "out", BITS, 60)
    one = gs.load_sae(path, model=gs.load())
    assert path.parts[-3:-1] == ("layer_1", "width_96")
    assert (one.site, one.layer, one.n_features) == ("transcoder", 1, 96)
    assert np.array_equal(one.W_enc.numpy(), rounded(run.arrays()["W_enc"], BITS).astype(np.float32))
    assert json.loads((path / ABOUT).read_text(encoding="utf-8"))["measured"]["loss recovered"] == 0.5


@pytest.mark.nano
def test_a_graph_of_nano_takes_them_by_itself() -> None:
    asked = {"targets": " the", "max_nodes": 5, "progress": False}
    own = gs.attribution_graph("Mary and John went to", **asked)
    named = gs.attribution_graph("Mary and John went to", dictionaries=transcoders(), **asked)
    assert own.ids == named.ids
    assert own.edges.equals(named.edges)


@pytest.mark.nano
def test_a_graph_of_nano_by_autoencoders_takes_its_own() -> None:
    asked = {"basis": "sae", "targets": " the", "max_nodes": 5, "progress": False}
    own = gs.attribution_graph("Mary and John went to", **asked)
    named = gs.attribution_graph("Mary and John went to", dictionaries=[gs.load_sae("nano")], **asked)
    assert own.ids == named.ids
    assert own.edges.equals(named.edges)
    assert own.nodes.query("kind == 'feature'")["layer"].unique().tolist() == [3]
