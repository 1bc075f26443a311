"""Several prompts at once: a site of many runs as one labelled array, and means over prompts beside the single results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
import xarray

from gemmascope.arguments import is_list
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.legible import prints_legibly
from gemmascope.model.modes import computes
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.sites import find, parse_site_name
from gemmascope.sweeps.resampling.bootstrap import labelled_bootstrap
from gemmascope.values import labelled

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

_TOKENS = {"pos": "token", "q_pos": "q_token", "k_pos": "k_token"}


@dataclass(frozen=True, repr=False, eq=False)
class PromptMeans(Generic[T]):
    """Results of several prompts, and their means. Made by gs.direct_logits and gs.lens for a list of traces.

    Attributes:
        each: The result of every prompt, as for that prompt alone.
        values: An xarray.Dataset with every number of every prompt, on an axis "run" beside those of a single result. A
            label that is not the same in all prompts, such as the tokens, is left out.
        about: What was measured, as text.

    Examples:
        >>> family = gs.prompts.ioi(4)
        >>> traces = gs.trace([pair.clean for pair in family])
        >>> answers = [pair.answer for pair in family]
        >>> result = gs.direct_logits(traces, answers, against=[pair.against for pair in family], by="head")
        >>> result.mean["parts"].dims, len(result.each)
        (('layer', 'head'), 4)
    """

    each: tuple[T, ...]
    values: xarray.Dataset
    about: str

    @property
    def mean(self) -> xarray.Dataset:
        """The means over the prompts."""
        return self.values.mean("run", keep_attrs=True)

    @property
    def stderr(self) -> xarray.Dataset:
        """The standard errors of the means: the standard deviation over prompts (n - 1) over the root of their number.

        Raises:
            SiteError: There is one prompt.
        """
        if len(self.each) < 2:
            raise SiteError("a standard error needs at least two prompts; there is one")
        deviation: xarray.Dataset = self.values.std("run", ddof=1, keep_attrs=True)
        of_means: xarray.Dataset = deviation / len(self.each) ** 0.5
        return of_means

    def interval(self, level: float = 0.95, *, n: int = 2000, seed: int = 0) -> xarray.Dataset:
        """A bootstrap interval of each mean: prompts drawn anew with replacement n times, percentiles of the means.

        Args:
            level: The share of the resampled means inside.
            n: The number of draws.
            seed: The seed of the draws.

        Returns:
            The same numbers with an axis "bound": "low" and "high".

        Raises:
            SweepError: There is one prompt, or an argument is out of range.
        """
        return xarray.Dataset(
            {name: labelled_bootstrap(array, "run", level, n, seed) for name, array in self.values.data_vars.items()}
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each number: its name, its labels, the mean and the standard error."""
        import pandas

        parts = []
        for name, array in self.mean.data_vars.items():
            both = (
                xarray.Dataset({"mean": array, "stderr": self.stderr[name]})
                if len(self.each) > 1
                else array.to_dataset(name="mean")
            )
            table = both.to_dataframe().reset_index() if array.dims else both.to_array("of").to_pandas().to_frame().T
            parts.append(table.assign(number=name))
        return pandas.concat(parts, ignore_index=True)

    def __len__(self) -> int:
        return len(self.each)

    @prints_legibly
    def __repr__(self) -> str:
        sizes = {str(name): dict(array.sizes) for name, array in self.mean.data_vars.items()}
        numbers = ", ".join(f"{name} {tuple(dims)}" if dims else name for name, dims in sizes.items())
        return f"{self.about}: means over {len(self.each)} prompts of {numbers}"


def means(each: Sequence[T], numbers: Sequence[Mapping[str, xarray.DataArray]], about: str) -> PromptMeans[T]:
    """Results of several prompts with the numbers of each by name. SiteError for numbers of different shapes."""
    return PromptMeans(
        tuple(each), xarray.Dataset({name: _stacked([of[name] for of in numbers], name) for name in numbers[0]}), about
    )


def _stacked(arrays: Sequence[xarray.DataArray], name: str) -> xarray.DataArray:
    first = arrays[0]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1:
        at = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
        raise SiteError(
            f"{name} has shape {shapes[0]} in prompt 0 and {shapes[at]} in prompt {at}, so there is no mean over them: read "
            "as many positions of each, or give prompts of one length"
        )
    coords = {
        key: coord for key, coord in first.coords.items() if all(_same(coord, array.coords[key]) for array in arrays[1:])
    }
    values = np.stack([array.values for array in arrays])
    return xarray.DataArray(values, {"run": range(len(arrays)), **coords}, ("run", *first.dims), name, first.attrs)


def _same(a: xarray.DataArray, b: xarray.DataArray) -> bool:
    return bool(a.values.tolist() == b.values.tolist())


def listed_traces(traces: object) -> list[Trace]:
    """The traces of several prompts. SiteError for an empty list, or one that holds something else."""
    listed = list(traces) if is_list(traces) else [traces]
    if not listed:
        raise SiteError("the list of traces is empty: give at least one, gs.trace([prompt, ...])")
    for one in listed:
        if not isinstance(one, Trace):
            raise SiteError(f"a list of traces is what gs.trace([prompt, ...]) returns; it holds {not_a_trace(one)}")
    return [one for one in listed if isinstance(one, Trace)]


def one_for_each(value: object, name: str, n: int) -> list[object]:
    """An argument for each of n prompts: the same for all, or the items of a list of n. SiteError for another number."""
    if not isinstance(value, (list, tuple)):
        return [value] * n
    if len(value) != n:
        raise SiteError(f"there are {n} traces and {len(value)} of {name}: give one for all, or one for each")
    return list(value)


@computes
def stack(traces: Sequence[Trace], site: str, layer: int | None = None) -> xarray.DataArray:
    """A site of several runs of one length as one labelled array.

    Args:
        traces: What gs.trace gives for a list of prompts.
        site: A site, by its name here or in TransformerLens.
        layer: Its layer. None for every layer, or for a site outside the layers.

    Returns:
        (run, *axes of the site), or (run, layer, *axes) for every layer, float32; layers have their kinds as labels, and
        positions their tokens where all runs have the same.

    Raises:
        SiteError: The runs have different lengths, or there is no such site.

    Examples:
        >>> traces = gs.trace(["Mary and John went", "John and Mary went"])
        >>> gs.stack(traces, "pattern").dims
        ('run', 'layer', 'head', 'q_pos', 'k_pos')
        >>> gs.stack(traces, "resid_post", -1).sizes["d_model"]
        128
    """
    listed = listed_traces(traces)
    lengths = [len(t) for t in listed]
    if len(set(lengths)) > 1:
        raise SiteError(f"runs of one length make one array; these have {lengths} positions: read each by itself")
    model = listed[0].model
    if any(t.model.config != model.config for t in listed):
        raise SiteError("the runs are of models of different shapes, so there is no one array of their values")
    named, its_layer = parse_site_name(site)
    every = named.in_layer and layer is None and its_layer is None
    if every:
        values = torch.stack([torch.stack(list(_every_layer(t, named.name))) for t in listed])
    else:
        address = find(site, model.n_layers, layer)
        values = torch.stack([t.read(address.site, address.layer).cpu() for t in listed])
    coords: dict[str, object] = {"run": range(len(listed))}
    if every:
        coords |= {"layer": range(model.n_layers), "kind": ("layer", list(model.config.kinds))}
    same_tokens = all(t.tokens == listed[0].tokens for t in listed)
    for axis, size in zip(named.axes, values.shape[-len(named.axes) :], strict=True):
        coords[axis] = range(size)
        if axis in _TOKENS and same_tokens:
            coords[_TOKENS[axis]] = (axis, listed[0].tokens)
    return labelled(values.float(), coords, ("run", *(["layer"] if every else []), *named.axes), named.name)


def _every_layer(trace: Trace, site: str) -> Iterator[torch.Tensor]:
    for _, values in replay(trace, [site]):
        yield values[site].float().cpu()
