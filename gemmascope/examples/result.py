"""TopExamples: where units are strongest, as tables, labelled arrays and a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gemmascope.arguments import equals_text, is_whole, short_repr, whole_number
from gemmascope.errors import ExamplesError
from gemmascope.examples.files import save_examples
from gemmascope.examples.group import UnitExamples
from gemmascope.examples.settings import ExampleSettings
from gemmascope.examples.tables import entry_rows, quantile_of, statistics_of
from gemmascope.examples.units import FEATURE, KINDS
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.tokens.tokenizer import visible_text

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

SHOWN_UNITS = 3


@dataclass(frozen=True, eq=False, repr=False)
class TopExamples:
    """Where units are strongest over many texts. Made by gs.top_examples and gs.open_examples.

    A unit is addressed as ("head", layer, number), ("neuron", layer, number), ("feature", number) or ("feature", layer,
    number), ("direction", number), (the name of a group, number); or by its number alone where there is one group.

    Attributes:
        each: The groups of units, in the order that they were asked.
        vocab: The tokens of all examples as text, by id.
        model: The model's name.
        fingerprint: The model's fingerprint.
        n_rows: How many rows (tokens) were looked at.
        settings: What was asked.

    Examples:
        >>> examples = gs.top_examples(["The cat sat on the mat", "Mary and John went"], "head", layers=[2, 3], k=2)
        >>> examples.groups
        ['heads of layer 2', 'heads of layer 3']
        >>> examples.top(("head", 2, 1)).columns.tolist()
        ['rank', 'value', 'text', 'pos', 'token', 'before', 'after']
        >>> examples.save("examples.safetensors")
        >>> gs.open_examples("examples.safetensors")["head", 3]
        4 heads of layer 3, by length of what the head adds to the stream
    """

    each: Sequence[UnitExamples]
    vocab: Mapping[int, str]
    model: str
    fingerprint: str
    n_rows: int
    settings: ExampleSettings

    @property
    def groups(self) -> list[str]:
        """The names of the groups."""
        return [group.name for group in self.each]

    def __getitem__(self, key: object) -> UnitExamples:
        """A group of units: examples["head", 3], examples["feature"], examples[dictionary] or examples["heads of layer 3"].

        Raises:
            ExamplesError: There is none such, or more than one.
        """
        return self.find(key)

    def find(self, key: object) -> UnitExamples:
        """The same as examples[key].

        Args:
            key: A kind, (kind, layer), a dictionary, or the name of a group.
        """
        found = [group for group in self.each if _is(group, key)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(map(legible_line, self.groups))
        given = legible_line(key.call) if isinstance(key, DictionaryWeights) else short_repr(key)
        raise ExamplesError(f"{given} is {'none' if not found else 'more than one'} of the groups of units here: {names}")

    def locate(self, unit: object) -> tuple[UnitExamples, int]:
        """The group that a unit is in, and its number.

        Args:
            unit: A unit, as the class says.

        Raises:
            ExamplesError: There is none such.
        """
        if is_whole(unit):
            if len(self.each) > 1:
                raise ExamplesError(f"a number alone, {int(unit)}, could be of {', '.join(self.groups)}: {_HOW}")
            group, number = self.each[0], int(unit)
        elif isinstance(unit, tuple) and len(unit) in (2, 3) and is_whole(unit[-1]):
            group, number = self.find(unit[0] if len(unit) == 2 else unit[:2]), int(unit[-1])
        else:
            raise ExamplesError(f"{_HOW}; given {short_repr(unit)}")
        group.index(number)
        return group, number

    def top(self, unit: object, k: int | None = None) -> pandas.DataFrame:
        """A unit's strongest examples, one a row: rank, value, text, pos, token, before and after.

        Args:
            unit: The unit.
            k: The most rows; None: all that were kept.
        """
        return self._table(unit, "top", k)

    def bottom(self, unit: object, k: int | None = None) -> pandas.DataFrame:
        """The same where a neuron or a direction is most negative, the most negative first.

        Args:
            unit: The unit.
            k: The most rows; None: all that were kept.
        """
        return self._table(unit, "bottom", k)

    def sample(self, unit: object, quantiles: int = 4) -> pandas.DataFrame:
        """Rows drawn at random from those where the unit is not zero, the largest value first.

        Args:
            unit: The unit.
            quantiles: Into how many parts of equal size to divide them: the column quantile is 1 for the smallest values.
        """
        parts = whole_number(quantiles, "quantiles", least=1, error=ExamplesError)
        frame = self._table(unit, "sample", None)
        frame["quantile"] = quantile_of(len(frame), parts)
        return frame

    def stats(self, key: object = None) -> pandas.DataFrame:
        """One row for each unit: kind, layer, unit, density, mean, std, low, high, and the token of its strongest example.

        Args:
            key: One group, as in examples[key]; None: all.
        """
        import pandas

        groups = self.each if key is None else [self.find(key)]
        return pandas.concat([statistics_of(group, self.vocab) for group in groups], ignore_index=True)

    def histogram(self, unit: object) -> xarray.DataArray:
        """How many rows have a value in each bin, [bin], by the bin's lower edge low and its upper edge high.

        Args:
            unit: The unit.
        """
        group, number = self.locate(unit)
        one = group.data.sel(unit=number)
        edges = one["edges"].values
        counts = one["histogram"].drop_vars("unit")
        return counts.assign_coords(low=("bin", edges[:-1]), high=("bin", edges[1:])).assign_attrs(long_name=group.measure)

    def co_active(self, unit: object) -> pandas.DataFrame:
        """The features that are active with a feature: feature, rows (both are), share (of rows where either is).

        Args:
            unit: The feature.

        Raises:
            ExamplesError: It is no feature, or pairs were not counted.
        """
        group, number = self.locate(unit)
        if "co_feature" not in group.data:
            many = "give fewer features, (dictionary, [987, ...]), and co_active above 0: all pairs of many take much memory"
            why = many if group.kind == FEATURE else "features have them"
            raise ExamplesError(f"pairs of {legible_line(group.name)} were not counted: {why}")
        one = group.data.sel(unit=number)
        frame = one[["co_feature", "co_rows", "co_share"]].to_dataframe().reset_index(drop=True)
        frame = frame[["co_feature", "co_rows", "co_share"]].set_axis(["feature", "rows", "share"], axis=1)
        return frame[frame["feature"] >= 0]

    def plot(self, unit: object) -> Figure:
        """A plotly figure of a unit's histogram.

        Args:
            unit: The unit.
        """
        from gemmascope.figures.histogram import histogram_figure

        group, number = self.locate(unit)
        one = group.data.sel(unit=number)
        title = f"{group.kind.capitalize()} {number} of {legible_line(group.name.removeprefix(f'{group.kind}s of '))}"
        about = f"density {float(one['density']):.3g}, mean {float(one['mean']):.3g}, {self.n_rows:,} rows"
        return histogram_figure(self.histogram(unit), title=title, subtitle=about, unit=group.measure)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, which gs.open_examples reads.

        Args:
            path: The file. One that is there is replaced once the new one is complete.

        Raises:
            FileError: The file cannot be written.
        """
        about = {"model": self.model, "fingerprint": self.fingerprint, "n_rows": self.n_rows}
        save_examples(path, self.each, self.vocab, self.settings, about)

    def _table(self, unit: object, part: str, k: int | None) -> pandas.DataFrame:
        k = None if k is None else whole_number(k, "k", least=1, error=ExamplesError)
        group, number = self.locate(unit)
        if f"{part}_value" not in group.data:
            why = {"bottom": "neurons and directions have them", "sample": "sample=0 was given"}[part]
            raise ExamplesError(f"{legible_line(group.name)} have no {part} examples: {why}")
        return entry_rows(group, number, part, self.vocab, k)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [
            f"TopExamples of {legible_line(self.model)}: {self.n_rows:,} rows, the {self.settings.k} strongest of each unit"
        ]
        for group in self.each:
            lines.append(f"  {len(group):,} {legible_line(group.name)}")
            order = np.argsort(-group.data["high"].values, kind="stable")[:SHOWN_UNITS]
            for at in order.tolist():
                frame = entry_rows(group, int(group.units[at]), "top", self.vocab, 1)
                if len(frame):
                    row = frame.iloc[0]
                    shown = f"{visible_text(str(row['before']))}[{visible_text(str(row['token']))}]"
                    lines.append(f"    {group.units[at]}: {row['value']:.3g} at {shown[-60:]}")
        return "\n".join(lines)


_HOW = (
    f"a unit is (kind, layer, number), (kind, number) or (name of a group, number), a kind being one of {', '.join(KINDS)}"
)


def _is(group: UnitExamples, key: object) -> bool:
    if isinstance(key, DictionaryWeights):
        return group.name == f"features of {key.call}"
    if isinstance(key, tuple) and len(key) == 2:
        layer_is = group.layer is None if key[1] is None else is_whole(key[1]) and group.layer == int(key[1])
        return equals_text(key[0], group.kind) and layer_is
    return equals_text(key, group.kind) or equals_text(key, group.name)
