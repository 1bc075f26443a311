"""Dictionaries of embeddings are trained on embeddings as stored; at the site embed they are times sqrt(d_model)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from random_dictionaries import arrays, plain_acts, plain_decode, write

import gemmascope as gs

IDS = [2, 5, 9, 11, 4, 60]
# sqrt(32) is no number of bfloat16: the model rounds it.
D_MODEL = 32


def folder_of(made: dict[str, Any], folder: Path, named: bool) -> Path:
    write(folder / "embedding/width_4k/average_l0_6" if named else folder, made)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("named", [True, False])
def test_features_of_embeddings_are_those_of_the_stored_ones(dtype: str, named: bool, tmp_path: Path) -> None:
    model = gs.load(checkpoint("lg").to(getattr(torch, dtype)))
    table = model.network.model.embed_tokens.weight
    made = arrays(D_MODEL)
    said = {} if named else {"site": "embed", "layer": "embedding"}
    sae = gs.load_sae(folder_of(made, tmp_path, named), model=model, any_model=True, **said)  # type: ignore[arg-type]
    assert (sae.site, sae.layer) == ("embed", None)
    stored = table.detach()[IDS].float().numpy()
    acts = plain_acts(made, stored)
    assert (acts > 0).any()
    trace = gs.trace(IDS, model=model)
    factor = float(torch.tensor(D_MODEL**0.5, dtype=getattr(torch, dtype)))
    site = trace["embed"].float()
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # the site itself is rounded to the model's numbers
    assert np.allclose(site.numpy(), stored * factor, rtol=tolerance)
    exact = torch.from_numpy(stored * factor)
    found = np.zeros_like(acts)
    pos, feature, value = sae.sparse(exact)
    found[pos.numpy(), feature.numpy()] = value.numpy()
    assert np.allclose(found, acts, atol=1e-5)
    wanted = plain_decode(made, acts) * factor
    assert np.allclose(sae.encode(exact).reconstruction.numpy(), wanted, atol=1e-4)


def test_thresholds_and_biases_of_the_encoder_stay_and_other_sites_are_not_touched(tmp_path: Path) -> None:
    made = arrays(D_MODEL)
    write(tmp_path / "embedding/width_4k/average_l0_6", made)
    write(tmp_path / "layer_1/width_4k/average_l0_6", made)
    embed = gs.load_sae(tmp_path, layer="embedding", any_model=True)
    other = gs.load_sae(tmp_path, layer=1, site="resid_post", any_model=True)
    for name in ("b_enc", "threshold"):
        assert np.array_equal(getattr(embed, name).numpy(), made[name])
    for name, array in made.items():
        assert np.array_equal(getattr(other, name).numpy(), array)
