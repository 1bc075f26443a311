"""GGUF files, as llama.cpp, Ollama and LM Studio keep Gemma 2 and Gemma 3: their metadata, tensors and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gemmascope.checkpoints.gguf.config import config_of
from gemmascope.checkpoints.gguf.header import is_gguf
from gemmascope.checkpoints.gguf.tensors import GGUFTensors, open_parts
from gemmascope.checkpoints.tensor_names import EMBEDDING
from gemmascope.config import GemmaConfig
from gemmascope.errors import CheckpointError
from gemmascope.tokens.gguf import tokenizer_of
from gemmascope.tokens.tokenizer import Tokenizer

__all__ = ["GGUFFile", "GGUFTensors", "is_gguf"]


@dataclass(frozen=True)
class GGUFFile:
    """An open GGUF file.

    Attributes:
        path: The file; of a split one, the part that was named.
        metadata: Its metadata, of which a split file's first part has all.
        tensors: Its tensors, those of all parts.
        config: The shape of its model.
    """

    path: Path
    metadata: Mapping[str, object]
    tensors: GGUFTensors
    config: GemmaConfig

    @classmethod
    def open(cls, path: Path, *, skip_lists: bool = False) -> GGUFFile:
        """Raises CheckpointError for a file that cannot be read, and ConfigError for one of another architecture.

        skip_lists: Leave out long lists of the metadata, and with them the tokenizer: to look at a file, not to load it.
        """
        headers = open_parts(path, skip_lists=skip_lists)
        metadata = headers[0].metadata
        shape = next(
            (entry.shape for header in headers for entry in header.entries if entry.name == "token_embd.weight"), None
        )
        config = config_of(metadata, shape[0] if shape else 1, path)  # first: another architecture is the better message
        if not shape:
            raise CheckpointError(f"{path} has no embedding (token_embd.weight): it holds no whole model")
        tensors = GGUFTensors(headers)
        assert EMBEDDING in tensors.stored
        return cls(path, metadata, tensors, config)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer, built from the metadata; None if it has none."""
        return tokenizer_of(self.metadata, self.path)

    @cached_property
    def companions(self) -> dict[str, bytes]:
        """The files of configuration and tokenizer that a folder of this model would have, by name."""
        files = {"config.json": json.dumps(self.config.to_dict(), indent=1).encode()}
        if self.tokenizer is not None:
            files["tokenizer.json"] = self.tokenizer.as_json()
            settings = {"tokenizer_class": "GemmaTokenizer", "bos_token": self.tokenizer.text(self.tokenizer.bos_id)}
            if isinstance(template := self.metadata.get("tokenizer.chat_template"), str):
                settings["chat_template"] = template
            files["tokenizer_config.json"] = json.dumps(settings, indent=1).encode()
        return files
