"""gs.probe: linear probes at every site and layer of a store, held out by text, beside baselines and a control task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gemmascope.arguments import finite_number, one_of, true_or_false, whole_number
from gemmascope.errors import ProbeError
from gemmascope.memory.limits import require_free_memory
from gemmascope.model.modes import computes
from gemmascope.probes.fits import METHODS, fit, strongest
from gemmascope.probes.result import FittedProbe, ProbeScores
from gemmascope.probes.scores import Bootstrap, by_token, majority, right_when_held_out
from gemmascope.probes.tasks import Task, deal_folds, task_of
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sites import SiteKey
from gemmascope.stores.reading.lookup import pairs_of
from gemmascope.stores.reading.store import Store
from gemmascope.stores.spec import ArraySpec

CPU = torch.device("cpu")
COLUMNS = ("accuracy", "low", "high", "control", "selectivity", "selectivity_low", "selectivity_high")


@computes
def probe(
    store: Store,
    labels: Sequence[object],
    sites: Sequence[SiteKey] | None = None,
    *,
    rows: object = None,
    pos: object = None,
    method: str = "ridge",
    l2: float = 0.001,
    folds: int = 5,
    dictionary: Dictionary | None = None,
    k: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ProbeScores:
    """Train linear probes at the sites and layers of a store, and measure them on texts that were held out.

    Rows of one text, and of texts with the same tokens, are held out together. Beside the accuracy stand two baselines that
    need no model, and the accuracy on a control task, in which every kind of token has a random class: a probe that learns
    that as well has learnt tokens, and not what the model made of them (selectivity is the difference). Rows of one token,
    such as the last of prompts that end alike, have no control task, and NaN in its place.

    Args:
        store: What gs.harvest returns.
        labels: Classes (numbers, texts or booleans): one for each row of the store; for each of rows; or for each text. None
            and NaN leave a row out.
        sites: (site, layer) of the arrays to probe; None: all.
        rows: Numbers of rows, which labels are then of.
        pos: Where labels are of texts: the position, or positions, of each text whose rows have its label. None: the last.
        method: "ridge": least squares. "mass_mean": the nearest mean of a class. "logistic": needs scikit-learn.
        l2: The penalty on squared weights, beside the mean loss of a row, where rows are centred and have a mean squared
            length of 1.
        folds: How many parts the texts are dealt into; each is held out once.
        dictionary: Probe a dictionary's features, at the site that it reads.
        k: Take the k columns, or features, whose means differ most between a class and the others (chosen without the fold
            that is held out); None: all.
        seed: The seed of the folds, the control task and the intervals.
        progress: Show a bar when it takes more than a second.

    Returns:
        The scores of every array with 95% intervals, and the probes, which are edits and conditions too.

    Raises:
        ProbeError: Labels do not go with the rows, are of one class, or of a class that is in one text alone.
        SiteError: The store does not hold a site.
        MissingPackageError: method is "logistic", and scikit-learn is not installed.

    Examples:
        >>> pairs = gs.prompts.ioi(60)
        >>> store = gs.harvest(None, [pair.clean for pair in pairs], "resid_post", layers=[0, 3], out="acts", progress=False)
        >>> scores = gs.probe(store, [token == " to" for token in store.tokens], progress=False)
        >>> scores
        ProbeScores: ridge, 2 classes, ... rows of 60 texts, 5 folds; best at ...
        >>> edit = gs.ablate("resid_post", layer=3, when=scores.at("resid_post", 3).when())

    References:
        Hewitt and Liang, "Designing and Interpreting Probes with Control Tasks" (arXiv 1909.03368).
        Marks and Tegmark, "The Geometry of Truth" (arXiv 2310.06824): mass-mean probes.
        Gurnee et al., "Finding Neurons in a Haystack" (arXiv 2305.01610): sparse probing.
    """
    if not isinstance(store, Store):
        raise ProbeError(f"store is what gs.harvest or gs.open_store returns; given {type(store).__name__}")
    method = one_of(method, "method", METHODS, error=ProbeError)
    penalty = finite_number(l2, "l2", error=ProbeError)
    if penalty <= 0:
        raise ProbeError(f"l2 is above 0; given {penalty:g}")
    n_folds = whole_number(folds, "folds", least=2, error=ProbeError)
    seed = whole_number(seed, "seed", least=0, error=ProbeError)
    if dictionary is not None and not isinstance(dictionary, Dictionary):
        raise ProbeError(f"dictionary is what gs.load_sae returns; given {type(dictionary).__name__}")
    arrays = _arrays(store, sites, dictionary)
    if k is not None:
        least_width = dictionary.n_features if dictionary is not None else min(array.width for array in arrays)
        k = whole_number(k, "k", least=1, most=least_width, error=ProbeError)
    progress = true_or_false(progress, "progress", error=ProbeError)
    task = task_of(store, labels, rows, pos)
    return _Probing(store, task, method, penalty, n_folds, dictionary, k, seed).run(arrays, progress)


def _arrays(store: Store, sites: object, dictionary: Dictionary | None) -> list[ArraySpec]:
    if dictionary is not None:
        if sites is not None:
            raise ProbeError("a dictionary is probed at the site that it reads: leave sites= out")
        return [store.array(dictionary.read_from, dictionary.layer)]
    if sites is None:
        return [store.array(*key) for key in store.keys]
    arrays = [store.array(*pair) for pair in pairs_of(sites)]
    if not arrays:
        raise ProbeError("the list of sites is empty: name at least one (site, layer), or leave it out for all")
    names = [array.name for array in arrays]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ProbeError(f"sites names {twice[0]} twice: name each once")
    return arrays


class _Probing:
    """One call of gs.probe, after its arguments were checked."""

    def __init__(
        self,
        store: Store,
        task: Task,
        method: str,
        l2: float,
        n_folds: int,
        dictionary: Dictionary | None,
        k: int | None,
        seed: int,
    ) -> None:
        self.store, self.task, self.method, self.l2, self.k = store, task, method, l2, k
        self.dictionary, self.seed = dictionary, seed
        self.fold_of = deal_folds(task, n_folds, seed)
        self.control = task.control(seed)
        self.bootstrap = Bootstrap(task.groups, seed)

    def run(self, arrays: Sequence[ArraySpec], progress: bool) -> ProbeScores:
        import xarray
        from tqdm.auto import tqdm

        lines: list[list[float]] = []
        probes: dict[SiteKey, FittedProbe] = {}
        for array in tqdm(arrays, desc="probe", unit="array", delay=1.0, leave=False, disable=not progress):
            x = self._rows(array)
            lines.append(self._line(x))
            probes[array.key] = self._fitted(x, array)
        names = [array.name for array in arrays]
        layers = [-1 if array.layer is None else array.layer for array in arrays]
        coords = {"array": names, "site": ("array", [array.site for array in arrays]), "layer": ("array", layers)}
        data = {name: ("array", [line[i] for line in lines]) for i, name in enumerate(COLUMNS)}
        task = self.task
        return ProbeScores(
            xarray.Dataset(data, coords),
            _share(majority(task, self.fold_of)),
            _share(by_token(task, self.fold_of)),
            task.classes,
            len(task.rows),
            len(np.unique(task.groups)),
            int(self.fold_of.max()) + 1,
            self.method if self.k is None else f"{self.method} of {self.k}",
            self.store.manifest.model,
            probes,
        )

    def _rows(self, array: ArraySpec) -> Tensor:
        """The rows [row, d], float64; or the activations of the dictionary, [row, feature]."""
        task, one = self.task, self.dictionary
        width = array.width if one is None else one.n_features
        do = "give some rows (rows=), or a store of fewer texts" + (", or k=" if self.k is None else "")
        products = 2 * 8 * width**2 if self.method == "ridge" and self.k is None else 0  # columns by columns, and to solve
        n_bytes = 4 * 8 * len(task.rows) * width + products
        require_free_memory(n_bytes, CPU, f"probing {len(task.rows):,} rows of {array.name}", do)
        x = self.store.read(array.site, array.layer, task.rows).flatten(1)
        return x.double() if one is None else one.activations(one.input_of(x)).cpu().double()

    def _line(self, x: Tensor) -> list[float]:
        """The COLUMNS of an array."""
        asked = self.fold_of, self.method, self.l2, self.k
        right = right_when_held_out(x, self.task, *asked).double().numpy()
        low, high = self.bootstrap.interval(right)
        if self.control is None:
            return [right.mean(), low, high, *[np.nan] * (len(COLUMNS) - 3)]
        control = right_when_held_out(x, self.control, *asked).double().numpy()
        more = right - control
        return [right.mean(), low, high, control.mean(), more.mean(), *self.bootstrap.interval(more)]

    def _fitted(self, x: Tensor, array: ArraySpec) -> FittedProbe:
        """The probe of all rows."""
        task = self.task
        columns = None if self.k is None else strongest(x, task.y, task.n_classes, self.k)
        found = fit(self.method, x if columns is None else x[:, columns], task.y, task.n_classes, self.l2)
        weight = found.weight
        if columns is not None:
            weight = torch.zeros(x.shape[1], task.n_classes, dtype=torch.float64).index_copy(0, columns, found.weight)
        features = None if columns is None else tuple(columns.tolist())
        is_of_features = self.dictionary is not None
        return FittedProbe(*array.key, task.classes, weight, found.bias, features, is_of_features)


def _share(right: Tensor) -> float:
    return float(right.double().mean())
