"""Writes nano as a folder in the transformers layout, which gs.load and transformers read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from gemmascope.model.gemma2 import Gemma2

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def write(net: Gemma2, config_json: Mapping[str, object], tokenizer_folder: Path, folder: Path) -> None:
    """Write the weights, rounded to bfloat16 to halve the file, with configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {key: config_json[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in (("config.json", config_json), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)
