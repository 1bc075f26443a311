"""about.json, which training writes beside a dictionary: what it is of, and the concepts that its features are tied to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from gemmascope.arguments import finite_number, one_of, short_repr, whole_number
from gemmascope.errors import DictionaryError, SiteError
from gemmascope.files.json_reader import is_regular_file, read_json
from gemmascope.sae.catalogue import EMBEDDING, PARAMS, TRANSCODER
from gemmascope.sae.weights import INPUT_SITES, OUTPUT_SITES, Tie
from gemmascope.sites import find_site

# The file beside the params.npz of a dictionary that gs.train_sae trained.
ABOUT = "about.json"


class About(TypedDict, total=False):
    """What ABOUT says of a dictionary. concepts: ties of features, which are checked as they are read.

    input_site, output_site: what a transcoder reads and writes, where it is not what Gemma Scope's do.
    """

    model: str
    fingerprint: str
    site: str
    layer: int | str
    input_site: str | None
    output_site: str
    concepts: object


def read_about(path: Path) -> About:
    """The file that training writes beside a dictionary, checked but for its concepts; empty if there is none."""
    if not is_regular_file(path, error=DictionaryError):
        return {}
    try:
        about = read_json(path, error=DictionaryError)
        for name in ("model", "fingerprint", "site"):
            if not isinstance(about.get(name, ""), str):
                raise DictionaryError(f"{name} is a text; it has {short_repr(about[name])}")
        if about.get("site", TRANSCODER) != TRANSCODER:
            find_site(about["site"])
        if about.get("layer", EMBEDDING) != EMBEDDING:
            whole_number(about["layer"], "layer", least=0, error=DictionaryError)
    except (DictionaryError, SiteError) as error:
        raise DictionaryError(f"{path} is not what training writes beside a {PARAMS}: {error}") from error
    return cast(About, about)


class Sites(TypedDict, total=False):
    """What a transcoder reads and writes, by the names of a Dictionary's fields."""

    input_site: str | None
    output_site: str


def sites_of(about: About, path: Path) -> Sites:
    """What a transcoder reads and writes; empty for what Gemma Scope's do. DictionaryError for another kind of value."""
    found: Sites = {}
    if (read := about.get("input_site")) is not None:
        found["input_site"] = one_of(read, f"{path}: input_site", INPUT_SITES, error=DictionaryError)
    if "output_site" in about:
        found["output_site"] = one_of(about["output_site"], f"{path}: output_site", OUTPUT_SITES, error=DictionaryError)
    return found


def concepts_of(about: About, path: Path) -> dict[int, Tie]:
    """The ties of features to concepts. DictionaryError for anything else in their place."""
    ties: Any = about.get("concepts", ())
    try:
        return {whole_number(tie["feature"], "feature", least=0, error=DictionaryError): _tie(tie) for tie in ties}
    except (DictionaryError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise DictionaryError(f"{path}: concepts hold something else than ties of features: {error!r}") from error


def _tie(tie: Mapping[str, object]) -> Tie:
    numbers = (finite_number(tie[name], name, error=DictionaryError) for name in ("above", "precision", "recall"))
    return Tie(str(tie["concept"]), *numbers)
