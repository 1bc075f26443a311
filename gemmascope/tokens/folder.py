"""Reads the tokenizer of a folder: its backend, and the id of `<bos>`.

tokenizer.json or tokenizer.model is nearly always enough. If other files add tokens, or the tokenizer is not Gemma's,
transformers reads the folder, which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmascope.errors import CheckpointError, GemmascopeError, warn
from gemmascope.files.json_reader import is_regular_file, read_json
from gemmascope.tokens.backends import JsonBackend, PieceBackend

JSON, PIECES, SETTINGS = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
# The classes of transformers that read tokenizer.json unchanged, and those of Gemma.
_AS_IT_STANDS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_GEMMAS = ("GemmaTokenizer", "GemmaTokenizerFast")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer. CheckpointError if its file is a folder or a broken link."""
    return is_regular_file(folder / JSON) or is_regular_file(folder / PIECES)


def settings_of(folder: Path) -> dict[str, object]:
    """The contents of tokenizer_config.json; empty if there is none."""
    path = folder / SETTINGS
    try:
        return read_json(path) if is_regular_file(path) else {}
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read as a JSON object: {error}") from error


def read_tokenizer(folder: Path, settings: Mapping[str, object]) -> tuple[JsonBackend | PieceBackend, int | None]:
    """The backend of a folder, and the id of its `<bos>` if it names one. CheckpointError if it cannot be read."""
    backend: JsonBackend | PieceBackend
    try:
        backend = JsonBackend.from_file(folder / JSON) if is_regular_file(folder / JSON) else PieceBackend(folder / PIECES)
        special = read_json(folder / SPECIAL) if is_regular_file(folder / SPECIAL) else {}
        if _needs_transformers(folder, backend, settings, special):
            return _by_transformers(folder)
    except GemmascopeError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: {SETTINGS}, {ADDED} or {SPECIAL} hold something else than tokens: {error}"
        ) from error
    name = _name(settings.get("bos_token")) or _name(special.get("bos_token"))
    if isinstance(backend, PieceBackend) and settings.get("add_eos_token") is True:
        warn_of_wrapping(folder, f"{_name(settings.get('eos_token')) or '<eos>'!r} behind", None)
    return backend, backend.bos if name is None else backend.id_of(name)


def _needs_transformers(
    folder: Path, backend: JsonBackend | PieceBackend, settings: Mapping[str, object], special: Mapping[str, object]
) -> bool:
    added = read_json(folder / ADDED) if is_regular_file(folder / ADDED) else {}
    named = [*_in_settings(settings), *((name, int(i), {}) for name, i in added.items()), *_in_special(special)]
    if settings.get("split_special_tokens") or not all(backend.matches(*token) for token in named):
        return True
    kind = settings.get("tokenizer_class")
    if kind in _AS_IT_STANDS and isinstance(backend, JsonBackend):
        return False
    if kind is None or kind in _GEMMAS:  # transformers cannot convert a tokenizer without BPE to Gemma's
        return not backend.is_gemmas() and (isinstance(backend, PieceBackend) or backend.is_bpe()) and kind is not None
    return True


def _in_settings(settings: Mapping[str, object]) -> Iterator[tuple[str, int | None, dict[str, bool]]]:
    """The tokens that tokenizer_config.json names: content, id (None if not stated), flags."""
    added: Any = settings.get("added_tokens_decoder") or {}
    for token_id, token in added.items():
        yield token["content"], int(token_id), {flag: token[flag] for flag in _FLAGS if flag in token}
    yield from _in_special(settings)


def _in_special(special: Mapping[str, object]) -> Iterator[tuple[str, int | None, dict[str, bool]]]:
    """The tokens that are named by their role, such as bos_token, and the additional ones."""
    value: Any
    for key, value in special.items():
        several = key in ("additional_special_tokens", "extra_special_tokens")
        if several or key.endswith("_token"):
            each = list(value.values()) if isinstance(value, Mapping) and several else value if several else [value]
            yield from ((name, None, {}) for name in map(_name, each or ()) if name is not None)


def _name(token: object) -> str | None:
    """The name of a token that JSON holds as text or as an object; None for anything else."""
    name = token.get("content") if isinstance(token, Mapping) else token
    return name if isinstance(name, str) else None


def _by_transformers(folder: Path) -> tuple[JsonBackend, int | None]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # its many readers raise all kinds
        files = sorted(path.name for path in folder.glob("*token*"))
        raise CheckpointError(
            f"the tokenizer in {folder} has tokens or rules that only transformers reads, and it cannot "
            f"({', '.join(files)}): {type(error).__name__}: {error}"
        ) from error
    return backend_of(tokenizer), tokenizer.bos_token_id


def backend_of(tokenizer: object) -> JsonBackend:
    """The backend of a transformers tokenizer. CheckpointError for one without a fast backend."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        raise CheckpointError(
            f"transformers reads this tokenizer with {type(tokenizer).__name__}, which has no fast backend: "
            "save it with save_pretrained from a fast tokenizer"
        )
    return JsonBackend(inner)


def warn_of_wrapping(source: object, what: str, instead: str | None) -> None:
    """Warn that transformers adds something around each text, which this package does not."""
    warn(
        f"the tokenizer of {source} puts {what} each text when transformers calls it. gemmascope puts <bos> in front once, "
        f"and nothing else: {instead or 'write it into the prompt where it is meant'}"
    )
