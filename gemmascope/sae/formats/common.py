"""What the readers share: the result of reading a file, and the algebra that brings architectures to one form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gemmascope.errors import DictionaryError
from gemmascope.sae.arrays import DictionaryArrays


@dataclass(frozen=True)
class Contents:
    """What a file holds. None for what it does not say.

    site, layer: what it reconstructs, with "transcoder" and its two sites. model: what the file calls the model. remark: a
    warning for the user; "" for none.
    """

    arrays: DictionaryArrays
    site: str | None = None
    layer: int | None = None
    input_site: str | None = None
    output_site: str = "mlp_out"
    model: str | None = None
    remark: str = ""


def relu_arrays(
    W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor, threshold: Tensor | None = None, *, k: object = None
) -> DictionaryArrays:
    """The arrays of relu(x @ W_enc + b_enc), of what exceeds a threshold, or of the k largest.

    threshold: [feature], or one number for all.
    """
    W_enc, W_dec, b_enc, b_dec = (each.float().contiguous() for each in (W_enc, W_dec, b_enc, b_dec))
    limit = torch.zeros_like(b_enc) if threshold is None else threshold.float().expand_as(b_enc).contiguous()
    return DictionaryArrays(W_enc, W_dec, b_enc, b_dec, limit, k=require_k(k, len(b_enc)))


def gated_arrays(
    W_enc: Tensor, W_dec: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor, b_dec: Tensor
) -> DictionaryArrays:
    """The arrays of a gated dictionary, as thresholds.

    The gate x @ W_enc + b_gate > 0 and the magnitude relu(x @ W_enc * exp(r_mag) + b_mag) share their products, so the gate
    is open where the magnitude before its relu exceeds b_mag - exp(r_mag) * b_gate.
    """
    scale = r_mag.double().exp()
    threshold = b_mag.double() - scale * b_gate.double()
    return relu_arrays((W_enc.double() * scale).float(), W_dec, b_mag, b_dec, threshold)


def with_input_bias(arrays: DictionaryArrays, bias: Tensor) -> DictionaryArrays:
    """The same for rows from which a bias is subtracted first: it goes into b_enc, computed in float64."""
    shift = bias.double() @ arrays.W_enc.double()
    return replace(arrays, b_enc=(arrays.b_enc.double() - shift).float())


def with_decoder_norms(arrays: DictionaryArrays) -> DictionaryArrays:
    """The same with decoder rows of length 1: activations, and what they are compared with, are multiplied by the length."""
    norms = arrays.W_dec.norm(dim=-1).clamp_min(1e-8)
    return replace(
        arrays,
        W_enc=arrays.W_enc * norms,
        b_enc=arrays.b_enc * norms,
        threshold=arrays.threshold * norms,
        W_dec=arrays.W_dec / norms[:, None],
    )


def require_k(k: object, n_features: int) -> int | None:
    """A TopK's k as an int; None for None. DictionaryError for anything else, or more than there are features."""
    if k is None:
        return None
    whole = isinstance(k, (int, float)) and not isinstance(k, bool) and float(k).is_integer()
    if not whole or not 1 <= int(k) <= n_features:  # type: ignore[call-overload]
        raise DictionaryError(f"k is how many features are kept of each row, from 1 to {n_features}; given {k!r}")
    return int(k)  # type: ignore[call-overload,no-any-return]
