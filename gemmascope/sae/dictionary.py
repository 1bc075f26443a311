"""Dictionary: a sparse autoencoder or transcoder at one site of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemmascope.arguments import finite_number, short_repr, true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.edits.sources import is_trace
from gemmascope.errors import DictionaryError
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sae.features import Features
from gemmascope.sae.formats.in_memory import arrays_in_memory
from gemmascope.sae.loss import LossRecovered, loss_recovered
from gemmascope.sae.weights import DictionaryWeights, TrainedFor
from gemmascope.sites import find_site
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
        threshold: What an activation must exceed, [feature]: 0 for a ReLU, those of a JumpReLU, or what a gate comes to.
        k: How many features are kept at each position (TopK); None for all above their threshold.
        W_skip: What a transcoder adds of its input, [d_in, d_out]; None without a skip connection.
        normalization: How rows are scaled before they are encoded; None if they are not.
        site: The site that it reconstructs; "transcoder" for one that reads the MLP's input and writes its output.
        layer: The layer; None at the site embed.
        input_site: What a transcoder reads: None for resid_mid divided by its root mean square, without the norm's gain (as
            Gemma Scope's do), "mlp_in" for the norm's output with its gain, "resid_mid" for the stream as it is.
        output_site: What a transcoder writes: "mlp_out", after the post-norm, or "mlp_raw", before it.
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

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Tensor | np.ndarray],
        *,
        site: str,
        layer: int | None,
        k: int | None = None,
        input_site: str | None = None,
        output_site: str = "mlp_out",
        subtract_b_dec: bool = False,
        trained_for: str | None = None,
        device: str | torch.device = "auto",
    ) -> Dictionary:
        """A dictionary of arrays in memory.

        Args:
            arrays: By name: W_enc [d_in, feature] and W_dec [feature, d_out]; and what there is of b_enc [feature],
                b_dec [d_out], threshold [feature] and W_skip [d_in, d_out]. They are copied.
            site: The site that it reconstructs, or "transcoder".
            layer: The layer; None at the site embed.
            k: How many features are kept at each position (TopK); None for all above their threshold.
            input_site: What a transcoder reads, as in the attributes.
            output_site: What a transcoder writes.
            subtract_b_dec: Whether b_dec is subtracted from rows before they are encoded. It is moved into b_enc.
            trained_for: The model, such as "google/gemma-2-2b", to have it checked where the dictionary is used.
            device: The device of its arrays. "auto" means CUDA if there is a GPU, else the CPU.

        Raises:
            DictionaryError: For arrays that are missing, unknown, not finite or do not fit together, or another site.

        Examples:
            >>> import torch
            >>> arrays = {"W_enc": torch.eye(128), "W_dec": torch.eye(128)}
            >>> gs.Dictionary.from_arrays(arrays, site="resid_post", layer=2)
            Dictionary(gs.Dictionary.from_arrays(...): 'resid_post' of layer 2, 128 -> 128 features -> 128; ...)
        """
        if site == TRANSCODER or find_site(site).in_layer:
            layer = whole_number(layer, "a dictionary's layer", least=0, error=DictionaryError)
        k = None if k is None else whole_number(k, "k", least=1, error=DictionaryError)
        subtract_b_dec = true_or_false(subtract_b_dec, "subtract_b_dec", error=DictionaryError)
        if trained_for is not None and not isinstance(trained_for, str):
            raise DictionaryError(f"trained_for is the name of a model; given {short_repr(trained_for)}")
        whole = arrays_in_memory(arrays, k, subtract_b_dec).to(choose_device(device))
        return cls(
            **vars(whole),
            site=site,
            layer=layer,
            call="gs.Dictionary.from_arrays(...)",
            input_site=input_site,
            output_site=output_site,
            trained_for=TrainedFor.of_name(trained_for),
        )

    def rescaled(self, factor: float) -> Dictionary:
        """The same dictionary for rows that are multiplied by a factor before it reads them, and divided after it wrote.

        This is what "expected_average_only_in" leaves to do: factor is sqrt(d_in) over the mean length of rows in training.

        Args:
            factor: A number above zero.

        Raises:
            DictionaryError: For another number, or a dictionary that scales rows itself.
        """
        number = finite_number(factor, "factor", error=DictionaryError)
        if number <= 0 or self.normalization is not None or self.W_skip is not None:
            raise DictionaryError(
                f"factor is above zero, and the dictionary neither scales rows itself nor has a skip connection; given "
                f"{short_repr(factor)} and {self!r}"
            )
        W_enc, W_dec, b_dec = self.W_enc * number, self.W_dec / number, self.b_dec / number
        return replace(self, W_enc=W_enc, W_dec=W_dec, b_dec=b_dec, call=f"{self.call}.rescaled({number:g})")

    @computes
    def encode(self, source: Trace | Tensor | np.ndarray) -> Features:
        """The features of a run, or of rows: sparse activations at every position.

        A transcoder of Gemma Scope reads the stream before the MLP divided by its root mean square, without the gain of the
        norm. It is computed from resid_mid, which is exact where the gain is near zero; an edit of mlp_in itself is not
        seen. Other transcoders read their input_site as it is.

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
