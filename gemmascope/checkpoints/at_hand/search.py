"""The places where models are looked for. Each yields what was found there, and never raises for what others left there."""

from __future__ import annotations

import os
from pathlib import Path

from gemmascope.checkpoints.at_hand.entry import LeftOut, ModelAtHand
from gemmascope.checkpoints.at_hand.look import look_at_folder, look_at_gguf
from gemmascope.errors import CheckpointError
from gemmascope.files.json_reader import read_json

# Folders that are looked into below one that a user names or stands in.
MOST_FOLDERS = 2000
_SKIPPED = {"node_modules", "__pycache__", "site-packages"}
_IMAGE = "application/vnd.ollama.image."


class Search:
    """What was found so far, each path once.

    Attributes:
        found: The models, in the order in which they were found.
        left_out: Models of other architectures.
        notes: What could not be looked at.
    """

    def __init__(self) -> None:
        self.found: list[ModelAtHand] = []
        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []
        self._seen: set[str] = set()

    def folder_of_model(self, folder: Path, name: str, where: str, load: str) -> bool:
        """Look at one folder. Returns whether a model is in it, read now or before."""
        return self._is_seen(folder) or self._add(look_at_folder(folder, name, where, load), folder)

    def gguf(self, path: Path, name: str, where: str, load: str) -> None:
        """Look at one GGUF file; of a split one, at its first part alone."""
        is_later_part = "-of-" in path.stem and not path.stem.rpartition("-of-")[0].endswith("-00001")
        if not is_later_part and not self._is_seen(path):
            self._add(look_at_gguf(path, name, where, load), path)

    def _is_seen(self, path: Path) -> bool:
        return os.path.realpath(path) in self._seen

    def _add(self, found: ModelAtHand | LeftOut | None, path: Path) -> bool:
        if found is None:
            return False
        self._seen.add(os.path.realpath(path))
        (self.found if isinstance(found, ModelAtHand) else self.left_out).append(found)  # type: ignore[arg-type]
        return True

    # -- places --

    def below(self, root: Path, where: str, depth: int) -> None:
        """Checkpoints' folders and GGUF files in a folder and so many levels below it."""
        waiting, looked = [(root, 0)], 0
        while waiting:
            folder, level = waiting.pop(0)
            looked += 1
            if looked > MOST_FOLDERS:
                self.notes.append(f"after {MOST_FOLDERS:,} folders below {root}, the rest was not looked at")
                return
            is_model = self.folder_of_model(folder, folder.resolve().name, where, load_text(folder))
            files, folders = _entries(folder)
            for path in files:
                if path.suffix.lower() == ".gguf":
                    self.gguf(path, path.stem, where, load_text(path))
            if not is_model and level < depth:
                waiting += [(inner, level + 1) for inner in folders]

    def hub_cache(self, cache: Path) -> None:
        """The snapshots in the hub's cache, and the GGUF files in them."""
        for repository in _entries(cache)[1]:
            if not repository.name.startswith("models--"):
                continue
            name = repository.name.removeprefix("models--").replace("--", "/", 1)
            main = _text(repository / "refs" / "main")
            for snapshot in sorted(_entries(repository / "snapshots")[1], key=lambda path: path.name != main):
                is_main = snapshot.name == main
                label = name if is_main else f"{name}@{snapshot.name[:7]}"
                load = name if is_main and not os.path.isdir(name) else str(snapshot)
                self.folder_of_model(snapshot, label, "Hugging Face", load)
                for path in sorted(snapshot.rglob("*.gguf")):
                    self.gguf(path, f"{name}/{path.name}", "Hugging Face", str(path))

    def ollama(self, folder: Path) -> None:
        """The models that Ollama's manifests name. A manifest is a file registry/owner/model/tag."""
        manifests = folder / "manifests"
        for directory, _, files in os.walk(manifests):
            for file in sorted(files):
                path = Path(directory) / file
                self._ollama_model(path, _ollama_name(path.relative_to(manifests)), folder / "blobs")

    def _ollama_model(self, manifest: Path, name: str, blobs: Path) -> None:
        try:
            layers = read_json(manifest).get("layers")
        except CheckpointError as error:
            self.notes.append(f"Ollama's manifest of {name} cannot be read: {error}")
            return
        kinds = {}
        for layer in layers if isinstance(layers, list) else ():
            if isinstance(layer, dict) and isinstance(layer.get("digest"), str):
                kinds[str(layer.get("mediaType"))] = layer["digest"].replace(":", "-")
        if (digest := kinds.get(f"{_IMAGE}model")) is None:
            return
        if f"{_IMAGE}adapter" in kinds:
            self.notes.append(f"{name} of Ollama has an adapter beside its model, which is not read")
            return
        blob = blobs / digest
        if blob.is_file():
            self.gguf(blob, name, "Ollama", str(blob))
        else:
            self.notes.append(f"the blob of {name} is not in Ollama's {blobs}")


def load_text(path: Path) -> str:
    """What gs.load takes for a path: relative to the current folder if it lies there, and is not a name by itself."""
    path = Path(os.path.abspath(path))
    try:
        relative = str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
    return str(path) if relative in (".", "nano") else relative


def _ollama_name(path: Path) -> str:
    """registry.ollama.ai/library/gemma2/2b is gemma2:2b there; models of others keep their owner."""
    *parts, tag = path.parts
    if parts[:1] == ["registry.ollama.ai"]:
        parts = parts[2:] if parts[1:2] == ["library"] else parts[1:]
    return f"{'/'.join(parts)}:{tag}"


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders in a folder, by name; none if it is not there or may not be read. No hidden folder."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_file():
                    files.append(folder / entry.name)
                elif entry.is_dir() and not entry.name.startswith(".") and entry.name not in _SKIPPED:
                    folders.append(folder / entry.name)
    except OSError:
        pass
    return files, folders


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
