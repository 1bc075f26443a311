"""Dictionaries in the formats of SAELens, dictionary_learning and circuit-tracer, and arrays in memory.

The files are written here, as those libraries write them, and what they compute is written out plainly. tests/peers holds
the same readers to the libraries themselves.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from random_dictionaries import arrays, write
from reference import error
from safetensors.torch import save_file
from torch import Tensor

import gemmascope as gs
from gemmascope.errors import DictionaryError
from gemmascope.sae.catalogue import DictionaryRequest, Entry
from gemmascope.sae.published import find_published, published

CLOSE = 1e-5
D, N = 32, 40
IDS = [2, *prompt(8)]
HOOK = "blocks.1.hook_resid_post"


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 7 * len(shape))) * scale


def matrices(seed: int = 0, d_out: int = D) -> dict[str, Tensor]:
    return {
        "W_enc": draw(D, N, seed=seed, scale=D**-0.5),
        "W_dec": draw(N, d_out, seed=seed + 1, scale=N**-0.5),
        "b_enc": draw(N, seed=seed, scale=0.2),
        "b_dec": draw(d_out, seed=seed + 1, scale=0.2),
    }


def saelens(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A folder as SAELens 6 writes it."""
    about = {"model_name": "gemma-2-2b", "hook_name": HOOK} | config.pop("metadata", {})
    whole = {"d_in": D, "d_sae": N, "dtype": "float32", "apply_b_dec_to_input": False, "metadata": about} | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(whole))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def learnt(folder: Path, tensors: dict[str, Tensor], kind: str, **trainer: Any) -> Path:
    """A folder as dictionary_learning writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "layer": 1,
        "lm_name": "google/gemma-2-2b",
        "submodule_name": "resid_post_layer_1",
    } | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


def require_equal(ours: gs.Dictionary, x: Tensor, acts: Tensor, reconstruction: Tensor) -> None:
    features, mine = ours.encode(x), torch.zeros(len(x), N)
    mine[features.pos, features.feature] = features.value
    assert 0.02 < float((acts != 0).float().mean()) < 0.95
    assert float((mine - acts).abs().max()) <= CLOSE * float(acts.abs().max())
    for value in (features.reconstruction, ours.decode(acts, x)):
        assert float((value - reconstruction).abs().max()) <= CLOSE * float(reconstruction.abs().max())


def require_message(call: Callable[[], Any], *expected: str, error: type[Exception] = DictionaryError) -> None:
    with pytest.raises(error) as caught:
        call()
    for part in expected:
        assert part in str(caught.value), str(caught.value)


X = draw(30, D, seed=5, scale=1.5) + 0.2


def kept(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row, row by row."""
    acts = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        for feature in sorted(range(len(values)), key=lambda f: -float(values[f]))[:k]:
            acts[row, feature] = max(float(values[feature]), 0.0)
    return acts


# -- SAELens --


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "batchtopk"])
def test_architectures_of_saelens(architecture: str, subtract: bool, tmp_path: Path) -> None:
    m = matrices()
    x = X - m["b_dec"] if subtract else X
    pre = x @ m["W_enc"] + m["b_enc"]
    config: dict[str, Any] = {}
    if architecture == "standard":
        acts = pre.relu()
    elif architecture == "jumprelu":
        m["threshold"] = draw(N, seed=3).abs() * 0.5
        acts = pre * (pre > m["threshold"])
    elif architecture == "batchtopk":
        m["topk_threshold"] = torch.tensor(0.7, dtype=torch.float64)
        acts = pre * (pre > 0.7)
    elif architecture == "topk":
        config, acts = {"k": 5}, kept(pre, 5)
    else:
        del m["b_enc"]
        m |= {"b_gate": draw(N, seed=2), "b_mag": draw(N, seed=3), "r_mag": draw(N, seed=4, scale=0.3)}
        gate = x @ m["W_enc"] + m["b_gate"] > 0
        acts = gate * (x @ (m["W_enc"] * m["r_mag"].exp()) + m["b_mag"]).relu()
    saelens(tmp_path, m, architecture=architecture, apply_b_dec_to_input=subtract, **config)
    d = gs.load_sae(tmp_path)
    assert (d.site, d.layer, d.trained_for.model, d.call) == (
        "resid_post", 1, "google/gemma-2-2b", f"gs.load_sae({str(tmp_path)!r})",
    )  # fmt: skip
    require_equal(d, X, acts, acts @ m["W_dec"] + m["b_dec"])


def test_rows_that_are_scaled_before_they_are_encoded(tmp_path: Path) -> None:
    m = matrices()
    saelens(tmp_path / "layer", m, architecture="standard", normalize_activations="layer_norm")
    mean, std = X.mean(-1, keepdim=True), X.std(-1, keepdim=True)
    acts = ((X - mean) / (std + 1e-5) @ m["W_enc"] + m["b_enc"]).relu()
    require_equal(d := gs.load_sae(tmp_path / "layer"), X, acts, (acts @ m["W_dec"] + m["b_dec"]) * std + mean)
    require_message(lambda: d.decode(acts), "decode(acts, rows)")
    saelens(tmp_path / "norm", m, architecture="standard", normalize_activations="constant_norm_rescale")
    length = X.norm(dim=-1, keepdim=True) / D**0.5
    acts = (X / length @ m["W_enc"] + m["b_enc"]).relu()
    require_equal(gs.load_sae(tmp_path / "norm"), X, acts, (acts @ m["W_dec"] + m["b_dec"]) * length)
    saelens(tmp_path / "mean", m, architecture="standard", normalize_activations="expected_average_only_in")
    with pytest.warns(gs.GemmascopeWarning, match="rescaled"):
        d = gs.load_sae(tmp_path / "mean")
    acts = (0.5 * X @ m["W_enc"] + m["b_enc"]).relu()
    require_equal(d.rescaled(0.5), X, acts, (acts @ m["W_dec"] + m["b_dec"]) / 0.5)
    saelens(tmp_path / "white", m, architecture="standard", normalize_activations="covariance_whitening")
    require_message(lambda: gs.load_sae(tmp_path / "white"), "'covariance_whitening'; known are none")


TRANSCODER = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}


@pytest.mark.parametrize(
    ("hook_in", "input_site"),
    [("ln2.hook_normalized", None), ("mlp.hook_in", "mlp_in"), ("hook_resid_mid", "resid_mid")],
)
@pytest.mark.parametrize(("hook_out", "output_site"), [("hook_mlp_out", "mlp_out"), ("mlp.hook_out", "mlp_raw")])
def test_a_transcoder_with_a_skip_is_spliced(
    hook_in: str, input_site: str | None, hook_out: str, output_site: str, tmp_path: Path
) -> None:
    m = matrices() | {"W_skip": draw(D, D, seed=8, scale=D**-0.5)}
    about = {"model_name": "mine", "hook_name": f"blocks.1.{hook_in}", "hook_name_out": f"blocks.1.{hook_out}"}
    d = gs.load_sae(saelens(tmp_path, m, architecture="skip_transcoder", d_out=D, metadata=about), model=model())
    assert (d.site, d.input_site, d.writes) == ("transcoder", input_site, output_site)
    t = gs.trace(IDS, model=model())
    mid = t["resid_mid", 1]
    x = {"resid_mid": mid, "mlp_in": t["mlp_in", 1]}.get(
        input_site or "", mid / (mid.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    )
    acts = (x @ m["W_enc"] + m["b_enc"]).relu()
    expected = acts @ m["W_dec"] + m["b_dec"] + x @ m["W_skip"].T
    require_equal(d, x, acts, expected)
    assert float((d.encode(t).reconstruction - expected).abs().max()) <= CLOSE * float(expected.abs().max())
    assert float((d.encode(t).target - t[output_site, 1]).abs().max()) == 0  # type: ignore[operator]
    replaced = gs.trace(IDS, model=model(), edits=[gs.splice(d, keep_error=False)])
    assert float((replaced[output_site, 1][1:] - expected[1:]).abs().max()) <= CLOSE * float(expected.abs().max())
    active = int(acts[4].argmax())
    changed = gs.trace(IDS, model=model(), edits=[gs.splice(d, {active: 0.0}, pos=4)])
    moved = changed[output_site, 1][4] - t[output_site, 1][4] + acts[4, active] * m["W_dec"][active]
    assert float(moved.abs().max()) <= CLOSE * float(t[output_site, 1].abs().max())


def test_a_splice_in_a_dictionary_that_scales_rows_keeps_the_error(tmp_path: Path) -> None:
    about = {"model_name": "mine"}
    saelens(tmp_path, matrices(), architecture="standard", normalize_activations="layer_norm", metadata=about)
    d, t = gs.load_sae(tmp_path), gs.trace(IDS, model=model())
    features = d.encode(t)
    one = int(features.feature[features.pos == 4][0])
    acts = torch.zeros(len(IDS), N)
    acts[features.pos, features.feature] = features.value
    before = d.decode(acts, features.rows)
    acts[4, one] = 3.0
    expected = features.target + d.decode(acts, features.rows) - before  # type: ignore[operator]
    written = gs.trace(IDS, model=model(), edits=[gs.splice(d, {one: 3.0}, pos=4)])["resid_post", 1]
    assert float((written - expected).abs().max()) <= CLOSE * float(expected.abs().max())


# -- dictionary_learning --


def linear(m: dict[str, Tensor], bias: str = "b_dec") -> dict[str, Tensor]:
    return {
        "encoder.weight": m["W_enc"].T.contiguous(),
        "encoder.bias": m["b_enc"],
        "decoder.weight": m["W_dec"].T.contiguous(),
        bias: m["b_dec"],
    }


def test_classes_of_dictionary_learning(tmp_path: Path) -> None:
    m = matrices()
    pre = (X - m["b_dec"]) @ m["W_enc"] + m["b_enc"]
    k, limit = {"k": torch.tensor(6, dtype=torch.int)}, {"threshold": torch.tensor(0.4)}
    d = gs.load_sae(learnt(tmp_path / "topk", linear(m) | k | limit, "AutoEncoderTopK", k=6))
    assert (d.site, d.layer, d.k, d.trained_for.size) == ("resid_post", 1, 6, "2b")
    require_equal(d, X, kept(pre, 6), kept(pre, 6) @ m["W_dec"] + m["b_dec"])
    above = pre * (pre > 0.4)
    d = gs.load_sae(learnt(tmp_path / "batch", linear(m) | k | limit, "BatchTopKSAE", k=6))
    require_equal(d, X, above, above @ m["W_dec"] + m["b_dec"])
    groups = {"group_sizes": torch.tensor([10, 30])}
    d = gs.load_sae(learnt(tmp_path / "matryoshka", m | k | limit | groups, "MatryoshkaBatchTopKSAE", k=6))
    require_equal(d, X, above, above @ m["W_dec"] + m["b_dec"])
    d = gs.load_sae(learnt(tmp_path / "new", linear(m, "decoder.bias"), "AutoEncoderNew"))
    acts = (X @ m["W_enc"] + m["b_enc"]).relu()
    require_equal(d, X, acts, acts @ m["W_dec"] + m["b_dec"])
    d = gs.load_sae(learnt(tmp_path / "plain", linear(m, "bias"), "AutoEncoder"))
    norms = m["W_dec"].norm(dim=-1)  # the library multiplies activations by them as it loads one
    require_equal(d, X, pre.relu() * norms, pre.relu() @ m["W_dec"] + m["b_dec"])
    assert torch.allclose(d.W_dec.norm(dim=-1), torch.ones(N))


def test_a_class_that_reads_no_site_from_its_files_needs_one(tmp_path: Path) -> None:
    m = linear(matrices(), "decoder.bias")
    learnt(tmp_path, m, "AutoEncoderNew", submodule_name="mlp_layer_1")
    require_message(lambda: gs.load_sae(tmp_path), "say site='resid_post'")
    assert gs.load_sae(tmp_path, site="mlp_raw").layer == 1
    require_message(lambda: gs.load_sae(tmp_path, site="mlp_raw", layer=2), "trained for layer 1, and layer=2")


# -- circuit-tracer --


def test_transcoders_of_circuit_tracer(tmp_path: Path) -> None:
    m = matrices()
    stored = m | {"W_enc": m["W_enc"].T.contiguous(), "activation_function.threshold": torch.full((N,), 0.3)}
    for layer in (0, 1, 10):
        save_file(stored, tmp_path / f"layer_{layer}.safetensors")
    require_message(lambda: gs.load_sae(tmp_path), "3 dictionaries that fit", "'layer_0.safetensors'")
    require_message(lambda: gs.load_sae(tmp_path, layer=1), "say site='resid_post'")
    assert gs.load_sae(tmp_path, layer=10, site="transcoder").input_site is None
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    (tmp_path / "config.yaml").write_text(f"model_name: google/gemma-2-2b\n{hooks}")
    acts = (pre := X @ m["W_enc"] + m["b_enc"]) * (pre > 0.3)
    for d in (
        gs.load_sae(tmp_path, layer=1),
        gs.load_sae(tmp_path, "layer_1"),
        gs.load_sae(tmp_path / "layer_1.safetensors"),
    ):
        assert (d.site, d.layer, d.input_site, d.trained_for.size) == ("transcoder", 1, "mlp_in", "2b")
        require_equal(d, X, acts, acts @ m["W_dec"] + m["b_dec"])
    require_message(lambda: gs.load_sae(tmp_path, layer=3), "no dictionary of layer 3", "0, 1, 10")
    (tmp_path / "config.yaml").write_text("feature_input_hook: hook_q\nfeature_output_hook: hook_mlp_out\n")
    require_message(lambda: gs.load_sae(tmp_path, layer=1), "config.yaml", "'hook_q'")
    (tmp_path / "config.yaml").write_text("a: [b\n")
    require_message(lambda: gs.load_sae(tmp_path, layer=1), "config.yaml cannot be read as YAML")


# -- arrays in memory --


def test_arrays_in_memory() -> None:
    m = matrices()
    d = gs.Dictionary.from_arrays(m, site="resid_post", layer=1)
    acts = (X @ m["W_enc"] + m["b_enc"]).relu()
    require_equal(d, X, acts, acts @ m["W_dec"] + m["b_dec"])
    shifted = gs.Dictionary.from_arrays(
        {name: array.numpy() for name, array in m.items()}, site="resid_post", layer=1, subtract_b_dec=True
    )
    acts = ((X - m["b_dec"]) @ m["W_enc"] + m["b_enc"]).relu()
    require_equal(shifted, X, acts, acts @ m["W_dec"] + m["b_dec"])
    few = gs.Dictionary.from_arrays({name: m[name] for name in ("W_enc", "W_dec")}, site="resid_post", layer=1, k=3)
    require_equal(few, X, kept(X @ m["W_enc"], 3), kept(X @ m["W_enc"], 3) @ m["W_dec"])
    assert few.fingerprint != gs.Dictionary.from_arrays(m, site="resid_post", layer=1).fingerprint
    m["W_enc"].zero_()
    assert bool(d.W_enc.any())  # they are copied


BAD_ARRAYS: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any], str]] = {
    "a missing array": (lambda m: m.pop("W_dec"), {}, "it lacks W_dec"),
    "an array more": (lambda m: m.update(W=m["W_enc"]), {}, "it also holds W"),
    "a decoder turned round": (lambda m: m.update(W_dec=m["W_dec"].T), {}, "do not belong together"),
    "NaN": (lambda m: m.update(b_dec=torch.full((D,), torch.nan)), {}, "b_dec holds NaN"),
    "complex numbers": (lambda m: m.update(b_dec=torch.zeros(D, dtype=torch.complex64)), {}, "real numbers"),
    "text": (lambda m: m.update(b_dec="b"), {}, "b_dec"),
    "k and a threshold": (lambda m: m.update(threshold=torch.zeros(N)), {"k": 3}, "give one of them"),
    "too large a k": (lambda m: None, {"k": N + 1}, f"from 1 to {N}"),
    "no layer": (lambda m: None, {"layer": None}, "a dictionary's layer"),
    "a skip of an autoencoder": (lambda m: m.update(W_skip=torch.zeros(D, D)), {}, "site='transcoder'"),
    "an input of an autoencoder": (lambda m: None, {"input_site": "mlp_in"}, "are of transcoders"),
    "an unknown input": (lambda m: None, {"site": "transcoder", "input_site": "q"}, "a transcoder reads one of"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_arrays_that_make_no_dictionary_are_refused(what: str) -> None:
    change, more, message = BAD_ARRAYS[what]
    m: dict[str, Any] = dict(matrices())
    change(m)
    arguments: dict[str, Any] = {"site": "resid_post", "layer": 1} | more
    require_message(lambda: gs.Dictionary.from_arrays(m, **arguments), message)


# -- files that are not read --

BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown architecture": ({"architecture": "temporal"}, "'temporal' is not read; known are standard, gated"),
    "another activation": ({"architecture": "standard", "activation_fn": "tanh-relu"}, "'tanh-relu' is not read"),
    "no k": ({"architecture": "topk"}, "k is missing"),
    "half a k": ({"architecture": "topk", "k": 2.5}, "k is how many features"),
    "another width": ({"d_in": D + 1}, f"has d_in {D}, and cfg.json beside it says {D + 1}"),
    "one head": ({"metadata": {"hook_head_index": 3}}, "of one head"),
    "a hook of another value": ({"metadata": {"hook_name": "blocks.1.attn.hook_result"}}, "hook_result"),
    "a hook that is none": ({"metadata": {"hook_name": "blocks.1.hook_nothing"}}, "is no site of ours"),
    "a hook without a layer": ({"metadata": {"hook_name": "hook_resid_post"}}, "does not say its layer"),
    "two layers": (
        {"architecture": "transcoder", "metadata": TRANSCODER | {"hook_name_out": "blocks.2.hook_mlp_out"}},
        "a transcoder is of one layer",
    ),
    "an unknown reading": (
        {"architecture": "transcoder", "metadata": TRANSCODER | {"hook_name": "blocks.1.hook_resid_pre"}},
        "is not known; those that are read take",
    ),
    "missing arrays": ({"architecture": "gated"}, "it lacks b_gate, b_mag, r_mag; it also holds b_enc"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_configurations_that_are_not_known_are_refused(what: str, tmp_path: Path) -> None:
    config, message = BAD_CONFIGS[what]
    saelens(tmp_path, matrices(), **{"architecture": "standard"} | config)
    require_message(lambda: gs.load_sae(tmp_path), str(tmp_path), message)


class Bomb:
    """An object whose unpickling runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_of_anything_but_tensors_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    went_off = tmp_path / "went-off"
    folder = learnt(tmp_path / "d", {"encoder.weight": Bomb(went_off)}, "AutoEncoderNew")  # type: ignore[dict-item]
    require_message(lambda: gs.load_sae(folder), "ae.pt", "could run code")
    (folder / "ae.pt").write_bytes(pickle.dumps(Bomb(went_off)))
    require_message(lambda: gs.load_sae(folder), "ae.pt")
    torch.save([torch.zeros(3)], folder / "ae.pt")
    require_message(lambda: gs.load_sae(folder), "something else than tensors by name")
    assert not went_off.exists()


def test_damaged_and_incomplete_files_are_refused(tmp_path: Path) -> None:
    folder = saelens(tmp_path / "s", matrices(), architecture="standard")
    whole = (folder / "sae_weights.safetensors").read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        (folder / "sae_weights.safetensors").write_bytes(whole[:size])
        require_message(lambda: gs.load_sae(folder), "sae_weights.safetensors")
    (folder / "sae_weights.safetensors").write_bytes(whole)
    (folder / "cfg.json").write_text("{")
    require_message(lambda: gs.load_sae(folder), "cfg.json cannot be read as JSON")
    (folder / "cfg.json").unlink()
    require_message(lambda: gs.load_sae(folder), "no cfg.json beside it")
    learnt(tmp_path / "d", linear(matrices(), "decoder.bias"), "AutoEncoderNew")
    path = tmp_path / "d" / "ae.pt"
    content = path.read_bytes()
    for size in (0, 50, len(content) // 2):
        path.write_bytes(content[:size])
        require_message(lambda: gs.load_sae(tmp_path / "d"), "ae.pt")
    path.write_bytes(content)
    (tmp_path / "d" / "config.json").write_text(json.dumps({"trainer": {"dict_class": "CrossCoder"}}))
    require_message(lambda: gs.load_sae(tmp_path / "d"), "'CrossCoder' is not read; known are AutoEncoder")
    (tmp_path / "d" / "config.json").unlink()
    require_message(lambda: gs.load_sae(tmp_path / "d"), "no config.json beside")


def test_a_folder_of_no_known_format_is_told_which_there_are(tmp_path: Path) -> None:
    require_message(
        lambda: gs.load_sae(tmp_path),
        "holds no dictionaries",
        "SAELens",
        "dictionary_learning",
        "circuit-tracer",
        "is empty",
    )
    save_file({"W_enc_0": torch.zeros(2, 2)}, tmp_path / "W_enc_0.safetensors")
    require_message(lambda: gs.load_sae(tmp_path), "gs.load_cross_layer")


def test_another_model_is_refused(tmp_path: Path) -> None:
    saelens(tmp_path, matrices(), architecture="standard")
    require_message(lambda: gs.load_sae(tmp_path, model=model()), "trained for google/gemma-2-2b", "given 'random'")
    assert gs.load_sae(tmp_path, model=model(), any_model=True).any_model
    wide = {"W_enc": draw(D + 1, N), "W_dec": draw(N, D + 1)}
    d = gs.Dictionary.from_arrays(wide, site="resid_post", layer=1)
    require_message(lambda: d.encode(gs.trace(IDS, model=model())), f"reads {D + 1} numbers", f"whose 'resid_post' has {D}")


# -- several in a folder --


def test_a_folder_of_several_takes_an_id_or_a_layer(tmp_path: Path) -> None:
    for layer in (1, 2, 12):
        about = {"hook_name": f"blocks.{layer}.hook_resid_post"}
        saelens(
            tmp_path / "standard" / f"blocks.{layer}.hook_resid_post",
            matrices(layer),
            architecture="standard",
            metadata=about,
        )
    d = gs.load_sae(tmp_path, "standard/blocks.2.hook_resid_post")
    assert d.layer == 2
    assert torch.equal(d.W_enc, matrices(2)["W_enc"])
    assert gs.load_sae(tmp_path, layer=12).layer == 12
    assert d.call == f"gs.load_sae({str(tmp_path)!r}, 'standard/blocks.2.hook_resid_post')"
    require_message(lambda: gs.load_sae(tmp_path), "3 dictionaries that fit: say which, by sae_id")
    require_message(lambda: gs.load_sae(tmp_path, layer=3), "no dictionary of layer 3", "1, 2, 12")
    near = "Did you mean 'standard/blocks.2.hook_resid_post'"
    require_message(lambda: gs.load_sae(tmp_path, "standard/blocks.2.hook_resid_pots"), near)
    require_message(lambda: gs.load_sae(tmp_path, layer=2, width="16k"), "does not tell its dictionaries apart by width")


# -- what is published --


def test_canonical_is_the_average_l0_nearest_to_100(tmp_path: Path) -> None:
    for number in (22, 105, 96, 294):
        write(tmp_path / "gemma-scope-2b-pt-res" / f"layer_1/width_16k/average_l0_{number}", arrays(D, seed=number))
    folder = tmp_path / "gemma-scope-2b-pt-res"
    d = gs.load_sae(folder, layer=1, width="16k", l0="canonical")
    assert np.array_equal(d.W_enc.numpy(), arrays(D, seed=96)["W_enc"])
    by_id = gs.load_sae(folder, "layer_1/width_16k/canonical")
    assert torch.equal(by_id.W_enc, d.W_enc)
    assert torch.equal(gs.load_sae(folder, "layer_1/width_16k/average_l0_22").W_enc, gs.load_sae(folder, l0=22).W_enc)
    require_message(lambda: gs.load_sae(folder, "layer_1/width_16k/average_l0_23"), "l0 22, 96, 105 or 294")
    require_message(lambda: gs.load_sae(folder, "layer_1/width_16k/canonical", l0=22), "says l0 'canonical'")
    require_message(lambda: gs.load_sae(folder, "layer_one"), "its ids have the form")


def test_of_two_that_are_equally_near_saelens_choice_is_taken() -> None:
    def chosen(repository: str, layer: int, width: str, *numbers: int) -> object:
        entries = [Entry.of(f"layer_{layer}/width_{width}/average_l0_{n}/params.npz") for n in numbers]
        request = DictionaryRequest(layer, width, "canonical")
        return request.choose([entry for entry in entries if entry], f"google/{repository}").l0

    assert chosen("gemma-scope-9b-pt-att", 27, "16k", 33, 64, 136) == 136
    assert chosen("gemma-scope-9b-pt-att", 23, "131k", 36, 66, 134) == 66


def test_the_table_of_what_is_published() -> None:
    table = gs.saes()
    assert len(table) == len(published()) > 3000
    assert set(gs.saes("gemma-2-9b-it").release) == {"gemma-scope-9b-it-res", "gemma-scope-9b-it-res-canonical"}
    assert len(gs.saes("2b")) == len(gs.saes("google/gemma-2-2b")) > 1000
    one = table[(table.release == "gemma-scope-2b-pt-res-canonical") & (table.sae_id == "layer_20/width_16k/canonical")]
    assert one[["model", "site", "layer", "width", "l0", "canonical", "path"]].values.tolist() == [
        ["google/gemma-2-2b", "resid_post", 20, "16k", 71, True, "layer_20/width_16k/average_l0_71"]
    ]
    scope = table[(table.format == "Gemma Scope") & ~table.release.str.endswith("-canonical")]
    assert (scope.groupby(["release", "layer", "width"], dropna=False).canonical.sum() == 1).all()
    assert not table.duplicated(["release", "sae_id"]).any()
    require_message(lambda: gs.saes("gemma-3-4b"), "nothing is published for 'gemma-3-4b'", "google/gemma-2-2b")
    require_message(lambda: gs.saes(3), "model is a name")  # type: ignore[arg-type]


def test_the_table_takes_the_choices_of_load_sae() -> None:
    table = gs.saes("2b")
    of_layer = table[(table.layer == 20) & (table.site == "resid_post")]
    for site in ("resid_post", "hook_resid_post"):
        assert gs.saes("2b", layer=20, site=site).equals(of_layer.reset_index(drop=True))
    assert gs.saes("2b", site="blocks.20.hook_resid_post", width=16384).equals(
        gs.saes("2b", layer=20, site=site, width="16k")
    )
    assert set(gs.saes("2b", layer=20, site=site, width="16k", l0="canonical").l0) == {71}
    assert set(gs.saes("2b", layer=20, width="16k", l0=71).sae_id) == {
        "layer_20/width_16k/average_l0_71",
        "layer_20/width_16k/canonical",
    }
    assert set(gs.saes("2b", width=65536).width) == {"64k", "65k"}  # SAEBench's name, and Gemma Scope's
    assert gs.saes("2b", layer="embedding").layer.isna().all()
    assert set(gs.saes(layer="embedding").site) == {"embed"}
    require_message(lambda: gs.saes("2b", layer=26), "nothing is published with layer=26", "0, 1, 2", "25, embedding")
    require_message(lambda: gs.saes("2b", layer=20, width="17k"), "layer=20, width='17k'", "There is width 16k, 65k")
    require_message(lambda: gs.saes("2b", l0="average"), "l0='average'", "There is l0 5, 6, 7, 8", "and 326 more")
    require_message(lambda: gs.saes("2b", site="resid_pre"), "There is site z, mlp_out, embed, resid_post, transcoder")
    require_message(
        lambda: gs.saes("2b", site="blocks.20.hook_resid_post", layer=3), "names layer 20, and layer=3 was given"
    )
    require_message(lambda: gs.saes("2b", layer=-1), "layer is a whole number of at least 0; given -1")
    with pytest.raises(gs.errors.SiteError, match="there is no site 'residual'"):
        gs.saes("2b", site="residual")


def test_a_release_or_an_id_that_is_not_there_is_refused_with_near_ones() -> None:
    require_message(lambda: gs.load_sae("gemma-scope-2b-pt-ress"), "Did you mean 'gemma-scope-2b-pt-res'")
    require_message(
        lambda: gs.load_sae("gemma-scope-2b-pt-res-canonical", "layer_20/width_17k/canonical"),
        "'layer_20/width_16k/canonical'",
    )
    require_message(lambda: gs.load_sae("temporal-sae-gemma-2-2b", "blocks.12.hook_resid_post"), "attention layers")
    require_message(lambda: gs.load_sae("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_3"), "gs.load_cross_layer")
    several = "6 dictionaries of layer 5: say which, by sae_id, such as 'blocks.5.hook_resid_post__trainer_0'"
    require_message(lambda: gs.load_sae("sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", layer=5), several)
    path = find_published(
        "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109", "blocks.5.hook_resid_post__trainer_2_step_976"
    ).path
    assert path == "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_5_checkpoints/trainer_2_step_976"
    assert re.fullmatch(r"gs\.load_sae\('nano'\)", gs.load_sae().call)


# -- cross-layer transcoders --


def cross_layer(folder: Path, n_layers: int = 3, threshold: float | None = 0.3) -> dict[str, Tensor]:
    """Random files as circuit-tracer writes them, and what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, Tensor] = {}
    for layer in range(n_layers):
        held[f"W_enc_{layer}"] = draw(N, D, seed=layer, scale=D**-0.5)
        held[f"b_enc_{layer}"] = draw(N, seed=layer, scale=0.2)
        held[f"b_dec_{layer}"] = draw(D, seed=layer, scale=0.2)
        held[f"W_dec_{layer}"] = draw(N, n_layers - layer, D, seed=layer, scale=N**-0.5)
        if threshold is not None:
            held[f"threshold_{layer}"] = torch.full((N,), threshold)
        encoder = {name: held[name] for name in held if name.endswith(f"_{layer}") and not name.startswith("W_dec")}
        save_file(encoder, folder / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": held[f"W_dec_{layer}"]}, folder / f"W_dec_{layer}.safetensors")
    hooks = "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    (folder / "config.yaml").write_text(f"model_kind: cross_layer_transcoder\nmodel_name: mine\n{hooks}")
    return held


def cross_layer_plainly(held: dict[str, Tensor], x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Activations [layer, pos, feature] and reconstruction [layer, pos, d_model], layer by layer."""
    acts = torch.stack([x[i] @ held[f"W_enc_{i}"].T + held[f"b_enc_{i}"] for i in range(len(x))])
    acts = acts * (acts > threshold)
    out = torch.stack([held[f"b_dec_{i}"].expand(x.shape[1], -1) for i in range(len(x))]).clone()
    for source in range(len(x)):
        for target in range(source, len(x)):
            out[target] += acts[source] @ held[f"W_dec_{source}"][:, target - source]
    return acts, out


@pytest.mark.parametrize("threshold", [0.3, None])
def test_a_cross_layer_transcoder_writes_to_its_layer_and_all_later_ones(threshold: float | None, tmp_path: Path) -> None:
    held = cross_layer(tmp_path, threshold=threshold)
    d, t = gs.load_cross_layer(tmp_path, model=model()), gs.trace(IDS, model=model())
    x = torch.stack([t["resid_mid", layer] for layer in range(3)])
    acts, expected = cross_layer_plainly(held, x, threshold or 0.0)
    for features in (d.encode(t), d.encode(x)):
        mine = torch.zeros_like(acts)
        mine[features.layer, features.pos, features.feature] = features.value
        assert float((mine - acts).abs().max()) <= CLOSE * float(acts.abs().max())
        assert float((features.reconstruction - expected).abs().max()) <= CLOSE * float(expected.abs().max())
    features = d.encode(t)
    out = torch.stack([t["mlp_out", layer] for layer in range(3)])
    assert float((features.error + features.reconstruction - out).abs().max()) <= CLOSE * float(expected.abs().max())
    residual, spread = (out - expected)[2, 1:], out[2, 1:] - out[2, 1:].mean(0)
    assert features.explained(2) == pytest.approx(float(1 - residual.square().sum() / spread.square().sum()), rel=1e-4)
    assert len(features.to_dataframe()) == int((acts > 0).sum())
    require_message(lambda: gs.splice(d), "cannot be spliced", "gs.add")  # type: ignore[arg-type]
    require_message(lambda: d.encode(x).error, "encode a trace instead")
    require_message(lambda: d.encode(x[:2]), "given shape (2, 9, 32)")


def test_a_cross_layer_transcoder_is_spliced_by_a_trace_for_each_layer(tmp_path: Path) -> None:
    """As the guide says: in the last run every layer holds what the features of that very run reconstruct."""
    cross_layer(tmp_path)
    d, edits = gs.load_cross_layer(tmp_path, model=model()), []
    for layer in range(3):
        written = d.encode(gs.trace(IDS, model=model(), edits=edits)).reconstruction[layer]
        edits.append(gs.patch(d.output_site, written, layer=layer))
    spliced, plain = gs.trace(IDS, model=model(), edits=edits), gs.trace(IDS, model=model())
    reconstruction = d.encode(spliced).reconstruction
    for layer in range(3):
        assert error(spliced["mlp_out", layer], reconstruction[layer]) <= CLOSE
    frozen = d.encode(plain).reconstruction[2]
    assert error(frozen, reconstruction[2]) > 1e-3, "features of the plain run are others"


def test_cross_layer_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    cross_layer(tmp_path / "short", n_layers=2)
    require_message(lambda: gs.load_cross_layer(tmp_path / "short", model=model()), "2 layers", "given 'random' (3 layers")
    require_message(lambda: gs.load_sae(tmp_path / "short"), "gs.load_cross_layer")
    (tmp_path / "short" / "W_enc_0.safetensors").unlink()
    require_message(lambda: gs.load_cross_layer(tmp_path / "short"), "without gaps", "[1]")
    held = cross_layer(tmp_path / "odd")
    save_file({"W_dec_1": held["W_dec_0"]}, tmp_path / "odd" / "W_dec_1.safetensors")
    require_message(lambda: gs.load_cross_layer(tmp_path / "odd"), "W_dec_1 has shape (40, 2, 32)", "it has (40, 3, 32)")
    (tmp_path / "odd" / "W_dec_1.safetensors").write_bytes(b"damaged")
    require_message(lambda: gs.load_cross_layer(tmp_path / "odd"), "W_dec_1.safetensors")
    cross_layer(tmp_path / "bare")
    (tmp_path / "bare" / "config.yaml").unlink()
    require_message(lambda: gs.load_cross_layer(tmp_path / "bare"), "no config.yaml", "feature_input_hook")
    require_message(lambda: gs.load_cross_layer(tmp_path / "absent"), "no folder that exists")
    require_message(lambda: gs.load_cross_layer(3), "cannot load a int")  # type: ignore[arg-type]


# -- a feature's logits --


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "z", "mlp_raw"])
@pytest.mark.parametrize("gain", [True, False])
def test_logits_of_features_are_their_decoder_through_the_norms_and_the_unembedding(site: str, gain: bool) -> None:
    width = 96 if site == "z" else D
    d = gs.Dictionary.from_arrays({"W_enc": draw(width, N), "W_dec": draw(N, width, seed=1)}, site=site, layer=1)
    m, layer = model(), model().layer(1)
    rows = d.W_dec[[3, 7]].double()
    if site == "z":
        rows = rows @ layer.self_attn.o_proj.weight.double().T * (1 + layer.post_attention_layernorm.weight.double())
    if site == "mlp_raw":
        rows = rows * (1 + layer.post_feedforward_layernorm.weight.double())
    if gain:
        rows = rows * (1 + m.network.model.norm.weight.double())
    expected = (rows @ m.network.model.embed_tokens.weight.double().T).detach()  # type: ignore[operator]
    result = gs.feature_logits(d, [3, 7], model=m, gain=gain)
    assert result.logits.dims == ("feature", "vocab")
    assert np.abs(result.logits.values - expected.numpy()).max() <= CLOSE * float(expected.abs().max())
    order = expected[1].sort(descending=True)
    assert [number for _, number, _ in result.top(7, 4)] == order.indices[:4].tolist()
    assert [number for _, number, _ in result.bottom(7, 4)] == order.indices.flip(0)[:4].tolist()
    assert len(result.to_dataframe(3)) == 12


def test_the_logits_of_a_feature_are_what_adding_it_to_the_last_stream_does() -> None:
    d = gs.Dictionary.from_arrays({"W_enc": draw(D, N), "W_dec": draw(N, D, seed=1)}, site="resid_post", layer=2)
    clean = gs.trace(IDS, model=model())
    stream = clean["resid_post", 2][-1].double()
    weight = model().network.model.norm.weight.double()
    size, scale = 1e-3, float((stream.square().mean() + 1e-6).sqrt())
    table = model().network.model.embed_tokens.weight.double()  # type: ignore[operator]
    logits = [(table @ (x / scale * (1 + weight))).detach() for x in (stream, stream + size * d.W_dec[5].double())]
    moved = (logits[1] - logits[0]) / size * scale
    assert np.abs(gs.feature_logits(d, 5, model=model()).logits.values[0] - moved.numpy()).max() <= 1e-4


def test_what_has_no_logits_is_refused() -> None:
    q = gs.Dictionary.from_arrays({"W_enc": draw(D, N), "W_dec": draw(N, D)}, site="attn_in", layer=1)
    require_message(lambda: gs.feature_logits(q, 1, model=model()), "writes nothing to the stream", "resid_post")
    d = gs.Dictionary.from_arrays({"W_enc": draw(D, N), "W_dec": draw(N, D)}, site="resid_post", layer=1)
    require_message(lambda: gs.feature_logits(d, N, model=model()), f"no feature {N}")
    require_message(lambda: gs.feature_logits(d, [1, 1], model=model()), "each feature once")
    require_message(lambda: gs.feature_logits(d, [], model=model()), "one at least")
    require_message(lambda: gs.feature_logits("d", 1), "gs.load_sae returns")  # type: ignore[arg-type]
    require_message(lambda: gs.feature_logits(d, 1, model=model()).top(2), "one of those that were given")


# -- two dictionaries in one run --


def test_two_dictionaries_that_write_the_same_rows_are_refused() -> None:
    one, other = (gs.Dictionary.from_arrays(matrices(seed), site="resid_post", layer=1) for seed in (0, 3))
    run = lambda *edits: gs.trace(IDS, model=model(), edits=edits)  # noqa: E731
    both = "are of two dictionaries and both write 'layers.1.resid_post' at position 4"
    require_message(
        lambda: run(gs.splice(one, {1: 0.0}, pos=[3, 4]), gs.splice(other, {2: 0.0}, pos=4)), both, error=gs.errors.EditError
    )
    require_message(lambda: run(gs.splice(one), gs.splice(other)), "at position 1", error=gs.errors.EditError)
    run(gs.splice(one, {1: 0.0}, pos=3), gs.splice(other, {2: 0.0}, pos=4))
    run(gs.splice(one, {1: 0.0}), gs.splice(one, {2: 0.0}))
    transcoder = gs.Dictionary.from_arrays(matrices(5), site="transcoder", layer=1)
    run(gs.splice(one), gs.splice(transcoder))
