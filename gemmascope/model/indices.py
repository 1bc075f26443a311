"""Index arithmetic on the host, in numpy, and its copy to the device: an accelerator is never waited for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gemmascope.values import Array


def index_tensor(array: Array, device: torch.device) -> Tensor:
    """An array as a tensor on the device. The host does not wait for the copy."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def ranges(starts: Array, lengths: Array) -> Array:
    """The numbers of several ranges, one range behind the other: those from each start on, as many as its length."""
    starts, lengths = np.asarray(starts, dtype=np.int64), np.asarray(lengths, dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
