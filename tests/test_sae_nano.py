"""The dictionary in the package: how well it reconstructs nano, the concepts of its features, and its training."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of

import gemmascope as gs
from gemmascope.errors import DictionaryError
from gemmascope.nano.training.concepts import CONCEPTS, labels
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.ties import Texts, ties_of
from gemmascope.sae.files import NANO
from gemmascope.sae.load import ABOUT
from gemmascope.sae.npz import read_params

FEW_DOZEN = 36


@cache
def fresh() -> Texts:
    """Texts that were used neither for training the dictionary nor for choosing its ties."""
    return Texts.of(gs.load_sae("nano"), gs.load(), "test", 700)


# -- the concepts' own rules --


def marked(concept: str, text: str) -> list[str]:
    tokens = text.split("|")
    return [token for token, holds in zip(tokens, labels(tokens)[:, list(CONCEPTS).index(concept)], strict=True) if holds]


@pytest.mark.parametrize(
    ("concept", "text", "expected"),
    [
        ("a place", "<bos>|Anna| went| to| the| park|.", [" park"]),
        ("a woman's name", "<bos>|Anna| met| John|.", ["Anna"]),
        ("a name said before", "<bos>|Anna| and| John|.| John| gave| Anna", [" John", " Anna"]),
        ("a name for the first time", "<bos>|Anna| and| John|.| John| gave| Anna", ["Anna", " John"]),
        ("a plural right after 'the'", "<bos>|The| keys| near| the| keys|,| keys", [" keys", " keys"]),
        ("inside a bracket", '<bos>| the| (|the| red|"|hat|"|)|.', [" (", "the", " red", '"', "hat", '"']),
        ("inside a quote", '<bos>| the| (|the| red| "|hat|"|)|.', [' "', "hat"]),
        ("a colour inside a bracket or quote", "<bos>| red| [|the| blue| hat|]| red", [" blue"]),
        ("a colour inside a bracket", '<bos>| "|the| red| [|the| blue| hat|]|"', []),
        ("digit 3 of a number", "<bos>|In| |1|7|4|1| to| |1|8", ["4"]),
        ("right before a name", "<bos>| met| John| and| Anna", [" met", " and"]),
        ("'the' in front of a place", "<bos>|The| park| near| the| hat", ["The"]),
        ("the user's turn", "<bos>|<start_of_turn>|user|\n|Hi|<end_of_turn>|\n|<start_of_turn>|model|\n|Yes", ["\n", "Hi"]),
        ("the first word of a sentence", "<bos>|Anna| ran|.| She| fell|.", ["Anna", " She"]),
    ],
)
def test_a_concept_marks_its_tokens(concept: str, text: str, expected: list[str]) -> None:
    assert marked(concept, text) == expected


# -- what ships --


@pytest.mark.nano
def test_the_package_holds_one_small_dictionary_in_gemma_scopes_format() -> None:
    (path,) = NANO.rglob("params.npz")
    assert sum(file.stat().st_size for file in NANO.rglob("*") if file.is_file()) < 1_500_000
    assert path.relative_to(NANO).parts[:2] == ("layer_3", "width_1k")
    d = gs.load_sae()
    assert np.array_equal(read_params(path)["W_dec"].astype(np.float32), d.W_dec.numpy())
    assert (d.site, d.layer, d.n_features, d.d_in) == ("resid_post", 3, 1024, 128)
    assert (d.threshold > 0).all()
    assert torch.allclose(d.W_dec.norm(dim=1), torch.ones(1024), atol=2e-3)
    with pytest.raises(DictionaryError, match=r"trained for nano, 'resid_post' of layer 3.*given 'random'"):
        d.require_fit(model_of(checkpoint("lglg")))
    with pytest.raises(DictionaryError, match=r"whose weights or dtype differ .*any_model=True"):
        d.require_fit(gs.load(dtype="bfloat16"))
    gs.load_sae(any_model=True).require_fit(gs.load(dtype="bfloat16"))


@pytest.mark.nano
def test_nanos_dictionary_explains_the_stream_and_recovers_the_loss() -> None:
    assert fresh().explained >= 0.88
    assert 8 <= len(fresh().pos) / fresh().n_rows <= 12
    loss = gs.load_sae().loss_recovered(list(islice(texts("another seed"), 60)))
    assert loss.recovered >= 0.985
    assert loss.added <= 0.12


@pytest.mark.nano
def test_a_few_dozen_features_tie_to_a_concept_on_fresh_texts() -> None:
    d = gs.load_sae()
    again = {feature: fresh().tie(feature, tie.concept, tie.above) for feature, tie in d.concepts.items()}
    assert all(tie.precision >= 0.7 and tie.recall >= 0.4 for tie in again.values())  # rare words: some luck either way
    good = {feature: tie for feature, tie in again.items() if tie.precision >= 0.8 and tie.recall >= 0.5}
    assert len(good) >= FEW_DOZEN + 14
    concepts = {tie.concept for tie in good.values()}
    assert len(concepts) >= FEW_DOZEN - 4
    assert concepts >= {
        "a place", "a person's name", "a name said before", "a plural right after 'the'", "a verb with a plural subject",
        "a colour inside a bracket or quote", "'the' in front of what a bracket or quote holds", "a colour", "a country",
        "a month", "digit 1 of a number",
    }  # fmt: skip
    strangers = {feature: fresh().tie(feature, "a month", tie.above) for feature, tie in d.concepts.items()}
    assert sum(tie.precision > 0.5 for tie in strangers.values()) <= 1  # a tie is to its own concept


@pytest.mark.nano
def test_features_of_a_prompt_have_known_concepts_and_can_be_swept() -> None:
    d = gs.load_sae()
    features = d.encode(gs.trace("When Mary and John went to the store, John gave a drink to"))
    assert "a place" in [concept for _, _, concept in features.top(5, " store")]
    assert features.explained > 0.8
    assert "a name said before" in [concept for _, _, concept in features.top(5, 10)]
    s = gs.feature_sweep(d, "When Mary and John went to the store, John gave a drink to", gs.logit_diff(" Mary", " John"))
    assert set(s.effect.dims) == {"feature"}
    feature = s.top(1)[0][0]["feature"]
    changed = gs.trace(features.ids, edits=[gs.splice(d, {feature: 0.0})]).next_logits
    mary, john = (gs.load().tokenizer.single(name) for name in (" Mary", " John"))
    assert abs(float(changed[mary] - changed[john]) - s.base - s.top(1)[0][1]) <= 1e-4


# -- its ties; test_training.py tests how it is made --


@pytest.mark.nano
def test_ties_equal_a_plain_count() -> None:
    counted, d = fresh(), gs.load_sae()
    column = list(CONCEPTS).index("a place")
    feature = next(f for f, tie in d.concepts.items() if tie.concept == "a place")
    above = d.concepts[feature].above
    rows = set(counted.pos[(counted.feature == feature) & (counted.value > above)].tolist())
    places = set(counted.holds[:, column].nonzero().flatten().tolist())
    tie = counted.tie(feature, "a place", above)
    assert tie.precision == round(len(rows & places) / len(rows), 3)
    assert tie.recall == round(len(rows & places) / len(places), 3)
    assert set(ties_of(counted, counted)) >= {feature}


def test_the_table_beside_the_weights_is_read(tmp_path: Path) -> None:
    (path,) = NANO.rglob(ABOUT)
    d = gs.load_sae(path.parent)
    assert len(d.concepts) >= FEW_DOZEN
    assert {tie.concept for tie in d.concepts.values()} <= set(CONCEPTS)
    assert f"{len(d.concepts)} features tied to a concept" in repr(d)
