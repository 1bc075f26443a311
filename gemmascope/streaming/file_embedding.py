"""An embedding that stays in its file: rows are read as they are needed, and logits are computed in chunks of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from gemmascope.files.positional_read import PAGE
from gemmascope.model.digests import TensorDigest
from gemmascope.streaming.packed import FileRange, TensorSlice, bytes_of, file_stamp, page_buffer, require_stamp
from gemmascope.values import chunks

# Bytes of the table that are in memory at once.
CHUNK_BYTES = 64 * 2**20


class FileEmbedding(nn.Module):
    """A token embedding in a file. Its `weight` is on the meta device; `read` and `parts` read the rows.

    Args:
        path: A safetensors file.
        data: The offset of the file's data.
        table: The embedding's place in the data.
        dtype: The dtype to compute in.
        device: The device to compute on.
    """

    def __init__(self, path: Path, data: int, table: TensorSlice, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.path, self.offset, self.table, self.dtype, self.device = path, data + table.start, table, dtype, device
        self.stamp = file_stamp(path)
        self._digest: str | None = None
        self.weight = nn.Parameter(torch.empty(table.shape, dtype=dtype, device="meta"), requires_grad=False)
        self.row_bytes = table.shape[1] * table.dtype.itemsize
        step = PAGE // math.gcd(PAGE, self.row_bytes)  # this many rows are whole pages
        self.rows_at_once = max(1, CHUNK_BYTES // (self.row_bytes * step)) * step

    def forward(self, ids: Tensor) -> Tensor:
        distinct, inverse = torch.unique(ids.cpu(), return_inverse=True)
        rows = [self.read(i, i + 1) for i in distinct.tolist()]
        return torch.cat(rows)[inverse].to(self.device)

    def logits(self, x: Tensor) -> Tensor:
        """The products of rows with every token's embedding, before the soft cap: [row, vocab]."""
        products: Tensor = _Logits.apply(x, self)  # type: ignore[no-untyped-call]
        return products

    def digest(self) -> str:
        """The digest that the table would have in memory. Reads the file once, and later only checks its stamp."""
        if self._digest is None:
            bits = TensorDigest(f"{self.dtype} {tuple(self.weight.shape)}")
            for _, rows in self.parts():
                bits.add(rows)
            self._digest = bits.hexdigest()
        require_stamp(self.path, self.stamp)
        return self._digest

    def mark(self) -> str:
        """What a run records of the table to notice changes: its file and its stamp."""
        return repr((str(self.path), file_stamp(self.path)))

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """The table in chunks: the tokens, and their rows, which are valid until the next chunk."""
        buffer = page_buffer(self.rows_at_once * self.row_bytes)
        for tokens in chunks(self.table.shape[0], self.rows_at_once):
            yield tokens, self.read(tokens.start, tokens.stop, buffer).to(self.device)

    def read(self, start: int, stop: int, buffer: Tensor | None = None) -> Tensor:
        """The rows of the tokens from start to stop - 1, on the CPU: [token, d_model]."""
        n_bytes = (stop - start) * self.row_bytes
        direct = buffer is not None  # the whole table should not push other files out of the page cache
        buffer = torch.empty(n_bytes, dtype=torch.uint8) if buffer is None else buffer
        FileRange(self.path, self.offset + start * self.row_bytes, n_bytes, 0, self.stamp).read(
            bytes_of(buffer), direct=direct
        )
        return buffer[:n_bytes].view(self.table.dtype).view(stop - start, -1).to(self.dtype)


class _Context(FunctionCtx):
    """What the backward pass needs."""

    embedding: FileEmbedding


class _Logits(torch.autograd.Function):
    """x @ table.T, with the table read in chunks, and again in the backward pass."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, embedding: FileEmbedding) -> Tensor:
        ctx.embedding = embedding
        out = x.new_empty(len(x), embedding.table.shape[0])
        for tokens, rows in embedding.parts():
            out[:, tokens] = x @ rows.T
        return out

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        total = sum((grad[:, tokens] @ rows).float() for tokens, rows in ctx.embedding.parts())  # summed in float32
        return torch.as_tensor(total).to(grad.dtype), None
