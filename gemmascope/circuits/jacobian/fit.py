"""gs.fit_jacobian_lens: the mean Jacobians of a model over texts."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gemmascope.arguments import as_list, finite_number, short_repr, true_or_false, whole_number
from gemmascope.circuits.jacobian.backward import jacobians_of
from gemmascope.circuits.jacobian.files import read_lens_file, write_lens
from gemmascope.circuits.jacobian.lens import JacobianLens
from gemmascope.circuits.jacobian.settings import FitSettings
from gemmascope.errors import LensError, PromptError, warn
from gemmascope.files.paths import user_path
from gemmascope.files.writing import require_writable
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes

# A single text near the mean must not end a fit that has hardly begun.
LEAST_TEXTS = 10
SAVE_SECONDS = 60.0


@dataclass
class _Fit:
    """A fit: the mean so far, how far each text moved it, and which texts it has seen."""

    model: Model
    settings: FitSettings
    layers: tuple[int, ...]
    path: Path | None
    means: dict[int, Tensor] = field(default_factory=dict)
    n_texts: int = 0
    n_seen: int = 0
    changes: list[float] = field(default_factory=list)
    digest: str = ""
    saved: float = field(default_factory=time.monotonic)

    def resume(self) -> None:
        """Take up what the file holds. LensError if it is of another model or other settings."""
        assert self.path is not None
        found, model = read_lens_file(self.path), self.model
        layers = tuple(found.matrices)
        if found.texts is None:
            raise LensError(f"{self.path} is a finished lens, and no fit goes on from it: give another file as out")
        mine = (model.network_fingerprint, self.settings, self.layers)
        if (found.fingerprint, found.settings, layers) != mine:
            raise LensError(
                f"{self.path} holds a fit of {found.model!r} (fingerprint {found.fingerprint}), {found.settings}, layers "
                f"{list(layers)}; this one is of {model.name!r} (fingerprint {mine[0]}), {mine[1]}, layers {list(mine[2])}: "
                "give another file as out, or the same arguments"
            )
        self.means = {layer: matrix.to(model.device) for layer, matrix in found.matrices.items()}
        self.n_texts, self.n_seen, self.changes, self.digest = found.n_texts, found.n_seen, [*found.changes], found.texts

    def add(self, ids: Tensor) -> None:
        """Take a text into the mean. All that it changes is set at the end, so that an interrupt leaves a whole state."""
        found = jacobians_of(self.model, ids, self.settings.used(len(ids)), self.layers)
        n = self.n_texts + 1
        means = {layer: matrix if n == 1 else self.means[layer].lerp(matrix, 1 / n) for layer, matrix in found.items()}
        changes = list(self.changes)
        if n > 1:
            moved = [(means[layer] - old).norm() / old.norm().clamp(min=1e-30) for layer, old in self.means.items()]
            changes.append(float(torch.stack(moved).mean()))
        self.means, self.changes, self.n_texts = means, changes, n

    def save(self, *, late: bool = True) -> None:
        """Write the state to the file, if there is one. late: only if the last time was a while ago."""
        if self.path is None or not self.n_texts or (late and time.monotonic() - self.saved < SAVE_SECONDS):
            return
        stored = {layer: mean.cpu() for layer, mean in self.means.items()}
        about = self.n_texts, self.model.name, self.model.network_fingerprint, self.changes, self.settings
        write_lens(self.path, stored, *about, n_seen=self.n_seen, texts=self.digest)
        self.saved = time.monotonic()

    def lens(self) -> JacobianLens:
        name, fingerprint = self.model.name, self.model.network_fingerprint
        call = "gs.fit_jacobian_lens(...)" if self.path is None else f"gs.load_jacobian_lens({str(self.path)!r})"
        return JacobianLens(self.means, self.n_texts, name, fingerprint, tuple(self.changes), self.settings, call=call)


@computes
def fit_jacobian_lens(
    model: Model,
    texts: Iterable[Prompt],
    *,
    layers: Iterable[int] | None = None,
    max_texts: int = 1000,
    tolerance: float = 2e-3,
    max_length: int = 128,
    skip_first: int = 16,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> JacobianLens:
    """Fit a Jacobian lens: the mean Jacobian from the stream after each layer to the stream after the last one.

    For each text it is d resid_post[last] / d resid_post[layer], summed over target positions and averaged over source
    positions; the lens is the mean over texts. Gradients are true ones: through attention, norms and soft caps. The fit ends
    when a text changes the mean by less than the tolerance, and texts are taken from the iterable one by one until then. An
    interrupt ends it as well, with a warning, and what was fitted is returned.

    Args:
        model: The model. It computes in its own dtype; float32 is the most exact.
        texts: Texts of the kind that the lens is to be used on, or token ids. Texts with no position to use are passed over.
        layers: The layers to fit; None means all but the last, whose Jacobian is the identity. One backward pass serves them
            all, so that fewer layers take as long unless they are the last ones.
        max_texts: End after so many texts in any case.
        tolerance: End when the relative change |new mean - mean| / |mean|, averaged over layers, is below this, after 10
            texts at least. 0 goes on to max_texts.
        max_length: Of a longer text, the first so many tokens are used.
        skip_first: Leave out the first so many positions, which attention sinks make unlike others. The last one is left
            out as well.
        out: A file for the state, .safetensors, written about once a minute and at the end. If it exists, the fit goes on
            from it: give the same texts. gs.load_jacobian_lens reads it at any time.
        progress: Show a progress bar when the fit takes more than a second.

    Returns:
        The lens, in float32.

    Raises:
        LensError: For texts that are not a list, none of which is long enough; a layer that is not there or the last one; a
            file of another fit; or a model with edits of its own.
        PromptError: For a text that is no prompt, with its number.

    Examples:
        >>> texts = ["When Mary and John went to the store, John gave a drink to Mary."] * 3
        >>> gs.fit_jacobian_lens(gs.load(), texts, skip_first=4, progress=False)
        JacobianLens(gs.fit_jacobian_lens(...): layers 0 to 4 of nano, d_model 128, over 3 texts...)

    References:
        Gurnee et al., "Verbalizable Representations Form a Global Workspace in Language Models" (Transformer
        Circuits, 2026).
    """
    model = model_or_nano(model)
    if model.edits:
        raise LensError(
            f"a lens is of a model as it is, and {model.name!r} has edits of its own: give the model without them"
        )
    limit = whole_number(max_texts, "max_texts", least=1, error=LensError)
    least_change = finite_number(tolerance, "tolerance", error=LensError)
    if least_change < 0:
        raise LensError(f"tolerance is 0 or more; given {short_repr(tolerance)}")
    progress = true_or_false(progress, "progress", error=LensError)
    source = _source(texts)
    fit = _Fit(model, _settings(max_length, skip_first, model), _layers(layers, model), _path(out))
    if fit.path is not None and fit.path.exists():
        fit.resume()
    interrupted = False
    try:
        _run(fit, source, limit, least_change, progress)
    except KeyboardInterrupt:
        if not fit.n_texts:
            raise
        interrupted = True
    fit.save(late=False)
    if interrupted:
        more = "" if fit.path is None else ". A second call with the same file goes on"
        warn(f"interrupted: the lens is the mean over {fit.n_texts:,} texts{more}")
    if not fit.n_texts:
        raise LensError(
            f"none of the {fit.n_seen:,} texts has a position to use: a text needs {fit.settings.skip_first + 2} tokens at "
            "least, because the first skip_first and the last one are left out. Give longer texts, or a smaller skip_first"
        )
    return fit.lens()


def _run(fit: _Fit, texts: Iterator[Prompt], limit: int, tolerance: float, progress: bool) -> None:
    """Take texts until the rule says stop. Those that a resumed fit has seen are compared with its own."""
    from tqdm.auto import tqdm

    n_before, before, digest = fit.n_seen, fit.digest, ""
    with tqdm(total=limit, desc="Jacobian lens", unit="text", delay=1.0, leave=False, disable=not progress) as bar:
        bar.update(fit.n_texts)
        for number, text in enumerate(texts):
            if number >= n_before and _is_done(fit, limit, tolerance):
                break
            ids = _ids(fit, text, number)
            digest = hashlib.sha256(f"{digest} {ids.tolist()}".encode()).hexdigest()
            if number < n_before:
                if number == n_before - 1 and digest != before:
                    raise LensError(f"{fit.path} holds a fit over other texts: give the same ones, or another file as out")
                continue
            used = fit.settings.used(len(ids))
            if used.stop > used.start:
                fit.add(ids)
                bar.update()
                if fit.changes:
                    bar.set_postfix_str(f"change {fit.changes[-1]:.2g}", refresh=False)
            fit.n_seen, fit.digest = number + 1, digest
            fit.save()


def _is_done(fit: _Fit, limit: int, tolerance: float) -> bool:
    return fit.n_texts >= limit or (fit.n_texts >= LEAST_TEXTS and fit.changes[-1] < tolerance)


def _ids(fit: _Fit, text: Prompt, number: int) -> Tensor:
    """The token ids of a text, as many as are used. PromptError, with its number, for one that is no prompt."""
    try:
        return fit.model.ids(text)[: fit.settings.max_length]
    except PromptError as error:
        raise PromptError(f"text {number}: {error}") from error


def _source(texts: object) -> Iterator[Prompt]:
    """The texts, one by one, however many there are."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise LensError(f"texts is a list or another iterable of texts; given {short_repr(texts)}")
    return iter(texts)


def _settings(max_length: object, skip_first: object, model: Model) -> FitSettings:
    skip = whole_number(skip_first, "skip_first", least=0, error=LensError)
    length = whole_number(max_length, "max_length", least=skip + 2, error=LensError)
    return FitSettings(min(length, model.config.context), skip)


def _layers(layers: object, model: Model) -> tuple[int, ...]:
    """The layers to fit, in rising order."""
    last = model.n_layers - 1
    if last < 1:
        raise LensError(f"{model.name!r} has one layer, whose Jacobian is the identity: there is nothing to fit")
    if layers is None:
        return tuple(range(last))
    numbers = sorted(
        {whole_number(n, "a layer", least=0, error=LensError) for n in as_list(layers, "layers", error=LensError)}
    )
    if not numbers or numbers[-1] >= last:
        raise LensError(
            f"layers are some of 0 to {last - 1}: the last one, {last}, has the identity as its Jacobian; given {numbers}"
        )
    return tuple(numbers)


def _path(out: str | os.PathLike[str] | None) -> Path | None:
    if out is None:
        return None
    path = user_path(out, error=LensError)
    if path.suffix != ".safetensors":
        raise LensError(f"out is a file whose name ends in .safetensors; given {str(path)!r}")
    require_writable(path)
    return path
