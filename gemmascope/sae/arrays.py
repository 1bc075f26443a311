"""DictionaryArrays: the arrays of a sparse autoencoder or transcoder, and what they compute.

    pre = x @ W_enc + b_enc
    acts = relu(pre) * (pre > threshold), or the k largest of relu(pre)
    reconstruction = acts @ W_dec + b_dec (+ x @ W_skip)

Every architecture that is read is brought to this form when it is loaded: a ReLU is a threshold of 0, a gate another
threshold, and a bias that is subtracted from the input goes into b_enc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import as_numbers, is_whole, short_repr
from gemmascope.errors import DeviceError, DictionaryError
from gemmascope.model.digests import tensor_digest
from gemmascope.model.modes import computes
from gemmascope.sae.normalization import Normalization
from gemmascope.values import chunks, real_tensor

if TYPE_CHECKING:
    import numpy as np

# Activations in memory at once, in elements: 64 MB.
CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryArrays:
    """The arrays of a dictionary, in float32 on one device.

    k: how many features are kept of each row; None for all above their threshold. W_skip: what the reconstruction adds from
    the input. normalization: how rows are scaled before the encoder.
    """

    W_enc: Float[Tensor, "d_in feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " feature"]
    k: int | None = field(default=None, kw_only=True)
    W_skip: Float[Tensor, "d_in d_out"] | None = field(default=None, kw_only=True)
    normalization: Normalization | None = field(default=None, kw_only=True)

    @property
    def n_features(self) -> int:
        """The number of features."""
        return len(self.b_enc)

    @property
    def d_in(self) -> int:
        """The width of the rows that it reads."""
        return len(self.W_enc)

    @property
    def d_out(self) -> int:
        """The width of the rows that it writes."""
        return len(self.b_dec)

    @property
    def device(self) -> torch.device:
        """The device of its arrays."""
        return self.W_enc.device

    @property
    def needs_rows(self) -> bool:
        """Whether the reconstruction depends on the rows that were encoded, and not on the activations alone."""
        return self.W_skip is not None or (self.normalization is not None and self.normalization.scales_back)

    @computes
    def decode(self, acts: Tensor | np.ndarray, rows: Tensor | np.ndarray | None = None) -> Float[Tensor, "pos d_out"]:
        """The reconstruction acts @ W_dec + b_dec, float32.

        Args:
            acts: Activations [pos, feature], dense or a sparse tensor.
            rows: The rows that were encoded, [pos, d_in]: for a dictionary with a skip connection, or one that scales its
                input by the row. Others do not look at them.
        """
        self.require_values()
        if hasattr(type(acts), "reconstruction"):  # Features, which import this file
            raise DictionaryError(
                "decode takes a tensor [pos, feature]; what encode returned has its reconstruction: f.reconstruction"
            )
        if not isinstance(acts, Tensor) or not acts.is_sparse or acts.is_complex() or acts.is_meta:
            acts = real_tensor(acts, "activations", DictionaryError)
        self._require_width(acts, self.n_features, "has features:")
        acts = acts.to(self.device, torch.float32)
        read: Tensor = torch.sparse.mm(acts, self.W_dec) if acts.is_sparse else acts @ self.W_dec
        return self._with_rows(read + self.b_dec, rows)

    def activations(
        self, x: Tensor | np.ndarray, features: Sequence[int] | Tensor | None = None
    ) -> Float[Tensor, "pos some_or_all"]:
        """Dense activations of rows, float32.

        Args:
            x: Rows [pos, d_in].
            features: The features to compute; None means all.
        """
        self.require_values()
        rows: Tensor = real_tensor(x, "the rows", DictionaryError).to(self.device, torch.float32)
        self._require_width(rows, self.d_in, "reads")
        columns = slice(None) if features is None else self._columns(features)
        if self.normalization is not None:
            rows = self.normalization.apply(rows)
        if self.k is not None:
            step = max(1, CHUNK_ELEMENTS // self.n_features)
            return torch.cat([self._strongest(rows[part], self.k)[:, columns] for part in chunks(len(rows), step)])
        pre = rows @ self.W_enc[:, columns] + self.b_enc[columns]
        return pre.relu() * (pre > self.threshold[columns])

    def _strongest(self, rows: Float[Tensor, "pos d_in"], k: int) -> Float[Tensor, "pos feature"]:
        """All activations of rows, of which the k largest of a row are kept."""
        pre = rows @ self.W_enc + self.b_enc
        largest = pre.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())

    def _columns(self, features: object) -> Tensor:
        """Features as column numbers. DictionaryError for anything that is not a list of them."""
        numbers = as_numbers(features)
        if numbers is None or not all(is_whole(one) and 0 <= int(one) < self.n_features for one in numbers):
            raise DictionaryError(f"features are numbers from 0 to {self.n_features - 1}; given {short_repr(features)}")
        return torch.tensor([int(one) for one in numbers if is_whole(one)], device=self.device, dtype=torch.long)

    def sparse(self, x: Float[Tensor, "pos d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """The activations above zero: the position, the feature and the value of each, position by position.

        Rows are encoded a few at a time: dense activations of a million features at eight thousand positions would not fit.

        Args:
            x: Rows [pos, d_in].
        """
        step = max(1, CHUNK_ELEMENTS // self.n_features)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for part in chunks(len(x), step):
                acts = self.activations(x[part])
                pos, feature = acts.nonzero(as_tuple=True)
                parts.append((pos + part.start, feature, acts[pos, feature]))
        pos, feature, value = (torch.cat(part) for part in zip(*parts, strict=True))
        return pos, feature, value

    def summed(
        self,
        pos: Int[Tensor, " active"],
        feature: Int[Tensor, " active"],
        value: Float[Tensor, " active"],
        n_pos: int,
        rows: Float[Tensor, "pos d_in"] | None = None,
    ) -> Float[Tensor, "pos d_out"]:
        """The reconstruction from sparse activations, a few of them at a time.

        Args:
            pos: The position of each activation.
            feature: Its feature.
            value: Its value.
            n_pos: The number of positions.
            rows: The rows that were encoded, as in decode.
        """
        total = self.b_dec.expand(n_pos, -1).clone()
        step = max(1, CHUNK_ELEMENTS // self.d_out)
        for part in chunks(len(pos), step):
            total.index_add_(0, pos[part], value[part, None] * self.W_dec[feature[part]])
        return self._with_rows(total, rows)

    def _with_rows(self, decoded: Float[Tensor, "pos d_out"], rows: object) -> Float[Tensor, "pos d_out"]:
        """The reconstruction with what it takes from the rows. DictionaryError if they are needed and not given."""
        if not self.needs_rows:
            return decoded
        if rows is None:
            raise DictionaryError(
                f"{self._short_name} has a skip connection or scales its input by the row: give the rows that were encoded "
                "as well, decode(acts, rows)"
            )
        x = real_tensor(rows, "the rows", DictionaryError).to(self.device, torch.float32)
        self._require_width(x, self.d_in, "reads")
        if self.normalization is not None:
            decoded = self.normalization.undo(decoded, x)
        return decoded if self.W_skip is None else decoded + x @ self.W_skip

    def to(self, device: torch.device) -> DictionaryArrays:
        """The same on a device.

        Args:
            device: The device of its arrays.
        """
        return replace(
            self,
            W_enc=self.W_enc.to(device),
            W_dec=self.W_dec.to(device),
            b_enc=self.b_enc.to(device),
            b_dec=self.b_dec.to(device),
            threshold=self.threshold.to(device),
            W_skip=None if self.W_skip is None else self.W_skip.to(device),
        )

    @property
    def _digests(self) -> list[str]:
        """Hashes of every number of the arrays, as they are now."""
        digests = [tensor_digest(a) for a in (self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.threshold)]
        if self.W_skip is not None:
            digests.append(tensor_digest(self.W_skip))
        if self.k is not None or self.normalization is not None:
            digests.append(repr((self.k, self.normalization)))
        return digests

    @property
    def _described(self) -> str:
        """What errors call it."""
        return "this dictionary"

    @property
    def _short_name(self) -> str:
        """What errors call it where its place does not matter."""
        return "this dictionary"

    def require_values(self) -> None:
        """DeviceError for a dictionary on the meta device, which has shapes and no numbers."""
        if self.W_enc.is_meta:
            raise DeviceError(
                f"{self._short_name} is on the meta device, which has shapes and no values: load it on another one"
            )

    def _require_width(self, rows: Tensor, width: int, what: str) -> None:
        """DictionaryError for rows of another shape than [pos, width]."""
        if rows.dim() != 2 or rows.shape[-1] != width:
            raise DictionaryError(
                f"{self._described}, {what} {width} numbers a position, [pos, {width}]; given shape {tuple(rows.shape)}"
            )
