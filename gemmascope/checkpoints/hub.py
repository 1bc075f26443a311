"""Downloading checkpoints from the Hugging Face hub, and what to do when that fails."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from gemmascope.checkpoints.folder import read_config
from gemmascope.config_json import relative_named
from gemmascope.errors import CheckpointError
from gemmascope.files.locking import lock, unlock

KNOWN_REPOS = (
    *(f"google/gemma-2-{size}{tuned}" for size in ("2b", "9b", "27b") for tuned in ("", "-it")),
    *("google/gemma-3-270m", "google/gemma-3-270m-it"),
    *(f"google/gemma-3-{size}-{tuned}" for size in ("1b", "4b", "12b", "27b") for tuned in ("pt", "it")),
)

_CONFIG = ("config.json", "generation_config.json", "adapter_config.json")
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip
_NANO = 'gs.load("nano") needs no access and no network'


def is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def fetch(repo: str, revision: str | None = None) -> Path:
    """The folder of a hub id in the hub's cache, downloaded if it is not there. Only the files that loading needs.

    The configuration comes first, so that another architecture is refused before its weights are downloaded. Without a
    network the cached folder is used.

    Raises:
        CheckpointError: The download failed; the message says what to do.
        ConfigError: The repository holds another architecture.
    """
    request = _Request()
    folder = _snapshot(repo, _CONFIG, revision, request)
    read_config(folder)
    return _snapshot(repo, (*_WEIGHTS, *_TOKENIZER), folder.name, request)


def fetch_tokenizer(repo: str) -> Path:
    """The folder of a hub id with at least its tokenizer's files."""
    return _snapshot(repo, _TOKENIZER, None, _Request())


def fetch_file(repo: str, name: str, revision: str | None = None) -> Path:
    """A file of a repository, by its path there; downloaded if it is not in the cache."""
    return _snapshot(repo, (name,), revision, _Request()) / name


def files_of(repo: str, revision: str | None = None) -> list[str]:
    """The paths of a repository's files; without a network, of those in the cache."""
    from huggingface_hub import snapshot_download

    with _explained(repo):
        if (paths := _paths_on_hub(repo, revision)) is not None:
            return paths
        # The repository's folder in the cache, complete or not: the pattern matches no file, so none is missed.
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["-"]))
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _paths_on_hub(repo: str, revision: str | None) -> list[str] | None:
    """The paths of a repository's files, from one request; None if the hub does not answer. HfHubHTTPError if it refuses."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        about = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision)
        _unreachable.pop(constants.ENDPOINT, None)
        return sorted(file.rfilename for file in about.siblings or ())
    except HfHubHTTPError:  # the hub answered, with an error
        raise
    except Exception as error:  # the transports' own errors, of several libraries
        if not _is_connection(error):
            raise
        _unreachable[constants.ENDPOINT] = monotonic()
        return None


def _is_connection(error: Exception) -> bool:
    return isinstance(error, OSError) or any(word in type(error).__name__ for word in ("Connect", "Timeout"))


def suggestion(name: str) -> str:
    """' Did you mean ...?' for a name similar to one of Google's Gemma repositories, else an empty string.

    A name of another architecture gets what it is instead: "gemma-7b" is no mistyped "gemma-2-27b".
    """
    if relative := relative_named(name):
        return f" By its name it is {relative}, another architecture; this package runs Gemma 2 and Gemma 3."
    plain, known_names = _plain(name.split("/")[-1]), {_plain(known.split("/")[1]): known for known in KNOWN_REPOS}
    near = [plain] if plain in known_names else difflib.get_close_matches(plain, known_names, n=2, cutoff=0.75)
    suggestions = [repr(known_names[key]) for key in near if known_names[key] != name]
    return f" Did you mean {' or '.join(suggestions)}?" if suggestions else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass
class _Request:
    """One call's downloads. local: whether the hub is unreachable, so that the cache is used; None: not yet known."""

    local: bool | None = None


# When each hub was last found unreachable. Finding out takes seconds, which several downloads should spend once.
_unreachable: dict[str, float] = {}
_SECONDS = 60.0


def _snapshot(repo: str, files: Sequence[str], revision: str | None, request: _Request) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetched(local: bool) -> Path:
        return Path(snapshot_download(repo, allow_patterns=list(files), revision=revision, local_files_only=local))

    with _explained(repo):
        if request.local is None and monotonic() - _unreachable.get(constants.ENDPOINT, -_SECONDS) < _SECONDS:
            with suppress(LocalEntryNotFoundError):
                return fetched(True)
        if request.local is None:
            request.local = _is_unreachable(repo, revision)
        with _without_parts(repo):
            return fetched(request.local)


def _is_unreachable(repo: str, revision: str | None) -> bool:
    """Whether the hub does not answer. Asked with one request; a download would retry many times."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return _paths_on_hub(repo, revision) is None
    except HfHubHTTPError as error:  # it answered; unless the hub is broken, downloading reports what is wrong
        return error.response is not None and error.response.status_code >= 500


@contextmanager
def _without_parts(repo: str) -> Iterator[None]:
    """If the download inside is interrupted, removes the partial files that it left in the cache."""
    started = time.time()
    try:
        yield
    except BaseException:
        _remove_parts(repo, started)
        raise


def _remove_parts(repo: str, since: float) -> None:
    """Remove the partial files that an interrupted call left in the cache, but not those that others are downloading."""
    from huggingface_hub import constants

    folder, locks = f"models--{repo.replace('/', '--')}", Path(constants.HF_HUB_CACHE) / ".locks"
    for part in (Path(constants.HF_HUB_CACHE) / folder / "blobs").glob("*.incomplete"):
        guard = locks / folder / f"{part.name.partition('.')[0]}.lock"
        with suppress(OSError):
            if part.stat().st_mtime < since - 2:  # file systems round times
                continue
            if not guard.exists():
                part.unlink()
                continue
            with guard.open("a") as file:
                if lock(file, wait=False):
                    part.unlink()
                    unlock(file)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns the errors of downloading into CheckpointError."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(f"{repo!r} is no hub id: {error}") from error
    except OSError as error:
        raise CheckpointError(_reason(repo, error)) from error
    except Exception as error:  # the transports' own errors, of several libraries: httpx, httpx2, hf_xet
        raise CheckpointError(_broken_off(repo, error)) from error


def _reason(repo: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the hub's own answer, which early versions of the library hide behind the cache
    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then {login}, and call again. {_NANO}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo!r} is no folder here, and no repository on {constants.ENDPOINT} that you can see."
            f"{suggestion(repo)} If it is private, {login}. {_NANO}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision on {constants.ENDPOINT}: {_first_line(error)}. Give a branch, a tag or a commit"
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return (
            f"{repo} is not, or not wholly, in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it: "
            f"unset it, or fetch the repository where there is a network. {_NANO}"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{constants.ENDPOINT} cannot be reached and {repo} is not, or not wholly, in the cache "
            f"{constants.HF_HUB_CACHE}: {_first_line(error)}. Call again with a network. {_NANO}"
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return f"{constants.ENDPOINT} refuses access to {repo} with the token you gave: {login} again. {_NANO}"
    return _broken_off(repo, error)


def _broken_off(repo: str, error: Exception) -> str:
    # The hub library keeps every file that arrived whole; only some versions keep partial files.
    return (
        f"fetching {repo} broke off: {_first_line(error)}. "
        "The files that had arrived are kept: call again, and it goes on with the rest"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
