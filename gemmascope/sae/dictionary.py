"""Dictionary: a JumpReLU sparse autoencoder or transcoder, as Gemma Scope releases them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemmascope.edits.sources import is_trace
from gemmascope.errors import DictionaryError
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.sae.features import Features
from gemmascope.sae.loss import LossRecovered, loss_recovered
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.values import is_array, real_tensor

if TYPE_CHECKING:
    import numpy as np

    from gemmascope.run.trace import Trace


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary(DictionaryWeights):
    """A dictionary of features at one site of one layer, in float32. Made by gs.load_sae.

    Attributes:
        W_enc: The encoder, [d_in, feature].
        W_dec: The decoder, [feature, d_out].
        b_enc: The encoder's bias, [feature].
        b_dec: The decoder's bias, [d_out].
        threshold: The thresholds of the JumpReLU, [feature].
        site: The site that it reconstructs; "transcoder" for one that reads the MLP's input and writes mlp_out.
        layer: The layer; None at the site embed.
        call: The Python call that loads it.
        trained_for: The model that it was trained for.
        concepts: Features that were tied to a concept, by number.
        any_model: Whether it may be used with other models than its own, if the shapes fit.

    Examples:
        >>> dictionary = gs.load_sae()
        >>> dictionary.n_features, dictionary.site, dictionary.layer
        (1024, 'resid_post', 3)
        >>> dictionary.encode(gs.trace("Mary went to the store.")).top(1)
        [(..., None)]

    References:
        Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders"
        (arXiv 2407.14435).
        Lieberum et al., "Gemma Scope: Open Sparse Autoencoders Everywhere All At Once on Gemma 2" (arXiv 2408.05147).
    """

    @computes
    def encode(self, source: Trace | Tensor | np.ndarray) -> Features:
        """The features of a run, or of rows: sparse activations at every position.

        A transcoder reads the stream before the MLP divided by its root mean square, without the gain of the norm. It is
        computed from resid_mid, which is exact where the gain is near zero; an edit of mlp_in itself is not seen.

        Args:
            source: A trace, or rows [pos, d_in]. For a transcoder, rows are its input as described above.

        Returns:
            The activations above zero, and what the reconstruction leaves unexplained.

        Raises:
            DictionaryError: For a run of another model, or rows of another width.
        """
        self.require_values()
        if is_trace(source) or not is_array(source):
            return Features.of_trace(self, source)
        rows = real_tensor(source, "the rows", DictionaryError)
        self._require_width(rows, self.d_in, "reads")
        return Features.of_rows(self, rows.detach().to(self.device, torch.float32))

    @computes
    def loss_recovered(self, prompts: Prompt | Sequence[Prompt], *, model: Model | None = None) -> LossRecovered:
        """How much of the next-token loss is kept when the reconstruction replaces the site.

        Args:
            prompts: A prompt or several, of which at least one has two tokens after `<bos>`.
            model: The model; None means nano.

        Returns:
            The mean losses in nats with the site as it is, replaced by the reconstruction, and set to zero.
        """
        return loss_recovered(self, prompts, model)
