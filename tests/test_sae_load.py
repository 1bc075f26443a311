"""Loading dictionaries: Gemma Scope's folders and files, the hub, and everything that is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_hub
import torch
from checkpoints import model, prompt
from hub_server import COMMIT, Hub, serving
from random_dictionaries import FEATURES, Arrays, arrays, plain_acts, plain_decode, write
from safetensors.torch import save_file
from test_hub import point_to

import gemmascope as gs
from gemmascope.errors import CheckpointError, DictionaryError
from gemmascope.sae.catalogue import Suite
from gemmascope.sae.npz import read_params

REPO = "google/gemma-scope-2b-pt-res"
IDS = [2, *prompt(8)]
cache = test_hub.cache  # a fixture


def require_message(call: Callable[[], Any], *expected: str, error: type[Exception] = DictionaryError) -> None:
    with pytest.raises(error) as caught:
        call()
    for part in expected:
        assert part in str(caught.value), str(caught.value)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A small copy of a repository, with other files beside the dictionaries."""
    folder = tmp_path / "gemma-scope-2b-pt-res"
    for seed, place in enumerate(PLACES):
        write(folder / place, arrays(32, seed=seed))
    (folder / "README.md").write_text("not needed")
    (folder / "layer_1" / "notes.txt").write_text("not needed")
    return folder


PLACES = [
    "layer_1/width_16k/average_l0_22", "layer_1/width_16k/average_l0_105", "layer_1/width_65k/average_l0_20",
    "layer_2/width_16k/average_l0_71", "embedding/width_4k/average_l0_6",
]  # fmt: skip


# -- the numbers --


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_numpy_wrote_is_read_and_encodes_as_the_format_says(
    dtype: Any, save: Any, order: Any, tmp_path: Path
) -> None:
    params = {name: np.asarray(array.astype(dtype), order=order) for name, array in arrays(32, seed=4).items()}
    save(tmp_path / "params.npz", **params)
    d = gs.load_sae(tmp_path, site="resid_post", layer=1)
    for name, array in params.items():
        assert np.array_equal(getattr(d, name).numpy(), array.astype(np.float32))
    x = np.random.default_rng(0).normal(size=(7, 32)).astype(np.float32)
    features, acts = d.encode(torch.from_numpy(x)), plain_acts(params, x)
    assert np.count_nonzero(acts) == len(features.value) > 20
    assert np.allclose(features.acts.values, acts[:, features.active], atol=1e-5)
    assert np.allclose(features.reconstruction, plain_decode(params, acts), atol=1e-5)
    assert np.allclose(d.decode(torch.from_numpy(acts).float()), plain_decode(params, acts), atol=1e-5)
    assert np.allclose(d.decode(torch.from_numpy(acts).float().to_sparse()), plain_decode(params, acts), atol=1e-5)


# -- which one --


def test_layer_width_sparsity_and_site_are_read_from_folder_names(repository: Path) -> None:
    d = gs.load_sae(repository, layer=1, width=16384, l0=105)
    assert np.array_equal(d.W_enc.numpy(), arrays(32, seed=1)["W_enc"])
    assert (d.site, d.layer, d.trained_for.model) == ("resid_post", 1, "google/gemma-2-2b")
    assert gs.load_sae(repository, layer=2).layer == 2
    assert gs.load_sae(repository / "layer_1", width="65k").layer == 1
    assert gs.load_sae(repository / PLACES[3]).trained_for.size == "2b"
    assert gs.load_sae(repository / PLACES[3] / "params.npz").layer == 2
    embedded = gs.load_sae(str(repository), layer="embedding")
    assert (embedded.site, embedded.layer) == ("embed", None)
    assert d.call == f"gs.load_sae({str(repository)!r}, layer=1, width=16384, l0=105)"
    assert repr(d).startswith(f"Dictionary({d.call}: 'resid_post' of layer 1, 32 -> 40 features -> 32; trained for google/")


@pytest.mark.parametrize(
    ("name", "model_name", "site"),
    [
        ("gemma-scope-2b-pt-res", "google/gemma-2-2b", "resid_post"),
        ("gemma-scope-9b-it-res", "google/gemma-2-9b-it", "resid_post"),
        ("google/gemma-scope-9b-pt-mlp-canonical", "google/gemma-2-9b", "mlp_out"),
        ("google/gemma-scope-27b-pt-att", "google/gemma-2-27b", "z"),
        ("gemma-scope-2b-pt-transcoders", "google/gemma-2-2b", "transcoder"),
    ],
)
def test_model_and_site_are_read_from_a_repositorys_name(name: str, model_name: str, site: str) -> None:
    suite = Suite.of(name)
    assert suite is not None
    assert (suite.model, suite.site) == (model_name, site)


def test_canonical_folders_are_read(tmp_path: Path) -> None:
    place = tmp_path / "gemma-scope-2b-pt-mlp-canonical" / "layer_3" / "width_16k" / "canonical"
    write(place, arrays(32))
    dictionary = gs.load_sae(tmp_path / "gemma-scope-2b-pt-mlp-canonical", layer=3, l0="canonical")
    assert (dictionary.site, dictionary.layer) == ("mlp_out", 3)


def test_an_ambiguous_or_missing_choice_lists_the_dictionaries(repository: Path) -> None:
    require_message(lambda: gs.load_sae(repository), "5 dictionaries that fit", "layer 'embedding', 1 or 2", "l0 ")
    require_message(lambda: gs.load_sae(repository, layer=1), "3 dictionaries", "width '16k' or '65k'")
    require_message(lambda: gs.load_sae(repository, layer=1, width="16k"), "say which, by l0 22 or 105")
    require_message(
        lambda: gs.load_sae(repository, layer=1, width="16k", l0=71), "no dictionary of", "l0=71", "l0 22 or 105"
    )
    require_message(lambda: gs.load_sae(repository, layer=20), "no dictionary of layer=20", "layer 'embedding', 1 or 2")
    require_message(lambda: gs.load_sae(repository, layer=1, width=131072), "width='131k'", "width '16k' or '65k'")
    require_message(lambda: gs.load_sae(repository, layer=1, width=True), "width is how many features there are")
    require_message(lambda: gs.load_sae(repository / PLACES[3], layer=1), "no dictionary of layer=1", "layer 2")
    require_message(
        lambda: gs.load_sae(repository, layer=2, site="mlp_out"), "is of 'resid_post', and site='mlp_out' was given"
    )


def test_a_source_without_dictionaries_is_refused(tmp_path: Path) -> None:
    require_message(lambda: gs.load_sae(tmp_path / "absent"), "no folder that exists and no hub id", "'nano'")
    require_message(lambda: gs.load_sae(tmp_path), "holds no dictionaries", "layer_*/width_*/*/params.npz")
    require_message(lambda: gs.load_sae(3), "cannot load a int")  # type: ignore[arg-type]
    require_message(lambda: gs.load_sae(""), "no folder that exists")


def test_a_lone_file_needs_its_site_and_layer(tmp_path: Path) -> None:
    path = write(tmp_path, arrays(32))
    require_message(lambda: gs.load_sae(path), "say site='resid_post', 'mlp_out', 'z' or 'transcoder'")
    require_message(lambda: gs.load_sae(path, site="resid_post"), "which layer it is of: say layer=")
    require_message(lambda: gs.load_sae(path, site="resid_pots", layer=1), "Did you mean", error=gs.GemmascopeError)
    require_message(lambda: gs.load_sae(path, site="pattern", layer=1), "of a site with rows")
    require_message(lambda: gs.load_sae(path, site="resid_post", layer=-1), "a whole number of at least 0")
    assert gs.load_sae(path, site="transcoder", layer=1).writes == "mlp_out"
    wide = write(tmp_path / "wide", arrays(32, 24))
    require_message(
        lambda: gs.load_sae(wide, site="resid_post", layer=1), "reads 32 numbers and writes 24", "site='transcoder'"
    )


# -- for which model --


def test_a_dictionary_of_another_model_is_refused_and_both_models_are_named(repository: Path) -> None:
    d = gs.load_sae(repository, layer=2)
    both = (
        "trained for google/gemma-2-2b (26 layers, d_model 2304), 'resid_post' of layer 2",
        "given 'random' (3 layers, d_model 32)",
    )
    require_message(lambda: d.encode(gs.trace(IDS, model=model())), *both, "any_model=True")
    require_message(lambda: gs.load_sae(repository, layer=2, model=model()), *both)
    require_message(lambda: gs.feature_sweep(d, IDS, gs.logit_diff(5, 9), model=model()), *both)
    require_message(lambda: d.loss_recovered([IDS], model=model()), *both)
    loaded = gs.load_sae(repository, layer=2, any_model=True, model=model())
    assert len(loaded.encode(gs.trace(IDS, model=model()))) == 9


def test_a_dictionary_of_another_width_is_refused_and_both_widths_are_named(tmp_path: Path) -> None:
    write(tmp_path, arrays(24))
    d = gs.load_sae(tmp_path, site="z", layer=1)
    require_message(
        lambda: d.encode(gs.trace(IDS, model=model())), "'z' of layer 1, and reads 24 numbers", "whose 'z' has 96"
    )
    require_message(lambda: d.encode(torch.zeros(3, 25)), "reads 24 numbers a position, [pos, 24]; given shape (3, 25)")
    require_message(lambda: d.encode("text"), "encode takes a trace, or rows [pos, 24]; given str")  # type: ignore[arg-type]
    require_message(lambda: d.decode(torch.zeros(3, 24)), "[pos, 40]; given shape (3, 24)")
    with pytest.raises(DictionaryError, match="there is no layer 9"):
        gs.load_sae(write(tmp_path / "x", arrays(32)), site="resid_post", layer=9, model=model())


# -- files that are not read --


def rewritten(path: Path, change: Callable[[Arrays], Any]) -> Path:
    params: Any = arrays(32)
    change(params)
    np.savez(path, **params)
    return path


OBJECTS = np.array([{"a": 1}, None], dtype=object)
BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a missing array": (lambda m: m.pop("threshold"), "it lacks threshold"),
    "an array more": (lambda m: m.update(W_gate=m["b_dec"]), "it also holds W_gate"),
    "a skip of other axes": (lambda m: m.update(W_skip=m["b_dec"]), "it has the axes (d_in, d_out)"),
    "NaN": (lambda m: m["W_dec"].__setitem__((3, 4), np.nan), "W_dec holds NaN or infinity"),
    "infinity": (lambda m: m["b_enc"].__setitem__(3, np.inf), "b_enc holds NaN or infinity"),
    "objects": (lambda m: m.update(b_dec=OBJECTS), "b_dec holds Python objects, that is a pickle"),
    "whole numbers": (lambda m: m.update(b_dec=np.zeros(32, np.int32)), "b_dec holds int32"),
    "text": (lambda m: m.update(b_dec=np.array(["x"] * 32)), "b_dec holds <U1"),
    "an axis more": (lambda m: m.update(b_dec=np.zeros((32, 1), np.float32)), "b_dec has shape (32, 1)"),
    "no features": (lambda m: m.update(b_enc=np.zeros(0, np.float32)), "b_enc has shape (0,)"),
    "arrays that do not fit": (lambda m: m.update(threshold=m["threshold"][:-1]), "feature is 40 in W_enc"),
    "a decoder turned round": (lambda m: m.update(W_dec=m["W_dec"].T), "do not belong together"),
}


@pytest.mark.parametrize("what", BAD)
def test_files_with_other_content_are_refused(what: str, tmp_path: Path) -> None:
    change, message = BAD[what]
    path = rewritten(tmp_path / "params.npz", change)
    require_message(lambda: read_params(path), str(path), message)


class Bomb:
    """An object whose unpickling runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    went_off, path = tmp_path / "went-off", tmp_path / "params.npz"
    path.write_bytes(pickle.dumps(Bomb(went_off)))
    require_message(lambda: read_params(path), str(path), "not a params.npz that can be read")
    params: Any = arrays(32)
    params["threshold"] = np.array([Bomb(went_off)] * FEATURES, dtype=object)
    np.savez(path, **params)
    require_message(lambda: read_params(path), str(path), "threshold holds Python objects")
    with zipfile.ZipFile(path, "w") as archive:  # one named as an array that is a pickle outright
        for name in arrays(32):
            archive.writestr(f"{name}.npy", pickle.dumps(Bomb(went_off)))
    require_message(lambda: read_params(path), str(path), "not a params.npz that can be read")
    assert not went_off.exists()


def test_a_file_that_is_cut_short_or_changed_anywhere_is_refused_or_read_alike(tmp_path: Path) -> None:
    path = write(tmp_path, arrays(32))
    content = path.read_bytes()
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        require_message(lambda: read_params(path), str(path))
    good, unharmed = read_params(write(tmp_path, arrays(32))), 0
    for at in range(0, len(content), 97):
        changed = bytearray(content)
        changed[at] ^= 0x5A
        path.write_bytes(changed)
        with suppress(DictionaryError):  # else: a byte of a date or the like in the zip's own tables
            read = read_params(path)
            assert all(np.array_equal(read[name], good[name]) for name in good), at
            unharmed += 1
    assert unharmed < 20


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def test_a_file_that_declares_more_than_it_holds_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # 1 GB of zeros in 1 MB
        for name in arrays(32):
            archive.writestr(f"{name}.npy", npy((2**26,), bytes(2**28) if name == "W_enc" else b""))
    assert path.stat().st_size < 2**21
    require_message(lambda: read_params(path), str(path), "declares 268,", "no weights shrink so far")
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays(32).items():
            shape = (2**40, 2**20) if name == "W_enc" else array.shape
            archive.writestr(f"{name}.npy", npy(shape, array.tobytes()))
    require_message(lambda: read_params(path), str(path), "W_enc declares 4,611,686,018,427,387,904 bytes")


def test_a_repeated_member_or_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, arrays(32))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("b_dec.npy", npy((32,), bytes(128)))
    require_message(lambda: read_params(path), "one of them twice")
    require_message(lambda: read_params(tmp_path), "is a folder; give the file")
    require_message(lambda: read_params(tmp_path / "absent.npz"), "there is no file")
    (tmp_path / "about.json").write_text("{")
    write(tmp_path, arrays(32))
    require_message(lambda: gs.load_sae(tmp_path), "is not what training writes")


# -- the hub --


@pytest.fixture
def hub(repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as hub:
        hub.repos[REPO] = repository
        point_to(hub.address, monkeypatch)
        yield hub


def fetched(hub: Hub) -> list[str]:
    return sorted(
        {path.split(f"/{COMMIT}/")[-1] for method, path, _ in hub.served if method == "GET" and "/resolve/" in path}
    )


def test_one_file_of_a_repository_is_fetched_once(hub: Hub) -> None:
    d = gs.load_sae(REPO, layer=1, width="16k", l0=22)
    assert fetched(hub) == ["layer_1/width_16k/average_l0_22/params.npz"]
    assert np.array_equal(d.W_enc.numpy(), arrays(32)["W_enc"])
    assert d.trained_for.model == "google/gemma-2-2b"
    assert d.call == f"gs.load_sae({REPO!r}, layer=1, width='16k', l0=22)"
    hub.served.clear()
    gs.load_sae(REPO, layer=1, width="16k", l0=22)
    assert fetched(hub) == []


def test_an_ambiguous_choice_on_the_hub_lists_the_dictionaries_and_fetches_nothing(hub: Hub) -> None:
    require_message(lambda: gs.load_sae(REPO, layer=1, width="16k"), REPO, "say which, by l0 22 or 105")
    require_message(lambda: gs.load_sae(REPO, layer=7), "no dictionary of layer=7", "layer 'embedding', 1 or 2")
    assert fetched(hub) == []


def test_the_cache_serves_without_a_network(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gs.load_sae(REPO, layer=2)
    point_to("http://127.0.0.1:9", monkeypatch)  # the discard port: nobody listens
    assert gs.load_sae(REPO).layer == 2  # of those in the cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert gs.load_sae(REPO, layer=2).layer == 2
    require_message(lambda: gs.load_sae(REPO, layer=1), "no dictionary of layer=1", "layer 2")
    shutil.rmtree(cache)
    require_message(lambda: gs.load_sae(REPO, layer=2), "HF_HUB_OFFLINE forbids to fetch it", error=CheckpointError)


def test_a_gated_absent_or_unreachable_repository_is_refused(
    hub: Hub,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.gated.add(REPO)
    require_message(lambda: gs.load_sae(REPO, layer=2), f"{REPO} is gated", error=CheckpointError)
    require_message(lambda: gs.load_sae("google/gemma-scop-2b-pt-res"), "no repository on", error=CheckpointError)
    point_to("http://127.0.0.1:9", monkeypatch)
    require_message(
        lambda: gs.load_sae(REPO, layer=2), "http://127.0.0.1:9 cannot be reached", str(cache), error=CheckpointError
    )


def test_a_broken_transfer_is_an_error_that_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cuts[PLACES[3] + "/params.npz"] = [1000] + [0] * 9
    require_message(lambda: gs.load_sae(REPO, layer=2), f"fetching {REPO} broke off", error=CheckpointError)
    hub.cuts.clear()
    assert gs.load_sae(REPO, layer=2).layer == 2


def test_releases_and_ids_of_saelens_are_fetched_from_their_repositories(hub: Hub, repository: Path, tmp_path: Path) -> None:
    write(repository / "layer_20/width_16k/average_l0_71", arrays(32, seed=71))
    write(repository / "layer_20/width_16k/average_l0_139", arrays(32, seed=139))
    for d in (
        gs.load_sae("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"),
        gs.load_sae("gemma-scope-2b-pt-res-canonical", layer=20, width="16k"),
        gs.load_sae("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"),
        gs.load_sae(REPO, layer=20, l0="canonical"),
        gs.load_sae(REPO, "layer_20/width_16k/canonical"),
    ):
        assert np.array_equal(d.W_enc.numpy(), arrays(32, seed=71)["W_enc"])
        assert (d.site, d.layer, d.trained_for.model) == ("resid_post", 20, "google/gemma-2-2b")
    assert fetched(hub) == ["layer_20/width_16k/average_l0_71/params.npz"]
    require_message(lambda: gs.load_sae(REPO, "layer_20/width_17k/canonical"), "width '16k'")

    matryoshka = tmp_path / "matryoshka"
    for layer in (3, 4):
        folder = matryoshka / f"standard/blocks.{layer}.hook_resid_post"
        folder.mkdir(parents=True)
        tensors = {name: torch.from_numpy(array) for name, array in arrays(32, seed=layer).items()}
        save_file(tensors, folder / "sae_weights.safetensors")
        about = {"model_name": "gemma-2-2b", "hook_name": f"blocks.{layer}.hook_resid_post"}
        config = {"architecture": "jumprelu", "d_in": 32, "d_sae": FEATURES, "metadata": about}
        (folder / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    repo = "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40"
    hub.repos[repo] = matryoshka
    hub.served.clear()
    for arguments in (
        ("gemma-2-2b-res-matryoshka-dc", "blocks.4.hook_resid_post"),
        (repo, "standard/blocks.4.hook_resid_post"),
    ):
        d = gs.load_sae(*arguments)
        assert np.array_equal(d.W_enc.numpy(), arrays(32, seed=4)["W_enc"])
        assert (d.site, d.layer) == ("resid_post", 4)
    assert gs.load_sae("gemma-2-2b-res-matryoshka-dc", layer=4).layer == 4
    assert fetched(hub) == [f"standard/blocks.4.hook_resid_post/{name}" for name in ("cfg.json", "sae_weights.safetensors")]
    near = "did you mean 'google/gemma-scope-2b-pt-res'"
    require_message(lambda: gs.load_sae("google/gemma-scop-2b-pt-res"), near, error=CheckpointError)
