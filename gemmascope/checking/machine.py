"""What the figures of a check were measured on: versions, system and device."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

import gemmascope

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy")


def describe_machine(device: torch.device) -> dict[str, object]:
    """Versions of Python, this package and its libraries, the system, the device and its memory."""
    import psutil

    found: dict[str, object] = {"python": platform.python_version(), "gemmascope": gemmascope.__version__}
    found |= {name: _version(name) for name in _PACKAGES}
    found |= {"system": platform.platform(), "processor": platform.processor() or platform.machine()}
    found |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    found["device"] = str(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
