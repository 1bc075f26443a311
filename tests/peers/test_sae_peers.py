"""Dictionaries that SAELens, dictionary_learning and circuit-tracer wrote: encoded, decoded and reconstructed as they do it.

Each is skipped where its library is not installed.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import beartype  # noqa: F401 (before nnsight, which gives `object` a method that beartype cannot hash)
import pytest
import torch
from torch import Tensor

import gemmascope as gs

CLOSE = 1e-5
D_IN, N, ROWS = 24, 60, 40


def rows(seed: int = 0, d: int = D_IN) -> Tensor:
    return torch.randn(ROWS, d, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def fill(module: torch.nn.Module, seed: int) -> None:
    """Random parameters, of a size that leaves about half of the features active."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            value = torch.randn(parameter.shape, generator=draw) * scale
            parameter.copy_(value.abs() * 0.5 if "threshold" in name else value)


def require_equal(
    ours: gs.Dictionary, x: Tensor, acts: Tensor, reconstruction: Tensor, decoded: Tensor | None = None
) -> None:
    """Activations, what is decoded of them and the reconstruction, to 1e-5 of their size."""
    mine = torch.zeros(len(x), ours.n_features)
    features = ours.encode(x)
    mine[features.pos, features.feature] = features.value
    assert 0.02 < float((acts != 0).float().mean()) < 0.95
    assert float((mine - acts).abs().max()) <= CLOSE * float(acts.abs().max())
    for value, expected in (
        (features.reconstruction, reconstruction),
        (ours.decode(acts, x), reconstruction if decoded is None else decoded),
    ):
        assert float((value - expected).abs().max()) <= CLOSE * float(expected.abs().max())


# -- SAELens --

HOOK = "blocks.3.hook_resid_post"
ARCHITECTURES = ["standard", "gated", "jumprelu", "topk"]


def saelens() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", exc_type=ImportError)


def saved(architecture: str, folder: Path, seed: int, hook: str = HOOK, **settings: Any) -> Any:
    """A random dictionary of SAELens, saved by it and loaded by it."""
    saelens()
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(model_name="gemma-2-2b", hook_name=hook, **settings.pop("about", {}))
    cls = SAE.get_sae_class_for_architecture(architecture)
    from sae_lens.registry import get_sae_class

    config = get_sae_class(architecture)[1](d_in=D_IN, d_sae=N, metadata=metadata, **settings)
    sae = cls(config)
    fill(sae, seed)
    sae.save_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_autoencoders(architecture: str, subtract: bool, normalize: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"k": 7} if architecture == "topk" else {}
    for seed in range(3):
        theirs = saved(
            architecture, tmp_path, seed, apply_b_dec_to_input=subtract, normalize_activations=normalize, **settings
        )
        ours, x = gs.load_sae(tmp_path), rows(seed)
        assert (ours.site, ours.layer, ours.trained_for.model) == ("resid_post", 3, "google/gemma-2-2b")
        with torch.no_grad():
            acts = theirs.encode(x)
            decoded = theirs.decode(acts)
            reconstruction = theirs(x)
        require_equal(ours, x, acts, reconstruction, decoded)


def test_saelens_topk_scaled_by_the_decoders_lengths(tmp_path: Path) -> None:
    theirs = saved("topk", tmp_path, 5, k=6, rescale_acts_by_decoder_norm=True)
    with torch.no_grad():
        theirs.W_dec.mul_(torch.linspace(0.2, 3, N)[:, None])
    theirs.save_model(tmp_path)
    x = rows(5)
    with torch.no_grad():
        acts = theirs.encode(x)
        require_equal(gs.load_sae(tmp_path), x, acts, theirs(x), theirs.decode(acts))


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_saelens_training_checkpoints_are_used_with_the_threshold_that_they_learnt(
    architecture: str, rescale: bool, tmp_path: Path
) -> None:
    saelens()
    from sae_lens import SAE
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    cls, config_cls = get_sae_training_class(architecture)
    settings: dict[str, Any] = {"matryoshka_widths": [20, N]} if "matryoshka" in architecture else {}
    metadata = SAEMetadata(model_name="gemma-2-2b", hook_name=HOOK)
    config = config_cls(d_in=D_IN, d_sae=N, k=6, rescale_acts_by_decoder_norm=rescale, metadata=metadata, **settings)
    sae: Any = cls(config)
    fill(sae, 2)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.2, 3, N)[:, None])
    sae.topk_threshold = torch.tensor(0.4, dtype=torch.double)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "inference")
    theirs, x = SAE.load_from_disk(tmp_path / "inference"), rows(2)
    with torch.no_grad():
        acts = theirs.encode(x)
        for name in ("training", "inference"):
            require_equal(gs.load_sae(tmp_path / name), x, acts, theirs(x), theirs.decode(acts))


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(
    "architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
)
def test_saelens_transcoders(architecture: str, normalize: str, tmp_path: Path) -> None:
    theirs = saved(
        architecture,
        tmp_path,
        4,
        hook="blocks.2.ln2.hook_normalized",
        d_out=16,
        apply_b_dec_to_input=False,
        normalize_activations=normalize,
        about={"hook_name_out": "blocks.2.hook_mlp_out"},
    )
    ours, x = gs.load_sae(tmp_path), rows(4)
    assert (ours.site, ours.layer, ours.input_site, ours.output_site) == ("transcoder", 2, None, "mlp_out")
    with torch.no_grad():
        acts = theirs.encode(x)
        require_equal(ours, x, acts, theirs(x))


def test_saelens_dictionaries_of_z_take_all_heads_side_by_side(tmp_path: Path) -> None:
    theirs = saved("standard", tmp_path, 1, hook="blocks.3.attn.hook_z", reshape_activations="hook_z")
    ours, z = gs.load_sae(tmp_path), rows(1).reshape(ROWS, 4, 6)
    assert ours.site == "z"
    with torch.no_grad():
        acts = theirs.encode(z)
        require_equal(ours, z.flatten(1), acts, theirs(z).flatten(1))


def test_saelens_files_of_before_version_6(tmp_path: Path) -> None:
    """As version 3 wrote them, without metadata; SAELens itself still reads them."""
    saelens()
    from sae_lens import SAE

    theirs = saved("standard", tmp_path, 6)
    config = {
        "d_in": D_IN, "d_sae": N, "dtype": "float32", "device": "cpu", "model_name": "gemma-2-2b", "hook_name": HOOK,
        "hook_layer": 3, "hook_head_index": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5},
        "apply_b_dec_to_input": True, "normalize_activations": "none", "sae_lens_training_version": "3.20.0",
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    theirs, x = SAE.load_from_disk(tmp_path), rows(6)
    with torch.no_grad():
        acts = theirs.encode(x)
        assert int((acts > 0).sum(-1).max()) == 5
        require_equal(gs.load_sae(tmp_path), x, acts, theirs(x))


def test_a_scale_that_saelens_left_out_is_told_of_and_can_be_given(tmp_path: Path) -> None:
    theirs = saved("jumprelu", tmp_path, 3, normalize_activations="expected_average_only_in")
    x = rows(3)
    with pytest.warns(gs.GemmascopeWarning, match="expected_average_only_in"):
        ours = gs.load_sae(tmp_path)
    with torch.no_grad():
        require_equal(ours, x, theirs.encode(x), theirs(x))
        theirs.fold_activation_norm_scaling_factor(0.7)
        require_equal(ours.rescaled(0.7), x, theirs.encode(x), theirs(x))


def test_releases_and_ids_lead_where_those_of_saelens_do() -> None:
    saelens()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from gemmascope.sae.published import UNREAD, find_published, published

    compared = 0
    for name, release in get_pretrained_saes_directory().items():
        if "gemma-2-" not in release.model or name in UNREAD:
            continue
        for sae_id, path in release.saes_map.items():
            row = find_published(name, sae_id)
            assert (row.repo, row.path) == (release.repo_id, path), (name, sae_id)
            compared += 1
    assert compared > 3500
    ours = {row.release for row in published()}
    assert ours <= set(get_pretrained_saes_directory())


# -- dictionary_learning --


def dictionary_learning(name: str) -> Any:
    pytest.importorskip("nnsight", exc_type=ImportError)
    return pytest.importorskip(f"dictionary_learning.{name}", exc_type=ImportError)


def write(module: Any, folder: Path, kind: str, **trainer: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "layer": 5,
        "lm_name": "google/gemma-2-2b",
        "submodule_name": "resid_post_layer_5",
    } | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))


@pytest.mark.parametrize(
    "kind",
    ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
     "MatryoshkaBatchTopKSAE"],
)  # fmt: skip
def test_dictionary_learning(kind: str, tmp_path: Path, capsys: Any) -> None:
    classes = vars(dictionary_learning("dictionary"))
    for room in ("top_k", "batch_top_k", "matryoshka_batch_top_k"):
        classes = classes | vars(dictionary_learning(f"trainers.{room}"))
    from dictionary_learning.utils import load_dictionary

    settings: dict[str, Any] = {"k": 9} if "TopK" in kind else {}
    groups = {"group_sizes": [20, 40]} if "Matryoshka" in kind else {}
    for seed in range(3):
        module = classes[kind](D_IN, N, **settings, **groups)
        fill(module, seed)
        if "BatchTopK" in kind:
            module.threshold.fill_([-1.0, 0.2, 0.5][seed])
        write(module, tmp_path / str(seed), kind, **settings)
        theirs, _ = load_dictionary(str(tmp_path / str(seed)), "cpu")
        ours, x = gs.load_sae(tmp_path / str(seed)), rows(seed)
        assert (ours.site, ours.layer, ours.trained_for.size) == ("resid_post", 5, "2b")
        with torch.no_grad():
            acts = theirs.encode(x)
            require_equal(ours, x, acts, theirs(x), theirs.decode(acts))


# -- circuit-tracer --


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_circuit_tracers_transcoders(skip: bool, jump: bool, tmp_path: Path) -> None:
    single = pytest.importorskip("circuit_tracer.transcoder.single_layer_transcoder", exc_type=ImportError)
    from circuit_tracer.transcoder.activation_functions import JumpReLU

    for layer in range(2):
        activation = JumpReLU(torch.zeros(N), 0.1) if jump else torch.nn.functional.relu
        module = single.SingleLayerTranscoder(
            D_IN, N, activation, layer, skip_connection=skip, device=torch.device("cpu"), dtype=torch.float32
        )
        fill(module, layer)
        module.to_safetensors(str(tmp_path / f"layer_{layer}.safetensors"))
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    (tmp_path / "config.yaml").write_text(f"model_kind: transcoder_set\nmodel_name: google/gemma-2-2b\n{hooks}")
    theirs = single.load_relu_transcoder(str(tmp_path / "layer_1.safetensors"), 1, device=torch.device("cpu"))
    ours, x = gs.load_sae(tmp_path, layer=1), rows(1)
    assert (ours.site, ours.layer, ours.input_site, ours.trained_for.size) == ("transcoder", 1, "mlp_in", "2b")
    with torch.no_grad():
        acts = theirs.encode(x)
        require_equal(ours, x, acts, theirs(x))


@pytest.mark.parametrize("activation", ["relu", "jump_relu"])
def test_circuit_tracers_cross_layer_transcoders(activation: str, tmp_path: Path) -> None:
    cross = pytest.importorskip("circuit_tracer.transcoder.cross_layer_transcoder", exc_type=ImportError)
    module = cross.CrossLayerTranscoder(
        4, N, D_IN, activation, lazy_decoder=False, device=torch.device("cpu"), dtype=torch.float32
    )
    fill(module, 3)
    module.to_safetensors(str(tmp_path))
    hooks = "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    (tmp_path / "config.yaml").write_text(f"model_kind: cross_layer_transcoder\nmodel_name: google/gemma-2-2b\n{hooks}")
    theirs = cross.load_clt(str(tmp_path), dtype=torch.float32, device=torch.device("cpu"))
    ours, x = gs.load_cross_layer(tmp_path), torch.stack([rows(seed) for seed in range(4)])
    with torch.no_grad():
        acts = theirs.encode(x)
        decoded = theirs.decode(acts)
    features, mine = ours.encode(x), torch.zeros(acts.shape)
    mine[features.layer, features.pos, features.feature] = features.value
    assert 0.02 < float((acts != 0).float().mean()) < 0.95
    assert float((mine - acts).abs().max()) <= CLOSE * float(acts.abs().max())
    assert float((features.reconstruction - decoded).abs().max()) <= CLOSE * float(decoded.abs().max())
