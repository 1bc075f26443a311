"""An embedding that stays in its file: rows are read as they are asked for, and logits are made a part at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gemmascope.files.positional_read import PAGE
from gemmascope.model.digests import TensorDigest
from gemmascope.streaming.packed import FileRange, TensorSlice, bytes_of, require_stamp, room, stamp_of

# Bytes of the table that are held at once.
PART = 64 * 2**20


class FileEmbedding(nn.Module):
    """The table of tokens in a file. path: a safetensors file; data: where its tensors begin; piece: the table's.

    `weight` is empty here: what needs the whole table reads it with `read`.
    """

    def __init__(self, path: Path, data: int, piece: TensorSlice, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.path, self.offset, self.piece, self.dtype, self.device = path, data + piece.start, piece, dtype, device
        self.stamp = stamp_of(path)
        self._digest: str | None = None
        self.weight = nn.Parameter(torch.empty(piece.shape, dtype=dtype, device="meta"), requires_grad=False)
        self.width = piece.shape[1] * piece.dtype.itemsize
        step = PAGE // math.gcd(PAGE, self.width)  # so many rows are whole pages
        self.rows_at_once = max(1, PART // (self.width * step)) * step

    def forward(self, ids: Tensor) -> Tensor:
        numbers, places = torch.unique(ids, return_inverse=True)
        rows = [self.read(int(i), int(i) + 1) for i in numbers]
        return torch.cat(rows)[places].to(self.device)

    def logits(self, x: Tensor) -> Tensor:
        """The products of rows with every token's embedding, before the soft cap."""
        found: Tensor = _Logits.apply(x, self)  # type: ignore[no-untyped-call]
        return found

    def digest(self) -> str:
        """The digest of the table, as a table in memory has it. Reads the file once: its stamp is looked at ever after."""
        if self._digest is None:
            found = TensorDigest(f"{self.dtype} {tuple(self.weight.shape)}")
            for _, rows in self.parts():
                found.add(rows)
            self._digest = found.hexdigest()
        require_stamp(self.path, self.stamp)
        return self._digest

    def mark(self) -> str:
        """What a run notes of the table: its file, which is looked at whenever it is read."""
        return repr((str(self.path), stamp_of(self.path)))

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The table, a part at a time: which tokens, and their rows. A part is good until the next."""
        buffer = room(self.rows_at_once * self.width)
        for start in range(0, self.piece.shape[0], self.rows_at_once):
            stop = min(start + self.rows_at_once, self.piece.shape[0])
            yield slice(start, stop), self.read(start, stop, buffer).to(self.device)

    def read(self, start: int, stop: int, buffer: Tensor | None = None) -> Tensor:
        """The rows of the tokens start to stop - 1, on the CPU."""
        n_bytes = (stop - start) * self.width
        direct = buffer is not None  # a part of the whole table, which should not push other things out of the page cache
        buffer = torch.empty(n_bytes, dtype=torch.uint8) if buffer is None else buffer
        FileRange(self.path, self.offset + start * self.width, n_bytes, 0, self.stamp).read(bytes_of(buffer), direct=direct)
        return buffer[:n_bytes].view(self.piece.dtype).view(stop - start, -1).to(self.dtype)


class _Logits(torch.autograd.Function):
    """x @ table.T, the table read a part at a time; backward reads it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: FileEmbedding) -> Tensor:
        ctx.table = table
        out = x.new_empty(len(x), table.piece.shape[0])
        for tokens, rows in table.parts():
            out[:, tokens] = x @ rows.T
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        total = sum((grad[:, tokens] @ rows).float() for tokens, rows in ctx.table.parts())  # in float32: there are many
        return torch.as_tensor(total).to(grad.dtype), None
