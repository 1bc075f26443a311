"""Checkpoints of any size that take no space on disk: real headers, and sparse files for the values, which read as 0."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemmascope.checkpoints.from_transformers import empty_network
from gemmascope.config import GemmaConfig

WIDTH = {"F32": 4, "BF16": 2, "F16": 2}


def write(folder: Path, config: Mapping[str, Any], dtype: str = "BF16", n_shards: int = 3) -> Path:
    """A sharded checkpoint folder with this config.json and zeros for weights."""
    network = empty_network(GemmaConfig.from_dict(config))
    shapes = [(name, list(p.shape)) for name, p in network.named_parameters()]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    for number in range(n_shards):
        file = f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
        part = shapes[number::n_shards]  # a layer's tensors are spread over all shards
        _write_shard(folder / file, part, dtype)
        weight_map |= {name: file for name, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _write_shard(path: Path, shapes: list[tuple[str, list[int]]], dtype: str) -> None:
    header, end = {}, 0
    for name, shape in shapes:
        start, end = end, end + WIDTH[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
