"""Dictionaries of embeddings are trained on the stored embeddings; at the site embed these are times sqrt(d_model)."""

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


def folder_of(params: dict[str, Any], folder: Path, named: bool) -> Path:
    write(folder / "embedding/width_4k/average_l0_6" if named else folder, params)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("named", [True, False])
def test_features_of_embeddings_equal_those_of_the_unscaled_embeddings(dtype: str, named: bool, tmp_path: Path) -> None:
    model = gs.load(checkpoint("lg").to(getattr(torch, dtype)))
    table = model.network.model.embed_tokens.weight
    params = arrays(D_MODEL)
    place = {} if named else {"site": "embed", "layer": "embedding"}
    sae = gs.load_sae(folder_of(params, tmp_path, named), model=model, any_model=True, **place)  # type: ignore[arg-type]
    assert (sae.site, sae.layer) == ("embed", None)
    stored = table.detach()[IDS].float().numpy()
    acts = plain_acts(params, stored)
    assert (acts > 0).any()
    trace = gs.trace(IDS, model=model)
    factor = float(torch.tensor(D_MODEL**0.5, dtype=getattr(torch, dtype)))
    site = trace["embed"].float()
    tolerance = 1e-5 if dtype == "float32" else 2e-2  # the site itself is rounded to the model's numbers
    assert np.allclose(site.numpy(), stored * factor, rtol=tolerance)
    exact = torch.from_numpy(stored * factor)
    encoded = np.zeros_like(acts)
    pos, feature, value = sae.sparse(exact)
    encoded[pos.numpy(), feature.numpy()] = value.numpy()
    assert np.allclose(encoded, acts, atol=1e-5)
    expected = plain_decode(params, acts) * factor
    assert np.allclose(sae.encode(exact).reconstruction.numpy(), expected, atol=1e-4)


def test_only_weights_of_embedding_dictionaries_are_rescaled(tmp_path: Path) -> None:
    params = arrays(D_MODEL)
    write(tmp_path / "embedding/width_4k/average_l0_6", params)
    write(tmp_path / "layer_1/width_4k/average_l0_6", params)
    embed = gs.load_sae(tmp_path, layer="embedding", any_model=True)
    resid = gs.load_sae(tmp_path, layer=1, site="resid_post", any_model=True)
    for name in ("b_enc", "threshold"):
        assert np.array_equal(getattr(embed, name).numpy(), params[name])
    for name, array in params.items():
        assert np.array_equal(getattr(resid, name).numpy(), array)
