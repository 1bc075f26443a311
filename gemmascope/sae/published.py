"""What is published for Gemma 2, under the release names and ids that SAELens gives: gs.saes, and looking them up.

published.list lists Gemma Scope: a line for each repository, layer and width, with its average L0s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.arguments import short_repr
from gemmascope.config import PRESETS
from gemmascope.errors import DictionaryError
from gemmascope.model.model import Model
from gemmascope.sae.catalogue import (
    CANONICAL,
    EMBEDDING,
    PARAMS,
    TRANSCODER,
    Entry,
    Suite,
    canonical_order,
    layer_or_l0,
    width_names,
)
from gemmascope.sites import did_you_mean, parse_site_name

if TYPE_CHECKING:
    import pandas

GEMMA_SCOPE, DICTIONARY_LEARNING, SAELENS, CROSS_LAYER = "Gemma Scope", "dictionary_learning", "SAELens", "cross-layer"
_LIST = Path(__file__).with_name("published.list")
# Releases for Gemma 2 in formats that are not read.
UNREAD = {"temporal-sae-gemma-2-2b": "its dictionaries have attention layers, an architecture that is not read"}


@dataclass(frozen=True)
class Published:
    """A dictionary on the hub. l0: its average L0, where it is known. path: in the repository."""

    release: str
    sae_id: str
    model: str
    site: str
    layer: int | None
    width: str
    l0: int | None
    canonical: bool
    format: str
    repo: str
    path: str


@cache
def published() -> tuple[Published, ...]:
    """Every dictionary of the list, release by release."""
    return (*_gemma_scope(), *_saebench(), *_matryoshka(), *_cross_layer())


def saes(
    model: str | Model | None = None,
    *,
    layer: int | str | None = None,
    width: int | str | None = None,
    l0: int | str | None = None,
    site: str | None = None,
) -> pandas.DataFrame:
    """A table of the dictionaries that are published for Gemma 2 and that gs.load_sae reads. Needs no network.

    Releases and ids are those of SAELens: `gs.load_sae(release, sae_id)` loads a row, and `gs.load_cross_layer(repo)` one
    whose format is "cross-layer".

    Args:
        model: Only those for this model: a hub id, its last part, or a size, such as "google/gemma-2-2b", "gemma-2-2b-it" or
            "9b"; or what gs.load returned. None lists all.
        layer: Only those of this layer, counted from 0, or "embedding".
        width: Only those of this many features, such as 16384 or "16k".
        l0: Only those of this average L0; or "canonical", the one nearest to 100 of each layer and width.
        site: Only those of this site, by its name here or in TransformerLens, or "transcoder".

    Returns:
        One row for each: release, sae_id, model, site, layer, width (such as "16k"), l0 (the average L0; missing where the
        release does not say it), canonical (whether l0="canonical" means it), format, repo and path.

    Raises:
        DictionaryError: For a model that nothing is published for, and for a layer, width, l0 or site that none of the rows
            has, with those that they have.
        SiteError: There is no such site.

    Examples:
        >>> table = gs.saes("2b")
        >>> rows = table[(table.release == "gemma-scope-2b-pt-res") & (table.layer == 20) & (table.width == "16k")]
        >>> rows.l0.tolist()
        [22, 38, 71, 139, 294]
        >>> gs.saes("2b", layer=20, width="16k", site="mlp_out", l0="canonical").sae_id.tolist()[-1]
        'layer_20/width_16k/canonical'
    """
    import pandas

    rows = published()
    if model is not None:
        name = _model_name(model)
        rows = tuple(row for row in rows if row.model == name)
    rows = _chosen(rows, layer, width, l0, site)
    frame = pandas.DataFrame([vars(row) for row in rows])
    return frame.astype({"layer": "Int64", "l0": "Int64"})


def _chosen(rows: tuple[Published, ...], layer: object, width: object, l0: object, site: object) -> tuple[Published, ...]:
    """The rows of a choice. DictionaryError, with what there is, where nothing is left."""
    if site is not None and site != TRANSCODER:
        found, its_layer = parse_site_name(site)
        if None not in (layer, its_layer) and layer != its_layer:
            raise DictionaryError(
                f"{short_repr(site)} names layer {its_layer}, and layer={short_repr(layer)} was given as well"
            )
        site, layer = found.name, its_layer if layer is None else layer
    asked = {"site": site, "layer": layer_or_l0(layer, "layer"), "width": width, "l0": layer_or_l0(l0, "l0")}
    names = () if width is None else width_names(width)
    for name, value in asked.items():
        if value is None:
            continue
        if name == "l0" and value == CANONICAL:
            left = tuple(row for row in rows if row.canonical)
        elif name == "width":
            left = tuple(row for row in rows if row.width in names)
        else:
            left = tuple(row for row in rows if _value(row, name) == value)
        if not left:
            there = list(dict.fromkeys(str(_value(row, name)) for row in rows if _value(row, name) is not None))
            if name == "l0":
                there.sort(key=int)
            if len(there) > 30:
                there[30:] = [f"and {len(there) - 30} more"]
            given = ", ".join(f"{n}={short_repr(v)}" for n, v in asked.items() if v is not None)
            raise DictionaryError(f"nothing is published with {given}. There is {name} {', '.join(there)}")
        rows = left
    return rows


def _value(row: Published, name: str) -> object:
    value: object = getattr(row, name)
    return EMBEDDING if name == "layer" and value is None else value


def _model_name(model: object) -> str:
    """The hub id that a model's name stands for. DictionaryError if nothing is published for it."""
    known = sorted({row.model for row in published()})
    text = model.name if isinstance(model, Model) else model
    if not isinstance(text, str):
        raise DictionaryError(
            f"model is a name such as 'google/gemma-2-2b', or what gs.load returns; given {short_repr(text)}"
        )
    last = text.rstrip("/").rsplit("/", 1)[-1].lower()
    for name in known:
        short = name.rsplit("/", 1)[-1]
        if last in (short, short.removeprefix("gemma-2-")):
            return name
    near = did_you_mean(last, known)
    raise DictionaryError(f"nothing is published for {text!r}.{near} There are dictionaries for {', '.join(known)}")


def releases() -> list[str]:
    """The names of all releases."""
    return [*dict.fromkeys(row.release for row in published()), *UNREAD]


def is_release(name: str) -> bool:
    """Whether SAELens has a release of this name for Gemma 2."""
    return name in releases()


def find_published(release: str, sae_id: str) -> Published:
    """A dictionary of a release. DictionaryError, with similar ids, for an id that it does not have."""
    if release in UNREAD:
        raise DictionaryError(f"the release {release!r} is not read: {UNREAD[release]}")
    rows = [row for row in published() if row.release == release]
    for row in rows:
        if row.sae_id == sae_id:
            return row
    if checkpoint := re.fullmatch(r"(blocks\.\d+\.hook_resid_post__trainer_\d+)(_step_\d+)", sae_id):
        for row in rows:
            if row.sae_id == checkpoint[1]:  # one of those that were saved during training
                folder, trainer = row.path.rsplit("/", 1)
                return replace(row, sae_id=sae_id, path=f"{folder}_checkpoints/{trainer}{checkpoint[2]}")
    raise DictionaryError(f"the release {release!r} has no {sae_id!r}. {id_advice(sae_id, [row.sae_id for row in rows])}")


def id_advice(sae_id: str | None, ids: list[str]) -> str:
    """Which ids there are, those like the given one first."""
    near = "" if sae_id is None else did_you_mean(sae_id, ids).strip()
    listed = ", ".join(map(repr, ids[:5]))
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"{near}{' ' if near else ''}It has {listed}{more}"


def _gemma_scope() -> Iterator[Published]:
    for line in _LIST.read_text(encoding="utf-8").splitlines():
        repository, layer_name, width, numbers = line.split()
        suite = Suite.of(repository)
        assert suite is not None
        layer = int(layer_name) if layer_name.isdecimal() else None
        folder = f"{layer_name if layer is None else f'layer_{layer}'}/width_{width}"
        entries = [Entry.of(f"{folder}/average_l0_{number}/{PARAMS}") for number in numbers.split(",")]
        first = min((entry for entry in entries if entry), key=lambda entry: canonical_order(entry, repository))
        for number in map(int, numbers.split(",")):
            path = f"{folder}/average_l0_{number}"
            site = "embed" if layer is None else suite.site
            canonical = number == first.l0
            row = Published(
                repository,
                path,
                suite.model,
                site,
                layer,
                width,
                number,
                canonical,
                GEMMA_SCOPE,
                f"google/{repository}",
                path,
            )
            yield row
            if canonical and "transcoders" not in repository:
                yield replace(row, release=f"{repository}-canonical", sae_id=f"{folder}/{CANONICAL}")


# SAEBench's: kind and release (W for the exponent of the width), the repository, its folder, and the layers and trainers.
_SAEBENCH = (
    ("sae_bench_gemma-2-2b_topk_width-2powW_date-1109", "canrager/saebench_gemma-2-2b_width-2powW_date-1109",
     "gemma-2-2b_topk_width-2powW_date-1109", (12, 14, 16), (5, 12, 19), (0, 1, 2, 3, 4, 5)),
    ("sae_bench_gemma-2-2b_vanilla_width-2powW_date-1109", "canrager/saebench_gemma-2-2b_width-2powW_date-1109",
     "gemma-2-2b_vanilla_width-2powW_date-1109", (12, 14, 16), (5, 12, 19), (0, 1, 2, 3, 4, 5)),
    ("saebench_gemma-2-2b_width-2powW_date-0108", "adamkarvonen/saebench_gemma-2-2b_width-2powW_date-0108",
     "MatryoshkaBatchTopK_gemma-2-2b__0108", (12,), (12,), (0, 1, 2, 3, 4, 5)),
    ("saebench_gemma-2-2b_width-2powW_date-0107", "canrager/saebench_gemma-2-2b_width-2powW_date-0107",
     "gemma-2-2b_matryoshka_batch_top_k_width-2powW_date-0107", (14, 16), (12,), (0, 1, 2, 3, 4, 5)),
)  # fmt: skip


def _saebench() -> Iterator[Published]:
    for release, repo, folder, widths, layers, trainers in _SAEBENCH:
        for exponent in widths:
            release_name, repo_name, folder_name = (text.replace("W", str(exponent)) for text in (release, repo, folder))
            for layer in layers:
                for trainer in trainers:
                    yield Published(
                        release_name,
                        f"blocks.{layer}.hook_resid_post__trainer_{trainer}",
                        "google/gemma-2-2b",
                        "resid_post",
                        layer,
                        f"{2**exponent // 1024}k",
                        None,
                        False,
                        DICTIONARY_LEARNING,
                        repo_name,
                        f"{folder_name}/resid_post_layer_{layer}/trainer_{trainer}",
                    )


# Release, the model's size, the average L0, the folder in front of the id, and how many layers there are.
_MATRYOSHKA = (
    ("gemma-2-2b-res-matryoshka-dc", "2b", 40, "standard/", 25),
    ("gemma-2-2b-res-snap-matryoshka-dc", "2b", 40, "snap/", 25),
    ("gemma-2-9b-res-matryoshka-dc", "9b", 60, "", 41),
)


def _matryoshka() -> Iterator[Published]:
    for release, size, l0, folder, n_layers in _MATRYOSHKA:
        repo = f"chanind/gemma-2-{size}-batch-topk-matryoshka-saes-w-32k-l0-{l0}"
        for layer in range(n_layers):
            sae_id = f"blocks.{layer}.hook_resid_post"
            model = f"google/gemma-2-{size}"
            yield Published(
                release, sae_id, model, "resid_post", layer, "32k", l0, False, SAELENS, repo, f"{folder}{sae_id}"
            )


def _cross_layer() -> Iterator[Published]:
    release, repo = "mntss-gemma-2-2b-2.5m-clt-as-per-layer", "mntss/clt-gemma-2-2b-2.5M"
    model, site = "google/gemma-2-2b", "transcoder"
    for layer in range(PRESETS["2b"].n_layers):
        yield Published(release, f"layer_{layer}", model, site, layer, "98k", None, False, CROSS_LAYER, repo, str(layer))
