"""gs.save_pages: a folder of unit pages with an index that is searched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from gemmascope.arguments import as_list, is_list, is_whole, short_repr, true_or_false
from gemmascope.errors import ExamplesError, FileError
from gemmascope.examples.group import UnitExamples
from gemmascope.examples.result import TopExamples
from gemmascope.examples.units import FEATURE, HEAD, NEURON
from gemmascope.files.paths import user_path, why_not_made
from gemmascope.files.writing import write_file
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.views.page import View, page
from gemmascope.views.units.page import own_model, require_examples, unit_view
from gemmascope.views.units.rows import HeadRuns, short

INDEX = "index.html"
# The most tokens of a unit that its line in the index shows.
RAISED = 4


@computes
def save_pages(
    examples: TopExamples,
    out: str | os.PathLike[str],
    *,
    units: object = None,
    saes: DictionaryWeights | Sequence[DictionaryWeights] = (),
    model: Model | None = None,
    progress: bool = True,
) -> View:
    """Write a page for each unit into a folder, and an index.html that is searched by number, token and word.

    Pages link to those of related units that are in the folder too. Each is self-contained: the folder can be copied, opened
    as files, or put on any server.

    Args:
        examples: What gs.top_examples or gs.open_examples returned.
        out: The folder; it is made if it is not there. Pages of these names are replaced, other files stay.
        units: A list of units, such as [("head", 3, 1), ("feature", 987)], or of groups, such as ["feature", ("head", 3)]: a
            pair is a layer of heads and neurons, and otherwise one unit. None: all that were active.
        saes: The dictionary of the features, or several; features have no page without theirs.
        model: The model that the examples are of; None: nano where they are nano's, else none, and pages have what the
            examples hold.
        progress: Show a bar when it takes more than a second.

    Returns:
        The index, as a view. Its links work from the folder.

    Raises:
        ExamplesError: A unit is not among the examples, or a dictionary or the model is missing or another one.
        FileError: The folder or a page cannot be written.

    Examples:
        >>> import pathlib
        >>> sae = gs.load_sae()
        >>> examples = gs.top_examples([pair.clean for pair in gs.prompts.ioi(8)], [(sae, [987]), "head"], layers=3, k=3)
        >>> gs.save_pages(examples, "pages", saes=sae, progress=False).spec["title"]
        'Units of nano'
        >>> sorted(path.name for path in pathlib.Path("pages").iterdir())[:2]
        ['feature-987-of-gs.load_sae-nano.html', 'head-3-0.html']
    """
    require_examples(examples)
    model = own_model(examples, model)
    by_name = {f"features of {sae.call}": sae for sae in _dictionaries(saes)}
    chosen = _chosen(examples, units)
    folder = user_path(out, error=FileError, what="a folder of pages")
    if missing := [group for group, _ in chosen if group.kind == FEATURE and group.name not in by_name]:
        raise ExamplesError(f"the pages of {missing[0].name} need their dictionary: give saes=")
    names = _file_names(chosen)
    _make(folder)
    runs = None if model is None else HeadRuns(model)
    lines = []
    bar = tqdm(chosen, desc="pages", unit="page", delay=1.0, leave=False)
    bar.disable = bar.disable or not true_or_false(progress, "progress", error=ExamplesError)
    for group, unit in bar:
        view = unit_view(
            examples, group, unit, model, sae=by_name.get(group.name), runs=runs, address=_Addresses(group, names, examples)
        )
        name = names[group.name, unit]
        write_file(folder / name, page([view], before=f'<p><a href="{INDEX}">All units</a></p>'))
        lines.append(_line(examples, group, unit, view, name))
    index = _index(examples, lines)
    write_file(folder / INDEX, page([index]))
    return index


def file_name(group: UnitExamples, unit: int) -> str:
    """What a unit's page is called: "head-3-1", or "feature-987-of-..." with the letters of its group's name."""
    if group.kind != FEATURE and group.kind != "direction":
        return f"{group.kind}-{group.layer}-{unit}"
    letters = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in group.name)
    of = "-".join(part for part in letters.split("-") if part)
    return f"{group.kind}-{unit}-of-{of.removeprefix('features-of-')[-80:]}"


def _file_names(chosen: Sequence[tuple[UnitExamples, int]]) -> dict[tuple[str, int], str]:
    """The file of each page. Dictionaries whose names have the same letters are told apart by a number."""
    names: dict[tuple[str, int], str] = {}
    used = {"index"}
    for group, unit in chosen:
        name = first = file_name(group, unit)
        n = 1
        while name.lower() in used:
            n += 1
            name = f"{first}-{n}"
        used.add(name.lower())
        names[group.name, unit] = f"{name}.html"
    return names


class _Addresses:
    """Where the pages of units are: of features those of the same dictionary."""

    def __init__(self, group: UnitExamples, names: Mapping[tuple[str, int], str], examples: TopExamples) -> None:
        self.group, self.names = group, names
        self.by_place = {(one.kind, one.layer): one.name for one in examples.each if one.kind != FEATURE}

    def __call__(self, kind: str, layer: int | None, unit: int) -> str | None:
        name = self.group.name if kind == FEATURE else self.by_place.get((kind, layer), "")
        return self.names.get((name, unit))


def _dictionaries(saes: object) -> list[DictionaryWeights]:
    listed = as_list(saes, "saes", error=ExamplesError) if is_list(saes) else [saes]
    made = [sae for sae in listed if isinstance(sae, DictionaryWeights)]
    if len(made) < len(listed):
        raise ExamplesError(f"saes are what gs.load_sae returns; given {short_repr(saes)}")
    return made


def _chosen(examples: TopExamples, units: object) -> list[tuple[UnitExamples, int]]:
    """The units to write pages of, with their groups."""
    if units is None:
        keys: list[object] = list(examples.groups)
    else:
        keys = as_list(units, "units", error=ExamplesError) if is_list(units) and not isinstance(units, tuple) else [units]
    found: dict[tuple[str, int], UnitExamples] = {}
    for key in keys:
        if _is_unit(key):
            group, unit = examples.locate(key)
            found[group.name, unit] = group
        else:
            group = examples.find(key)
            active = group.data["top_text"].values[:, 0] >= 0
            found |= {(group.name, int(unit)): group for unit in group.units[active]}
    if not found:
        raise ExamplesError("there is no unit to write a page of: none of them was active")
    return [(group, unit) for (_, unit), group in found.items()]


def _is_unit(key: object) -> bool:
    """Whether this names one unit, and no group."""
    if isinstance(key, tuple):
        return len(key) == 3 or (len(key) == 2 and not (isinstance(key[0], str) and key[0] in (HEAD, NEURON)))
    return is_whole(key)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {why_not_made(folder, error)}") from error


def _line(examples: TopExamples, group: UnitExamples, unit: int, view: View, address: str) -> dict[str, object]:
    """What the index says of a unit, and looks through."""
    one = group.data.sel(unit=unit)
    lists = view.spec["lists"]
    raises = [row[0] for part in lists if part["title"] == "Tokens that it raises" for row in part["rows"]]
    peaks = [row["tokens"][row["at"]] for part in view.spec["sections"][:1] for row in part["rows"]]
    name = str(view.title)
    looked = " ".join([name, group.kind, f"{group.layer}.{unit}", *dict.fromkeys(peaks), *raises])
    return {
        "name": name,
        "address": address,
        "kind": group.kind,
        "density": short(float(one["density"])),
        "high": short(float(one["high"])),
        "token": peaks[0] if peaks else None,
        "raises": raises[:RAISED],
        "text": looked.lower(),
    }


def _index(examples: TopExamples, lines: Sequence[dict[str, object]]) -> View:
    spec = {
        "view": "unit_index",
        "title": f"Units of {examples.model}",
        "note": f"{examples.n_rows:,} tokens of text, <bos> left out. Density: the share of tokens with a value above 0.",
        "units": list(lines),
    }
    rows = [["unit", "strongest at"], *([str(line["name"]), str(line["token"])] for line in lines[:50])]
    return View(spec, {}, f"{len(lines):,} unit{'s' if len(lines) != 1 else ''} of {examples.model}", rows)
