"""A model that is in the hub's cache loads without a network after one request; a revision pins what is loaded."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import checkpoint
from hub_server import COMMIT, Hub, serving
from random_dictionaries import arrays

import gemmascope as gs
from gemmascope.checkpoints import hub as door
from gemmascope.errors import CheckpointError

REPO, SCOPE, NANO = "google/gemma-2-2b", "google/gemma-scope-2b-pt-res", Path(gs.__file__).parent / "nano" / "checkpoint"
OTHER = "1" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a model as the hub's library lays it out, and no hub; requests to it are counted."""
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    for commit in (COMMIT, OTHER):
        shutil.copytree(NANO, snapshot(cache, commit))
    config = snapshot(cache, OTHER) / "config.json"
    config.write_text(config.read_text().replace('"sliding_window": 16', '"sliding_window": 5'))
    for name, commit in (("main", COMMIT), ("v1", OTHER)):
        refer(cache, name, commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    monkeypatch.setattr(door, "_unreachable", {})
    return cache


def snapshot(cache: Path, commit: str, repo: str = REPO) -> Path:
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def refer(cache: Path, name: str, commit: str, repo: str = REPO) -> None:
    refs = cache / f"models--{repo.replace('/', '--')}" / "refs"
    refs.mkdir(exist_ok=True, parents=True)
    (refs / name).write_text(commit)


@pytest.fixture
def requests(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The attempted connections to the hub; nothing waits between them."""
    from huggingface_hub.utils import build_hf_headers

    build_hf_headers()  # the hub's library makes a request once in a process, for its user agent
    tried: list[Any] = []
    connect = socket.socket.connect

    def counted(self: socket.socket, address: Any) -> None:
        tried.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", counted)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return tried


def to_the_hub(requests: list[Any]) -> int:
    return sum(address[1] == 9 for address in requests if isinstance(address, tuple))


@pytest.mark.parametrize("revision", [None, "main", "v1", OTHER])
def test_a_cached_model_asks_for_the_hub_once(revision: str | None, cache: Path, requests: list[Any]) -> None:
    model = gs.load(REPO, revision=revision)
    assert model.config.window == (5 if revision in ("v1", OTHER) else 16)
    assert to_the_hub(requests) == 1
    gs.load(REPO, revision=revision, tokenizer=REPO)  # within a minute there is no second request
    assert to_the_hub(requests) == 1


def test_a_cached_dictionary_asks_for_the_hub_once(cache: Path, requests: list[Any]) -> None:
    import numpy as np

    folder = snapshot(cache, COMMIT, SCOPE) / "layer_1/width_16k/average_l0_9"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **arrays(32))
    refer(cache, "main", COMMIT, SCOPE)
    assert gs.load_sae(SCOPE, any_model=True).layer == 1
    assert to_the_hub(requests) == 1


def test_a_model_that_is_not_cached_is_an_error_that_says_the_hub_is_unreachable(cache: Path, requests: list[Any]) -> None:
    gs.load(REPO)
    for revision in ("v2", "3" * 40):
        with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9 cannot be reached and google/gemma-2-2b is not"):
            gs.load(REPO, revision=revision)


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants, file_download

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        url = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # the library's first versions copy it
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", url, raising=False)
        yield hub


def test_a_pinned_revision_is_fetched_and_kept_with_the_model(hub: Hub, tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path / "made")
    hub.repos["some/model"] = tmp_path / "made"
    model = gs.load("some/model", revision=COMMIT)
    assert (model.source, model.asked) == ("some/model", {"revision": COMMIT})
    paths = [path for _, path, _ in hub.served if "/resolve/" in path]
    assert paths
    assert all(f"/resolve/{COMMIT}/" in path for path in paths)


def test_an_adapter_on_the_hub_is_refused_before_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    checkpoint("lg").save_pretrained(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "google/gemma-2-2b"}')
    hub.repos["some/adapter"] = folder
    with pytest.raises(CheckpointError, match="holds an adapter"):
        gs.load("some/adapter")
    assert hub.fetched() == {"config.json", "generation_config.json", "adapter_config.json"}
