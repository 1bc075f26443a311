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
from gemmascope.nano.training.dictionary_files import rounded, small_arrays, write
from gemmascope.nano.training.train_transcoders import BITS, all_spliced
from gemmascope.sae.about import ABOUT
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.files import OWN
from gemmascope.sae.loss import LossRecovered

FOLDER = OWN["nano-transcoders"]
LAYERS = range(6)


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
    one, each = transcoders()[layer], gs.trace(fresh(150))
    read = torch.cat([one.input_of(trace["resid_mid", layer][1:]) for trace in each])
    written = torch.cat([trace["mlp_out", layer][1:] for trace in each])
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


def test_rounding_keeps_so_many_bits_to_the_nearest() -> None:
    numbers = np.linspace(-3, 3, 1001).astype(np.float16)
    short = rounded(numbers, BITS)
    assert np.array_equal(rounded(numbers, 10), numbers)
    assert (np.abs(short.astype(np.float32) - numbers) <= np.abs(numbers.astype(np.float32)) * 2.0 ** -(BITS + 1)).all()
    assert len(np.unique(short)) < len(np.unique(numbers))
    assert not (short.view(np.uint16) & ((1 << (10 - BITS)) - 1)).any()


@pytest.mark.nano
def test_a_transcoder_is_written_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dictionary, "loss_recovered", lambda *_, **__: LossRecovered(1.0, 2.0, 3.0, 4))
    path = write(transcoders()[1], gs.load(), tmp_path / "out", BITS, 60)
    one = gs.load_sae(path, model=gs.load())
    assert path.parts[-3:-1] == ("layer_1", "width_1k")
    assert (one.site, one.layer, one.n_features) == ("transcoder", 1, 1536)
    assert np.array_equal(one.W_enc.numpy(), transcoders()[1].W_enc.numpy())  # rounded already
    assert np.array_equal(small_arrays(one)["W_dec"].astype(np.float32), one.W_dec.numpy())
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
