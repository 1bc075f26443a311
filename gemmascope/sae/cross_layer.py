"""Cross-layer transcoders: features read the stream at one layer and write to MLP outputs from that layer on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from gemmascope.arguments import short_repr, whole_number
from gemmascope.checkpoints.hub import fetch_file, files_of, is_hub_id
from gemmascope.edits.sources import is_trace, not_a_trace
from gemmascope.errors import DictionaryError
from gemmascope.legible import prints_legibly
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.formats.circuit_tracer import read_config
from gemmascope.sae.formats.cross_layer import CrossLayerFiles, files_of_layers
from gemmascope.sae.formats.listing import unknown_format
from gemmascope.sae.weights import NORM_EPS, TrainedFor
from gemmascope.values import in_float64, real_tensor

if TYPE_CHECKING:
    import pandas

    from gemmascope.run.trace import Trace


@dataclass(frozen=True, eq=False, repr=False)
class CrossLayerTranscoder:
    """A cross-layer transcoder, whose weights stay in their files. Made by gs.load_cross_layer.

    Attributes:
        files: The files, with the biases of every layer.
        input_site: What it reads at each layer: "resid_mid", "mlp_in", or None for resid_mid divided by its root mean
            square.
        output_site: What it writes at each layer: "mlp_out", after the post-norm, or "mlp_raw".
        call: The call that loads it.
        trained_for: The model that it was trained for.
    """

    files: CrossLayerFiles
    input_site: str | None
    output_site: str
    call: str
    trained_for: TrainedFor = field(default_factory=TrainedFor)

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return self.files.n_layers

    @property
    def n_features(self) -> int:
        """The number of features of each layer."""
        return self.files.n_features

    @property
    def d_model(self) -> int:
        """The width of what it reads and writes."""
        return self.files.d_model

    @computes
    def encode(self, source: Trace | Tensor) -> CrossLayerFeatures:
        """The active features of a run, or of rows, layer by layer. Reads every encoder once.

        Args:
            source: A trace, or rows [layer, pos, d_model] of what it reads.

        Raises:
            DictionaryError: For a run of another model, or rows of another shape.
        """
        targets = None
        if is_trace(source):
            self.require_fit(source.model)
            read = self.input_site or "resid_mid"
            rows = [source[read, layer].float().cpu() for layer in range(self.n_layers)]
            if self.input_site is None:
                rows = [x * rms_scale(x, NORM_EPS) for x in rows]
            targets = [source[self.output_site, layer].float().cpu() for layer in range(self.n_layers)]
        elif isinstance(source, Tensor):
            x = real_tensor(source, "the rows", DictionaryError).detach().float().cpu()
            if x.dim() != 3 or (len(x), x.shape[-1]) != (self.n_layers, self.d_model):
                raise DictionaryError(
                    f"{self.call} reads rows [layer, pos, d_model] = [{self.n_layers}, pos, {self.d_model}]; given shape "
                    f"{tuple(x.shape)}"
                )
            rows = list(x)
        else:
            raise DictionaryError(f"encode takes a trace, or rows [layer, pos, d_model]; given {not_a_trace(source)}")
        found = [self._active(layer, x) for layer, x in enumerate(rows)]
        layers = torch.cat([torch.full_like(pos, layer) for layer, (pos, _, _) in enumerate(found)])
        pos, feature, value = (torch.cat(part) for part in zip(*found, strict=True))
        return CrossLayerFeatures(self, layers, pos, feature, value, len(rows[0]), targets)

    def _active(self, layer: int, x: Float[Tensor, "pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            pre = x @ self.files.encoder(layer).T + self.files.b_enc[layer]
            acts = pre.relu() * (pre > self.files.threshold[layer])
        pos, feature = acts.nonzero(as_tuple=True)
        return pos, feature, acts[pos, feature]

    def require_fit(self, model: Model) -> None:
        """DictionaryError, which names both, if a model is not of the shape that it was trained for.

        Args:
            model: The model that it is to be used with.
        """
        config = model.config
        if (config.n_layers, config.d_model) != (self.n_layers, self.d_model):
            raise DictionaryError(
                f"{self.call} was trained for {self.trained_for}, {self.n_layers} layers of d_model {self.d_model}; given "
                f"{model.name!r} ({config.n_layers} layers, d_model {config.d_model})"
            )

    @prints_legibly
    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers of {self.n_features:,} features, d_model {self.d_model}"
        return f"CrossLayerTranscoder({self.call}: {sizes}; trained for {self.trained_for})"


@dataclass(frozen=True, eq=False, repr=False)
class CrossLayerFeatures:
    """The active features of a run in a cross-layer transcoder. Made by CrossLayerTranscoder.encode.

    Attributes:
        transcoder: The transcoder.
        layer: The layer of each activation above zero, [active], in rising order.
        pos: Its position, [active].
        feature: Its feature, [active].
        value: Its value, [active].
        n_pos: The number of positions.
        targets: What the MLPs wrote, [pos, d_model] for each layer; None for rows without a run.
    """

    transcoder: CrossLayerTranscoder
    layer: Tensor
    pos: Tensor
    feature: Tensor
    value: Tensor
    n_pos: int
    targets: Sequence[Tensor] | None = None

    @cached_property
    @computes
    def reconstruction(self) -> Float[Tensor, "layer pos d_model"]:
        """What the features of a layer and of all before it write to each layer's MLP output, float32."""
        files = self.transcoder.files
        total = torch.stack([bias.expand(self.n_pos, -1) for bias in files.b_dec]).clone()
        for layer in range(files.n_layers):
            here = self.layer == layer
            features, index = torch.unique(self.feature[here], return_inverse=True)
            if not len(features):
                continue
            rows = files.decoder_rows(layer, features.tolist())
            for offset in range(files.n_layers - layer):
                written = self.value[here, None] * rows[index, offset]
                total[layer + offset].index_add_(0, self.pos[here], written)
        return total

    @property
    @computes
    def error(self) -> Float[Tensor, "layer pos d_model"]:
        """What the reconstruction leaves out of each layer's MLP output."""
        return self._require_targets() - self.reconstruction

    @computes
    def explained(self, layer: int) -> float:
        """The share of variance explained at a layer, over all positions but the first.

        Args:
            layer: The layer whose MLP output is reconstructed.
        """
        layer = whole_number(layer, "layer", least=0, most=self.transcoder.n_layers - 1, error=DictionaryError)
        x, error = in_float64(self._require_targets()[layer, 1:]), in_float64(self.error[layer, 1:])
        return float(1 - error.square().sum() / (x - x.mean(0)).square().sum()) if len(x) > 1 else float("nan")

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each activation: layer, pos, feature, activation."""
        import pandas

        columns = {"layer": self.layer, "pos": self.pos, "feature": self.feature, "activation": self.value}
        return pandas.DataFrame({name: column.numpy() for name, column in columns.items()})

    def _require_targets(self) -> Tensor:
        if self.targets is None:
            raise DictionaryError("rows say nothing of the output that they stand for: encode a trace instead")
        return torch.stack(list(self.targets))

    @prints_legibly
    def __repr__(self) -> str:
        each = len(self.value) / max(1, self.n_pos)
        return f"CrossLayerFeatures({len(self.value)} activations at {self.n_pos} positions, {each:.1f} a position)"


def load_cross_layer(
    source: str | os.PathLike[str], *, model: Model | None = None, revision: str | None = None
) -> CrossLayerTranscoder:
    """Load a cross-layer transcoder in circuit-tracer's format: W_enc_N.safetensors and W_dec_N.safetensors for each layer.

    Only biases are kept in memory. On the hub all its files are fetched, which are many gigabytes. It cannot be spliced: a
    feature writes to layers after the one that it reads, and an edit is of one layer.

    Args:
        source: A folder, or a hub id such as "mntss/clt-gemma-2-2b-426k". Its config.yaml says what it reads.
        model: The model that it is for, to have it checked at once.
        revision: The branch, tag or commit of a hub id; None means the default branch.

    Returns:
        The transcoder. Its encode gives the active features of a run, layer by layer, and their reconstruction.

    Raises:
        DictionaryError: For a source that is not there or no such transcoder, or another model.
        CheckpointError: If fetching fails.

    Examples:
        >>> import pathlib, torch
        >>> from safetensors.torch import save_file
        >>> for layer in range(6):
        ...     encoder = {"W_enc": torch.eye(128), "b_enc": torch.zeros(128), "b_dec": torch.zeros(128)}
        ...     save_file({f"{name}_{layer}": array for name, array in encoder.items()}, f"W_enc_{layer}.safetensors")
        ...     save_file({f"W_dec_{layer}": torch.ones(128, 6 - layer, 128)}, f"W_dec_{layer}.safetensors")
        >>> hooks = "feature_input_hook: hook_resid_mid, feature_output_hook: hook_mlp_out"
        >>> _ = pathlib.Path("config.yaml").write_text(f"{{{hooks}, model_name: nano}}")
        >>> transcoder = gs.load_cross_layer(".")
        >>> transcoder.encode(gs.trace("Mary went to the store.")).reconstruction.shape
        torch.Size([6, ..., 128])
    """
    if not isinstance(source, (str, os.PathLike)):
        raise DictionaryError(f"cannot load a {type(source).__name__}; a source is a folder or a hub id")
    folder = Path(os.path.expanduser(source))
    if not folder.is_dir():
        if not is_hub_id(str(source)):
            raise DictionaryError(f"{str(source)!r} is no folder that exists and no hub id")
        paths = files_of(str(source), revision)
        if not (names := files_of_layers(paths)):
            raise unknown_format(str(source), paths)
        for name in names:
            folder = fetch_file(str(source), name, revision).parent
    elif revision is not None:
        raise DictionaryError(f"revision={short_repr(revision)} was given, and only a hub id has revisions")
    files, config = CrossLayerFiles.open(folder), read_config(folder)
    if config is None:
        raise DictionaryError(f"there is no config.yaml in {folder}, which says what it reads (feature_input_hook)")
    trained_for = TrainedFor.of_name(config.model)
    call = f"gs.load_cross_layer({str(source)!r})"
    transcoder = CrossLayerTranscoder(files, config.input_site, config.output_site, call, trained_for)
    if model is not None:
        transcoder.require_fit(model)
    return transcoder
