"""Checkpoints from the Hugging Face hub: what is fetched, and what to do when that fails."""

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
from gemmascope.errors import CheckpointError
from gemmascope.files.locking import lock, unlock

KNOWN = tuple(f"google/gemma-2-{size}{tuned}" for size in ("2b", "9b", "27b") for tuned in ("", "-it"))

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
    """The folder of a hub id in the hub's cache, fetched if it is not there. Only what loading needs is fetched.

    The configuration comes first: another architecture is refused before its weights are downloaded. Without a network
    the cached folder serves. Raises CheckpointError with what to do, ConfigError for another architecture.
    """
    door = _Door()
    folder = _snapshot(repo, _CONFIG, revision, door)
    read_config(folder)
    return _snapshot(repo, (*_WEIGHTS, *_TOKENIZER), folder.name, door)


def fetch_tokenizer(repo: str, revision: str | None = None) -> Path:
    """The folder of a hub id with at least its tokenizer's files. Raises CheckpointError with what to do."""
    return _snapshot(repo, _TOKENIZER, revision, _Door())


def fetch_file(repo: str, name: str, revision: str | None = None) -> Path:
    """One file of a repository by its path there, fetched if it is not in the cache. CheckpointError with what to do."""
    return _snapshot(repo, (name,), revision, _Door()) / name


def files_of(repo: str, revision: str | None = None) -> list[str]:
    """The paths of a repository's files; without a network, of those in the cache. CheckpointError with what to do."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    with _explained(repo):
        try:
            if not constants.HF_HUB_OFFLINE:
                about = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision)
                return sorted(file.rfilename for file in about.siblings or ())
        except HfHubHTTPError:  # the hub answered, and said no
            raise
        except Exception as error:  # the transports' own errors, of several libraries
            if not _is_connection(error):
                raise
            _out_of_reach[constants.ENDPOINT] = monotonic()
        # Its folder in the cache, which need not be whole: of no file is it asked whether it is there.
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["-"]))
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _is_connection(error: Exception) -> bool:
    return isinstance(error, OSError) or any(word in type(error).__name__ for word in ("Connect", "Timeout"))


def suggestion(name: str) -> str:
    """' Did you mean ...?' for a name close to one of Google's Gemma 2 repositories, else an empty text."""
    wanted, plain = _plain(name.split("/")[-1]), {_plain(known.split("/")[1]): known for known in KNOWN}
    near = [wanted] if wanted in plain else difflib.get_close_matches(wanted, plain, n=2, cutoff=0.75)
    found = [repr(plain[key]) for key in near if plain[key] != name]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass
class _Door:
    """One errand to the hub. local: whether the cache serves for all of it, the hub being out of reach; None: not known."""

    local: bool | None = None


# When each hub was last found out of reach. Asking it takes seconds, which the files of one question should wait once.
_out_of_reach: dict[str, float] = {}
_SECONDS = 60.0


def _snapshot(repo: str, files: Sequence[str], revision: str | None, door: _Door) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetched(local: bool) -> Path:
        return Path(snapshot_download(repo, allow_patterns=list(files), revision=revision, local_files_only=local))

    with _explained(repo):
        if door.local is None and monotonic() - _out_of_reach.get(constants.ENDPOINT, -_SECONDS) < _SECONDS:
            with suppress(LocalEntryNotFoundError):
                return fetched(True)
        if door.local is None:
            door.local = _is_out_of_reach(repo, revision)
        with _without_parts(repo):
            return fetched(door.local)


def _is_out_of_reach(repo: str, revision: str | None) -> bool:
    """Whether the hub does not answer. One request, which unlike those of fetching is not made again and again."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return True
    try:
        HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision)
    except HfHubHTTPError as error:  # it answered: fetching says what, unless it is broken
        return error.response is not None and error.response.status_code >= 500
    except Exception as error:  # the transports' own errors, of several libraries
        if not _is_connection(error):
            raise
        _out_of_reach[constants.ENDPOINT] = monotonic()
        return True
    _out_of_reach.pop(constants.ENDPOINT, None)
    return False


@contextmanager
def _without_parts(repo: str) -> Iterator[None]:
    """What breaks off inside leaves no parts of files in the cache."""
    started = time.time()
    try:
        yield
    except BaseException:
        _remove_parts(repo, started)
        raise


def _remove_parts(repo: str, since: float) -> None:
    """Remove the parts of files that a call which broke off left in the cache, but not those that others are fetching."""
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
    """Turns the errors of fetching into CheckpointError."""
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
        error = error.__cause__  # what the hub answered, which the library's first versions hide behind the cache
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
    # The hub library keeps no part of a file across calls (some versions do), but every file that arrived whole.
    return (
        f"fetching {repo} broke off: {_first_line(error)}. "
        "The files that had arrived are kept: call again, and it goes on with the rest"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
