"""gs.train_sae: a sparse autoencoder or transcoder of your own, trained on the rows of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.arguments import true_or_false, whole_number
from gemmascope.checkpoints.device import choose_device
from gemmascope.errors import DictionaryError, warn
from gemmascope.files.locking import file_lock
from gemmascope.files.paths import user_path
from gemmascope.files.writing import make_folder
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import load_sae
from gemmascope.sae.loss import LossRecovered
from gemmascope.sae.weights import TrainedFor
from gemmascope.stores.reading.store import Store
from gemmascope.training.files import folder_of, write_dictionary
from gemmascope.training.loop import MEASURES, Training
from gemmascope.training.measures import DictionaryMeasures, measured
from gemmascope.training.recipe import TOP_K, Recipe
from gemmascope.training.result import TrainedSAE
from gemmascope.training.rows import Rows, StoreRows, rows_of
from gemmascope.values import labelled

# At most so many held-out texts say how much of the loss is recovered.
MOST_TEXTS = 200


@computes
def train_sae(
    rows: Store | Tensor | tuple[Tensor, Tensor],
    site: str | None = None,
    layer: int | None = None,
    *,
    out: str | os.PathLike[str],
    features: int,
    l0: float | None = None,
    sparsity: float | None = None,
    architecture: str = "jumprelu",
    skip: bool = False,
    input_site: str | None = None,
    output_site: str = "mlp_out",
    centre: bool = False,
    steps: int | None = None,
    batch_size: int = 4096,
    rate: float | None = None,
    bandwidth: float = 0.001,
    dead_after: int | None = None,
    revive: float = 1 / 32,
    seed: int = 0,
    held_out: float = 0.05,
    save_every: int = 500,
    model: Model | None = None,
    device: str | torch.device = "auto",
    progress: bool = True,
) -> TrainedSAE:
    """Train a sparse autoencoder or a transcoder on the rows of a store.

    Rows are scaled to a mean squared length of 1, as for Gemma Scope; the scale goes into the weights at the end. Rows of
    the decoder keep a length of 1. Features that are not active for long learn to reconstruct what the others leave. The
    learning rate rises over the first twentieth of the steps and falls to zero over the last quarter; over the first fifth
    the dictionary becomes as sparse as asked. A training that is killed at any moment goes on from its last checkpoint when
    the same call is made again, and comes to the same numbers, bit for bit on a CPU with as many threads.

    Args:
        rows: What gs.harvest returns; or rows in memory, a tensor [row, d], for a transcoder two of them (inputs, outputs).
        site: The site to reconstruct, or "transcoder". None: the only one of the store.
        layer: Its layer; None outside the layers.
        out: The folder for the checkpoint and, in Gemma Scope's layout, the dictionary: gs.load_sae(out) reads it.
        features: How many features it has.
        l0: How many are active at a position: exactly (topk), on average of a batch (batchtopk), or about (jumprelu, whose
            penalty is (L0 / l0 - 1)^2).
        sparsity: In place of l0, the coefficient of the penalty on scaled rows: of L0 (jumprelu) or of the sum of
            activations (relu).
        architecture: "jumprelu": a threshold for each feature, which learns by a straight-through estimate. "topk": the l0
            largest of a row. "batchtopk": the largest of a batch, l0 a row; afterwards one threshold. "relu": what is above
            0, with an L1 penalty.
        skip: For a transcoder, learn a linear map from input to output beside the features.
        input_site: What a transcoder reads: None for resid_mid divided by its root mean square, as Gemma Scope's; or
            "mlp_in", "resid_mid".
        output_site: What a transcoder writes: "mlp_out", after the post-norm, or "mlp_raw".
        centre: Take the mean from rows before they are scaled.
        steps: How many steps to take. None: as many as read each row once.
        batch_size: Rows of a step; at most as many as there are to train on.
        rate: The peak of Adam's learning rate. None: 2e-4 for 16,384 features, and more for fewer, by the square root.
        bandwidth: For jumprelu, the width of the kernel by which thresholds learn, on scaled rows.
        dead_after: After how many rows without activation a feature counts as dead. None: a twentieth of all rows of the
            training, at most ten million.
        revive: The weight of the loss that revives dead features; 0 for none.
        seed: The seed of the first weights and of the order of the rows.
        held_out: The share of texts (of rows, if they are in memory), the last ones, that is kept for the measures.
        save_every: A checkpoint after every so many steps. It changes no number.
        model: The store's model, to measure how much of its loss is recovered. None: nano if the store is of nano; else it
            is not measured.
        device: Where to train. "auto" means CUDA if there is a GPU, else the CPU.
        progress: Show a bar with rows a second, the time left and the latest measures.

    Returns:
        The dictionary, its measures on held-out rows, and the history of its training.

    Raises:
        DictionaryError: An argument does not fit, the folder holds another training, or the loss is not finite any more.
        SiteError: The store does not hold the site.
        StoreError: The store is damaged, or was harvested from another model.

    Examples:
        >>> texts = [pair.clean for pair in gs.prompts.ioi(60)]
        >>> store = gs.harvest(None, texts, ["resid_mid", "mlp_out"], layers=3, out="acts", progress=False)
        >>> asked = {"features": 256, "l0": 8, "steps": 50, "batch_size": 128, "progress": False}
        >>> sae = gs.train_sae(store, "mlp_out", 3, out="sae", architecture="topk", **asked)
        >>> sae
        TrainedSAE: an autoencoder of 'mlp_out' of layer 3, topk, 256 features; 50 steps of 128 rows; L0 8.0, ...
        >>> gs.load_sae("sae").k
        8
        >>> transcoder = gs.train_sae(store, "transcoder", 3, out="transcoder", skip=True, **asked)
        >>> transcoder.dictionary.W_skip.shape
        torch.Size([128, 128])

    References:
        Rajamanoharan et al., "Jumping Ahead" (arXiv 2407.14435): JumpReLU and its gradients.
        Lieberum et al., "Gemma Scope" (arXiv 2408.05147): scales, schedules, transcoders.
        Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093): TopK, dead features.
        Bussmann et al., "BatchTopK Sparse Autoencoders" (arXiv 2412.06410).
        Paulo et al., "Transcoders Beat Sparse Autoencoders for Interpretability" (arXiv 2501.18823): skip connections.
    """
    asked = {name: value for name, value in locals().items() if name in _RECIPE}
    found, place = rows_of(rows, site, layer, input_site=input_site, output_site=output_site, held_out=held_out)
    recipe = Recipe.of({**asked, "site": place.site, "layer": place.layer}, found.n_rows)
    save_every = whole_number(save_every, "save_every", least=1, error=DictionaryError)
    progress = true_or_false(progress, "progress", error=DictionaryError)
    model = _model_for(found, model)
    folder = make_folder(user_path(out, error=DictionaryError, what="a training"), error=DictionaryError)
    with file_lock(folder / ".lock"):
        training = Training(recipe, found, folder, choose_device(device))
        with _interrupted(training):
            training.run(save_every, progress)
        return _finished(training, found, folder, model)


# The arguments of train_sae that a recipe holds.
_RECIPE = {
    "features", "l0", "sparsity", "architecture", "skip", "input_site", "output_site", "centre", "steps", "batch_size",
    "rate", "bandwidth", "dead_after", "revive", "seed",
}  # fmt: skip


@contextmanager
def _interrupted(training: Training) -> Iterator[None]:
    """Says how a training that is interrupted goes on."""
    try:
        yield
    except KeyboardInterrupt:
        warn(
            f"interrupted after {training.step:,} of {training.recipe.steps:,} steps. The same call goes on after the last "
            f"checkpoint in {training.folder}"
        )
        raise


def _model_for(rows: Rows, model: Model | None) -> Model | None:
    """The model of the store; None if it is not at hand. StoreError for another one."""
    if not isinstance(rows, StoreRows):
        if model is not None:
            raise DictionaryError("rows in memory are of no model that could be checked: leave model= out")
        return None
    if model is None and rows.store.manifest.model != "nano":
        return None
    given = model_or_nano(model)
    if model is None and given.fingerprint != rows.store.manifest.fingerprint:
        return None
    rows.store.require_model(given)
    return given


def _finished(training: Training, rows: Rows, folder: Path, model: Model | None) -> TrainedSAE:
    """Write what was trained, measure it, and read it back."""
    import xarray

    recipe = training.recipe
    arrays = training.arrays()
    k = int(recipe.l0) if recipe.architecture == TOP_K and recipe.l0 is not None else None
    about: dict[str, object] = {"site": recipe.site}
    if recipe.layer is not None:
        about["layer"] = recipe.layer
    if recipe.is_transcoder:
        about |= {"input_site": recipe.input_site, "output_site": recipe.output_site}
    trained_for = TrainedFor()
    if isinstance(rows, StoreRows):
        about["model"] = rows.store.manifest.model
    if model is not None:
        about["fingerprint"] = model.network_fingerprint
        trained_for = TrainedFor(model.name, None, model.network_fingerprint)
    given = {name: array for name, array in arrays.items() if k is None or name != "threshold"}
    dictionary = Dictionary.from_arrays(
        given, site=recipe.site, layer=recipe.layer, k=k, input_site=recipe.input_site, output_site=recipe.output_site,
        device=training.device,
    )  # fmt: skip
    dictionary = replace(dictionary, trained_for=trained_for)
    measures = measured(dictionary, rows, _loss(dictionary, rows, model))
    path = folder / folder_of(recipe.layer, recipe.features, measures.l0)
    about |= {"measured": _as_data(measures), "recipe": recipe.as_data()}
    write_dictionary(path, {name: array.numpy() for name, array in arrays.items()}, about, k=k)
    labels = {"step": [int(line[0]) for line in training.history], "measure": list(MEASURES[1:])}
    values = [line[1:] for line in training.history]
    history: xarray.DataArray = labelled(values, labels, ("step", "measure"), "history", "of the batch of a step")
    return TrainedSAE(load_sae(path, device=training.device), path, measures, history, recipe)


def _loss(dictionary: Dictionary, rows: Rows, model: Model | None) -> LossRecovered | None:
    """How much of the loss is recovered on held-out texts; None without a model, or without a text that is long enough."""
    if model is None or not isinstance(rows, StoreRows):
        return None
    ids = [one for one in rows.held_out_ids(MOST_TEXTS) if len(one) > 2]
    return dictionary.loss_recovered(ids, model=model) if ids else None


def _as_data(measures: DictionaryMeasures) -> dict[str, object]:
    data: dict[str, object] = {
        "active features a position": round(measures.l0, 2),
        "explained variance": _number(measures.explained),
        "dead features": measures.n_dead,
        "rows": measures.n_rows,
    }
    if measures.loss is not None:
        loss = measures.loss
        data["loss recovered"] = _number(loss.recovered)
        data["loss clean, spliced, zeroed"] = [_number(x) for x in (loss.clean, loss.spliced, loss.zeroed)]
    return data


def _number(value: float) -> float | None:
    """To four digits after the point, as JSON holds it, which has no NaN."""
    return round(value, 4) if isfinite(value) else None
