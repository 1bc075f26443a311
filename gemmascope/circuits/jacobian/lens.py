"""JacobianLens: the mean Jacobian from the stream after each layer to the stream after the last one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import short_repr, whole_number
from gemmascope.circuits.jacobian.files import write_lens
from gemmascope.circuits.jacobian.settings import FitSettings
from gemmascope.errors import LensError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.values import moved

DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, eq=False, repr=False)
class JacobianLens:
    """The mean Jacobians of a model. Made by gs.fit_jacobian_lens and gs.load_jacobian_lens; gs.jacobian_lens reads with it.

    matrices[layer][i, j] says how far coordinate i of the stream after the last layer moves with coordinate j of the stream
    after this one: summed over the positions from this one on, and averaged over positions and texts. A row h of
    ("resid_post", layer) is carried to matrices[layer] @ h. That of the last layer is the identity, and is left out.

    Attributes:
        matrices: {layer: [d_model, d_model]}, float32.
        n_texts: Over how many texts the mean was taken.
        model: The model's name; None for a file that does not say it.
        fingerprint: The model's network_fingerprint; None for a file that does not say it.
        changes: The relative change of the mean at each text after the first, averaged over layers; empty if not known.
        settings: Which positions of how long texts were used; None for a file that does not say it.
        call: The Python call that loads it.
        any_model: Whether it may be used with other models than its own, if the shapes fit.

    Examples:
        >>> jacobian = gs.load_jacobian_lens("nano")
        >>> jacobian.layers
        (0, 1, 2, 3, 4)
        >>> jacobian.matrices[2].shape
        torch.Size([128, 128])
        >>> edit = gs.add("resid_post", jacobian.direction(" John", 2), layer=2, pos=-1, scale=16.0)
        >>> gs.trace("When Mary and John went to the store, John gave a drink to", edits=[edit]).top(1)[0][0]
        ' John'

    References:
        Gurnee et al., "Verbalizable Representations Form a Global Workspace in Language Models" (Transformer
        Circuits, 2026).
    """

    matrices: Mapping[int, Float[Tensor, "d_model d_model"]]
    n_texts: int
    model: str | None = None
    fingerprint: str | None = None
    changes: tuple[float, ...] = ()
    settings: FitSettings | None = None
    call: str = field(default="lens", kw_only=True)
    any_model: bool = field(default=False, kw_only=True)

    @property
    def title(self) -> str:
        """What a lens that reads with it is called."""
        return "Jacobian lens"

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a matrix, in rising order."""
        return tuple(sorted(self.matrices))

    @property
    def d_model(self) -> int:
        """The width of the stream."""
        return len(self.matrices[self.layers[0]])

    @property
    def device(self) -> torch.device:
        """The device of its matrices."""
        return self.matrices[self.layers[0]].device

    def to(self, device: torch.device) -> JacobianLens:
        """The same on a device.

        Args:
            device: The device of its matrices.
        """
        return replace(self, matrices={layer: matrix.to(device) for layer, matrix in self.matrices.items()})

    def matrix(self, layer: int) -> Float[Tensor, "d_model d_model"]:
        """The matrix of a layer.

        Args:
            layer: A layer that has one, counted from 0.

        Raises:
            LensError: For a layer that has none.
        """
        number = whole_number(layer, "layer", least=0, error=LensError)
        if number not in self.matrices:
            raise LensError(f"{self.call} has no matrix of layer {number}; it has those of {_listed(self.layers)}")
        return self.matrices[number]

    @computes
    def carry(self, layer: int, rows: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """Rows of ("resid_post", layer) in the basis of the stream after the last layer: each is multiplied by the matrix.

        Args:
            layer: A layer that has a matrix.
            rows: [pos, d_model].

        Returns:
            [pos, d_model], in the dtype and on the device of the rows.
        """
        matrix = moved(self.matrix(layer), rows.device)
        return (rows.float() @ matrix.T).to(rows.dtype)

    @computes
    def direction(self, token: Answer, layer: int, *, model: Model | None = None) -> Float[Tensor, " d_model"]:
        """The direction in the stream after a layer that raises a token in the lens most, of length 1.

        It is the gradient of the token's logit before the soft cap with respect to the stream there, with the last norm's
        scale held fixed. gs.add writes it: `gs.add("resid_post", lens.direction(" John", 2), layer=2, scale=16.0)`.

        Args:
            token: A text that is one token, or a token id.
            layer: A layer that has a matrix.
            model: The model; None means nano.

        Returns:
            [d_model], float32.

        Raises:
            LensError: For a layer without a matrix, or another model.
            PromptError: For a text that is not one token.
        """
        model = model_or_nano(model)
        self.require_fit(model)
        matrix = self.matrix(layer)
        (one,) = answer_ids(token, model)[:1]
        written: Tensor = model.tokens_to_residual_directions(one).to(matrix.device, torch.float32)
        vector: Tensor = written @ matrix
        unit: Tensor = vector / vector.norm()
        return unit

    def require_fit(self, model: Model) -> None:
        """LensError, which names both, if a model is not what the lens was fitted on.

        Args:
            model: The model that it is to be used with.
        """
        config = model.config
        about = f"the lens {self.call} was fitted on {legible_line(self.model or 'a model that its file does not name')}"
        given = f"given {model.name!r} ({config.n_layers} layers, d_model {config.d_model})"
        if (self.d_model, True) != (config.d_model, self.layers[-1] < config.n_layers):
            raise LensError(f"{about}, with d_model {self.d_model} and layers up to {self.layers[-1]}; {given}")
        if self.any_model or self.fingerprint is None or self.fingerprint == model.network_fingerprint:
            return
        raise LensError(
            f"{about} (fingerprint {self.fingerprint}); {given}, whose weights or dtype differ (fingerprint "
            f"{model.network_fingerprint}). gs.load_jacobian_lens(..., any_model=True) lets others of its shape use it"
        )

    @computes
    def save(self, path: str | os.PathLike[str], *, dtype: str = "float16") -> None:
        """Write it to a safetensors file, which gs.load_jacobian_lens reads.

        Args:
            path: The file. Its folder must exist.
            dtype: "float16", as published lenses are, or "float32".

        Raises:
            LensError: For another dtype, or numbers that float16 cannot hold.
            FileError: If the file cannot be written.
        """
        if dtype not in DTYPES:
            raise LensError(f"dtype is 'float16' or 'float32'; given {short_repr(dtype)}")
        stored = {layer: matrix.to("cpu", DTYPES[dtype]) for layer, matrix in self.matrices.items()}
        if too_large := [layer for layer, matrix in stored.items() if not bool(matrix.isfinite().all())]:
            raise LensError(f"float16 cannot hold the numbers of layer {too_large[0]}: save(..., dtype='float32')")
        write_lens(path, stored, self.n_texts, self.model, self.fingerprint, self.changes, self.settings)

    @prints_legibly
    def __repr__(self) -> str:
        name = legible_line(self.model or "a model that its file does not name")
        change = f", the last of which changed it by {self.changes[-1]:.2g}" if self.changes else ""
        texts = f"{self.n_texts:,} texts{change}"
        return f"JacobianLens({self.call}: layers {_listed(self.layers)} of {name}, d_model {self.d_model}, over {texts})"


def _listed(layers: tuple[int, ...]) -> str:
    """Layers as text: "0 to 4", or each of them where some are missing."""
    first, last = layers[0], layers[-1]
    return f"{first} to {last}" if layers == tuple(range(first, last + 1)) and last > first else ", ".join(map(str, layers))
