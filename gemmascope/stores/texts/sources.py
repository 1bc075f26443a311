"""The texts of a harvest as users give them: lists, iterators, data sets, and files of text, JSON lines and Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gemmascope.arguments import as_python, is_list, short_repr
from gemmascope.errors import StoreError
from gemmascope.files.json_reader import is_regular_file, parse_json
from gemmascope.files.paths import user_path
from gemmascope.packages import requires_package

_FORMATS = "a file is .txt (a text on each line), .jsonl (an object on each line) or .parquet"


class Item(NamedTuple):
    """A text as it is given. number: from 0. name: what it is called in an error."""

    number: int
    value: object
    name: str


@dataclass(frozen=True)
class Texts:
    """The texts of a harvest, which are read once, from the first on.

    values: gives each value with its name, "" for the plain number. n_texts: how many there are; None where only reading
    tells. in_memory: whether they are all in memory anyway.
    """

    values: Callable[[], Iterator[tuple[object, str]]]
    n_texts: int | None
    in_memory: bool = False

    def items(self) -> Iterator[Item]:
        """The texts in order, numbered."""
        for number, (value, name) in enumerate(self.values()):
            yield Item(number, value, f"text {number}" + (f" ({name})" if name else ""))


def read_texts(texts: object, field: str) -> Texts:
    """The texts that a user gives.

    Args:
        texts: A list or another iterable of texts, token ids, chat messages, or mappings with a text at `field`, such as a
            data set of Hugging Face; a path of a file; or a list of paths (pathlib.Path), whose texts follow each other.
        field: The field, or the column, that holds the text.

    Raises:
        StoreError: This is something else, there is no such file, or the list is empty.
    """
    if isinstance(texts, (str, os.PathLike)):
        return _of_files([texts], field)
    if isinstance(texts, (Mapping, bytes, bytearray)) or not is_list(texts):
        raise StoreError(
            "texts is a list or another iterable of texts, a data set with a column of texts, or a path of a .txt, .jsonl "
            f"or .parquet file; given {short_repr(texts)}"
        )
    if isinstance(texts, Sequence) and texts and all(isinstance(one, os.PathLike) for one in texts):
        return _of_files(texts, field)
    texts = as_python(texts, unreadable=None)  # the rows of a tensor or an array, each a text's token ids
    if not is_list(texts):
        raise StoreError("texts is an array or a tensor whose items cannot be listed: give a list of texts")
    n_texts = length_of(texts)
    if n_texts == 0:
        raise StoreError("the list of texts is empty: give at least one")
    return Texts(lambda: ((_value(one, field), "") for one in texts), n_texts, isinstance(texts, (list, tuple)))


def length_of(value: object) -> int | None:
    """How many items a value has; None where it has no length, or, as a tensor without axes, none that can be asked for."""
    try:
        return len(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError, ValueError):
        return None


def _value(item: object, field: str) -> object:
    """The text of an item: a mapping's field, or the item itself."""
    if not isinstance(item, Mapping):
        return item
    if field not in item:
        raise StoreError(
            f"a text is a mapping without {field!r}; it has {', '.join(map(repr, list(item)[:8]))}: name the field of the "
            "text with field="
        )
    return item[field]


def _of_files(paths: Iterable[str | os.PathLike[str]], field: str) -> Texts:
    readers: list[Callable[[], Iterator[tuple[object, str]]]] = []
    counts: list[int | None] = []
    for given in paths:
        path = _require_file(given)
        if path.suffix == ".parquet":
            n_rows = _open_parquet(path, field)
            readers.append(partial(_parquet_values, path, field))
            counts.append(n_rows)
        else:
            readers.append(partial(_lines, path) if path.suffix == ".txt" else partial(_json_values, path, field))
            counts.append(None)
    n_texts = None if None in counts else sum(count or 0 for count in counts)
    return Texts(lambda: (value for reader in readers for value in reader()), n_texts)


def _require_file(given: str | os.PathLike[str]) -> Path:
    path = user_path(given, error=StoreError, what="texts")
    if path.suffix not in (".txt", ".jsonl", ".parquet"):
        hint = "" if path.suffix and " " not in str(given) else ". Texts themselves are given as a list, ['...']"
        raise StoreError(f"{_FORMATS}; given {short_repr(os.fspath(given))}{hint}")
    if not is_regular_file(path, error=StoreError):
        raise StoreError(f"there is no file {path}. Texts themselves are given as a list, ['...']")
    return path


def _lines(path: Path) -> Iterator[tuple[object, str]]:
    """Each line of a file that has more than white space, without its end."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                text = line.removesuffix("\n").removesuffix("\r")
                if text.strip():
                    yield text, f"line {number} of {path}"
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read as text in UTF-8: {error}") from error


def _json_values(path: Path, field: str) -> Iterator[tuple[object, str]]:
    """The field of every line's object; blank lines are left out."""
    for line, name in _lines(path):
        assert isinstance(line, str)
        value = parse_json(line, name, error=StoreError)
        if not isinstance(value, dict) or field not in value:
            has = f"an object with {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else short_repr(value)
            raise StoreError(f"{name} has no field {field!r}; it is {has}: name the field of the text with field=")
        yield value[field], name


def _open_parquet(path: Path, field: str) -> int:
    """The number of rows of a Parquet file. StoreError if it is not one, or has no such column."""
    with requires_package("reading Parquet", "pyarrow", install="gemmascope[parquet]"):
        import pyarrow
        import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            n_rows = int(file.metadata.num_rows)
    except (OSError, pyarrow.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as Parquet: {error}") from error
    if field not in columns:
        raise StoreError(f"{path} has no column {field!r}; it has {', '.join(map(repr, columns))}: name it with field=")
    return n_rows


def _parquet_values(path: Path, field: str) -> Iterator[tuple[object, str]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield value, f"row {number} of {path}"
                    number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as Parquet, from row {number} on: {error}") from error
