"""Where other programs keep models: their folders on Linux, macOS and Windows, and the variables that move them.

References: the documentation of Ollama (OLLAMA_MODELS), llama.cpp (LLAMA_CACHE) and LM Studio (its folders of models).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemmascope.errors import CheckpointError
from gemmascope.files.json_reader import read_json

NANO = Path(__file__).parent.parent.parent / "nano" / "checkpoint"


@dataclass(frozen=True)
class Machine:
    """What decides where programs keep their files. platform: as sys.platform has it."""

    platform: str
    env: Mapping[str, str]
    home: Path

    @classmethod
    def this(cls) -> Machine:
        return cls(sys.platform, os.environ, Path.home())

    def path(self, name: str) -> Path | None:
        """The folder that a variable names; None if it is not set, or empty. "~" is the home folder."""
        text = self.env.get(name, "")
        if text == "~" or text.startswith(("~/", "~\\")):
            return self.home / text[2:]
        return Path(text) if text else None

    @property
    def caches(self) -> Path:
        """The folder for programs' caches."""
        if self.platform == "darwin":
            return self.home / "Library" / "Caches"
        if self.platform == "win32":
            return self.path("LOCALAPPDATA") or self.home / "AppData" / "Local"
        return self.path("XDG_CACHE_HOME") or self.home / ".cache"


def hub_cache() -> Path:
    """The hub's cache, as the hub's library found it in the environment when it was imported; gs.load uses the same."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def llama_cpp_folders(machine: Machine) -> list[Path]:
    """llama.cpp's cache, where its -hf option downloads to."""
    return [machine.path("LLAMA_CACHE") or machine.caches / "llama.cpp"]


def ollama_folders(machine: Machine) -> list[Path]:
    """Ollama's folders: the one that OLLAMA_MODELS names, or those of the user and, on Linux, of its service."""
    if given := machine.path("OLLAMA_MODELS"):
        return [given]
    services = [Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/.ollama/models"), Path("/var/lib/ollama")]
    return [machine.home / ".ollama" / "models", *(services if machine.platform.startswith("linux") else ())]


def lm_studio_folders(machine: Machine) -> list[Path]:
    """LM Studio's folders of models: in its home folder, where its settings say, and where early versions had them."""
    home = machine.home / ".lmstudio"
    pointer = machine.home / ".lmstudio-home-pointer"
    try:
        if pointer.is_file():
            home = Path(pointer.read_text(encoding="utf-8").strip() or home)
    except (OSError, ValueError):
        pass
    folders = [home / "models", machine.home / ".cache" / "lm-studio" / "models"]
    try:
        chosen = read_json(home / "settings.json").get("downloadsFolder")
    except CheckpointError:
        chosen = None
    return [*([Path(chosen)] if isinstance(chosen, str) and chosen else ()), *folders]
