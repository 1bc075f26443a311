"""gs.feature_logits: the tokens that a feature's decoder raises and lowers, read by the last norm and the unembedding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import as_list, is_whole, true_or_false, whole_number
from gemmascope.errors import DictionaryError
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.features import MOST_CELLS, feature_coords, feature_number
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.values import labelled

if TYPE_CHECKING:
    import pandas
    import xarray

# Sites whose rows join the stream as they are, and those that go through the post-norm first.
_STREAM = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_BEFORE_POST_NORM = ("z", "attn_raw", "mlp_raw")
SHOWN = 8


@dataclass(frozen=True, eq=False, repr=False)
class FeatureLogits:
    """What each feature's decoder adds to each token's logit, for one unit of activation. Made by gs.feature_logits.

    Attributes:
        logits: decoder * gain @ unembedding, [feature, vocab]: before the soft cap, with the last norm's scale at 1. To have
            a logit of a run, multiply by the activation and divide by the root mean square of the last stream.
        sae: The dictionary.
        model: The model.

    Examples:
        >>> result = gs.feature_logits(gs.load_sae(), [987, 887])
        >>> result.logits.dims
        ('feature', 'vocab')
        >>> len(result.top(987, 3))
        3
    """

    logits: xarray.DataArray
    sae: DictionaryWeights
    model: Model

    def top(self, feature: int, k: int = 10) -> list[tuple[str, int, float]]:
        """The tokens that a feature raises most: (token, id, logit), the largest first.

        Args:
            feature: One of the features that were given.
            k: The number of tokens.
        """
        return self._extreme(feature, k, largest=True)

    def bottom(self, feature: int, k: int = 10) -> list[tuple[str, int, float]]:
        """The tokens that a feature lowers most: (token, id, logit), the smallest first.

        Args:
            feature: One of the features that were given.
            k: The number of tokens.
        """
        return self._extreme(feature, k, largest=False)

    def to_dataframe(self, k: int = 10) -> pandas.DataFrame:
        """One row for each token that a feature raises or lowers most: feature, side, token, id, logit.

        Args:
            k: The number of tokens on each side.
        """
        import pandas

        rows = [
            {"feature": feature, "side": side, "token": token, "id": number, "logit": logit}
            for feature in self.logits["feature"].values.tolist()
            for side, found in (("raised", self.top(feature, k)), ("lowered", self.bottom(feature, k)))
            for token, number, logit in found
        ]
        return pandas.DataFrame(rows)

    def _extreme(self, feature: int, k: int, *, largest: bool) -> list[tuple[str, int, float]]:
        k = whole_number(k, "k", least=1, error=DictionaryError)
        known = self.logits["feature"].values.tolist()
        if not is_whole(feature) or int(feature) not in known:
            raise DictionaryError(f"feature is one of those that were given, {known[:20]}; given {feature!r}")
        row = torch.from_numpy(self.logits.sel(feature=int(feature)).values)
        found = row.topk(min(k, len(row)), largest=largest)
        ids = found.indices.tolist()
        return [(self._token(one), one, value) for one, value in zip(ids, found.values.tolist(), strict=True)]

    def _token(self, token_id: int) -> str:
        return self.model.tokenizer.decode([token_id]) if self.model.has_tokenizer else str(token_id)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [f"what features of {self.sae.call} add to the logits of {legible_line(self.model.name)}, before the cap"]
        for feature in self.logits["feature"].values.tolist()[:SHOWN]:
            raised, lowered = (
                ", ".join(f"{visible_text(token)} {value:+.3g}" for token, _, value in found)
                for found in (self.top(feature, 5), self.bottom(feature, 5))
            )
            lines.append(f"  {feature}: raises {raised}; lowers {lowered}")
        more = len(self.logits) - SHOWN
        return "\n".join([*lines, *[f"  … {more} more features"] * (more > 0)])


@computes
def feature_logits(
    sae: DictionaryWeights, features: int | Iterable[int], *, model: Model | None = None, gain: bool = True
) -> FeatureLogits:
    """Which tokens a feature raises and lowers: its decoder read as the last stream, by the unembedding.

    SAELens' tutorials and Neuronpedia multiply W_dec by the unembedding alone (`gain=False` here). Gemma 2 multiplies the
    stream by the last norm's gain first, which reorders tokens; by default so does this. The vocabulary's mean is left in.
    A dictionary of z goes through W_O and the gain of the post-norm, one of attn_raw or mlp_raw through that gain; the
    scale of the post-norm differs from run to run and counts as 1.

    Args:
        sae: A dictionary of the stream or of what is written to it.
        features: One feature or several.
        model: The model; None means nano.
        gain: Whether to go through the last norm's gain.

    Returns:
        The logits of each feature, [feature, vocab], with its top and bottom tokens.

    Raises:
        DictionaryError: For features that are not there, another model, or a site that is not written to the stream.

    Examples:
        >>> gs.feature_logits(gs.load_sae(), 987).top(987, 2)
        [...]
    """
    if not isinstance(sae, DictionaryWeights):
        raise DictionaryError(f"a dictionary is what gs.load_sae returns; given {type(sae).__name__}")
    model = model_or_nano(model)
    sae.require_fit(model)
    gain = true_or_false(gain, "gain", error=DictionaryError)
    listed = [features] if is_whole(features) else as_list(features, "features", error=DictionaryError)
    numbers = [feature_number(sae, feature) for feature in listed]
    if not numbers or len(set(numbers)) < len(numbers):
        raise DictionaryError(f"features names each feature once, and one at least; given {numbers}")
    vocab = model.config.vocab_size
    if len(numbers) * vocab > MOST_CELLS:
        raise DictionaryError(f"{len(numbers):,} features by {vocab:,} tokens are too many numbers: take fewer at a time")
    with torch.no_grad():
        rows = _as_written(sae, model, sae.W_dec[numbers].to(model.device))
        if gain:
            rows = rows * (1.0 + model.network.model.norm.weight.float())
        logits = model.network.model.embed_tokens.logits(rows.to(model.dtype)).float()
    coords = {**feature_coords(sae, numbers), "vocab": range(logits.shape[1])}
    unit = "logit before the soft cap, for one unit of activation"
    return FeatureLogits(labelled(logits, coords, ("feature", "vocab"), "logits", unit), sae, model)


def written_to_stream(sae: DictionaryWeights, model: Model, feature: int) -> Float[Tensor, " d_model"] | None:
    """What a feature adds to the stream for one unit of activation, float32; None for a site that writes nothing to it.

    Args:
        sae: The dictionary, which fits the model.
        model: The model.
        feature: The feature.
    """
    if sae.writes not in (*_STREAM, *_BEFORE_POST_NORM) or (sae.writes in _BEFORE_POST_NORM and sae.layer is None):
        return None
    with torch.no_grad():
        return _as_written(sae, model, sae.W_dec[[feature]].to(model.device))[0]


def _as_written(
    sae: DictionaryWeights, model: Model, rows: Float[Tensor, "feature d_out"]
) -> Float[Tensor, "feature d_model"]:
    """Decoder rows as they join the stream, float32."""
    if sae.writes in _STREAM:
        return rows
    if sae.writes not in _BEFORE_POST_NORM or sae.layer is None:
        raise DictionaryError(
            f"a dictionary of '{sae.writes}' writes nothing to the stream: those of "
            f"{', '.join((*_STREAM, *_BEFORE_POST_NORM))} do"
        )
    layer = model.layer(sae.layer)
    if sae.writes == "z":
        rows = layer.self_attn.o_proj(rows.to(model.dtype)).float()
    norm = layer.post_feedforward_layernorm if sae.writes == "mlp_raw" else layer.post_attention_layernorm
    return rows * (1.0 + norm.weight.float())
