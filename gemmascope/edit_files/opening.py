"""gs.open_edits: edits from a JSON file. Each is made by its public call, with that call's checks."""

from __future__ import annotations

import os
from collections.abc import Callable

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edit_files.dictionaries import condition_of, dictionary_of, object_of
from gemmascope.edit_files.places import place_of, whole_json
from gemmascope.edit_files.saving import NAME, VERSION
from gemmascope.edit_files.tensors import tensor_of
from gemmascope.edits.edit import PLACES, Edit
from gemmascope.edits.make import ablate, ablate_direction, add, patch, scale
from gemmascope.edits.make_others import knockout
from gemmascope.errors import EditError, GemmascopeError, SiteError, warn
from gemmascope.files.json_reader import read_json
from gemmascope.files.paths import user_path
from gemmascope.model.model import Model
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.splice import splice
from gemmascope.sites import did_you_mean, parse_site_name

_ANYWHERE = ("site", "layer", *PLACES)


def open_edits(path: str | os.PathLike[str], *, model: Model | None = None) -> list[Edit]:
    """Read edits from a file that gs.save_edits wrote, or a person.

    Nothing in the file runs. A dictionary that it names is loaded as gs.load_sae loads it, from the hub if that is its name.

    Args:
        path: The file.
        model: The model that they are for, to have their sites, layers and heads checked at once. It warns if the file says
            that they were made for another one. None checks them when they meet a run.

    Returns:
        The edits, for edits= of gs.trace, gs.generate, gs.sweep and gs.evaluate.

    Raises:
        EditError: The file cannot be read, is damaged, of another version, or holds a kind of edit or a field that there
            is not.
        SiteError: The model has no such site, layer or head.

    Examples:
        >>> gs.save_edits([gs.scale("attn_out", 0.5, layer=3)], "halved.json", model=gs.load())
        >>> gs.open_edits("halved.json", model=gs.load())
        [gs.scale('attn_out', 0.5, layer=3)]
    """
    if model is not None and not isinstance(model, Model):
        raise EditError(f"model is what gs.load returns; given {short_repr(model)}")
    named = user_path(path, error=EditError, what="edits")
    content = read_json(named, error=EditError)
    edits = edits_of(content, named)
    if model is not None:
        _warn_of_another(content.get("model"), model, named)
        for number, edit in enumerate(edits):
            _require_places(edit, model, f"{named}, edit {number}")
    return edits


def edits_of(content: dict[str, object], source: object) -> list[Edit]:
    """The edits of a file's content. source: where it comes from, for the errors. EditError as in open_edits."""
    name, _, version = str(content.get("format")).rpartition(".")
    if name != NAME:
        raise EditError(f"{source} holds no edits: format is {short_repr(content.get('format'))}, not '{NAME}.{VERSION}'")
    if version != str(VERSION):
        raise EditError(f"{source} is of version {short_repr(version)} of {NAME}, and this gemmascope reads {VERSION}")
    try:
        object_of(content, "the file", ["format", "model", "edits"])
        listed = content.get("edits")
        if not isinstance(listed, list):
            raise EditError(f"edits is a list of objects; given {short_repr(listed)}")
        if "model" in content:
            _model_named(content["model"])
    except EditError as error:
        raise EditError(f"{source}: {error}") from error
    loaded: dict[str, Dictionary] = {}
    return [_numbered(number, one, source, loaded) for number, one in enumerate(listed)]


def _numbered(number: int, content: object, source: object, loaded: dict[str, Dictionary]) -> Edit:
    try:
        return edit_of(content, loaded)
    except GemmascopeError as error:
        raise EditError(f"{source}, edit {number}: {error}") from error


def _require_places(edit: Edit, model: Model, source: str) -> None:
    try:
        edit.require_places(model)
    except (EditError, SiteError) as error:
        raise type(error)(f"{source}: {error}") from error


def edit_of(content: object, loaded: dict[str, Dictionary]) -> Edit:
    """The edit that edit_json wrote. loaded: the file's dictionaries so far. GemmascopeError for anything else."""
    if not isinstance(content, dict):
        raise EditError(f"an edit is an object; given {short_repr(content)}")
    kind = content.get("edit")
    if not isinstance(kind, str) or kind not in _READ:
        hint = did_you_mean(kind, list(_READ)) if isinstance(kind, str) else ""
        raise EditError(f"there is no kind of edit {short_repr(kind)}.{hint} The kinds are {', '.join(_READ)}")
    make, places, own, needed = _READ[kind]
    given = object_of(content, f"an edit of kind {kind!r}", ["edit", *places, *own])
    for name in needed:
        if name not in given:
            raise EditError(f"an edit of kind {kind!r} has no {name}, and needs one")
    arguments = {name: _argument(name, value, loaded) for name, value in given.items() if name != "edit"}
    if kind == "splice":
        arguments["sae"] = arguments.pop("dictionary")
    return make(**arguments)


def _argument(name: str, value: object, loaded: dict[str, Dictionary]) -> object:
    """A field of an edit as the argument of its call."""
    if name in PLACES:
        return place_of(value, name)
    if name == "layer":
        return whole_json(value, name)
    if name == "site":
        if not isinstance(value, str):
            raise EditError(f"site is a text; given {short_repr(value)}")
        parse_site_name(value)
    if name in ("source", "vector"):
        return tensor_of(value, f"the {name}")
    if name in ("value", "scale", "factor"):
        return finite_number(value, name, error=EditError)
    if name == "when":
        return condition_of(value, loaded)
    if name == "dictionary":
        return dictionary_of(value, loaded)
    if name == "features":
        return _features(value)
    return value


def _features(content: object) -> dict[int, float]:
    if not isinstance(content, dict):
        raise EditError(f"features is an object of numbers; given {short_repr(content)}")
    return {_feature(name): finite_number(value, "value", error=EditError) for name, value in content.items()}


def _feature(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) < 16 and name == str(int(name))):
        raise EditError(f"a feature is a whole number, without zeros in front; given {short_repr(name)}")
    return int(name)


# Each kind of edit: what makes it, its places, its other fields, and those that it needs.
_Kind = tuple[Callable[..., Edit], tuple[str, ...], tuple[str, ...], tuple[str, ...]]
_READ: dict[str, _Kind] = {
    "patch": (patch, _ANYWHERE, ("source", "when"), ("site", "source")),
    "ablate": (ablate, _ANYWHERE, ("value", "when"), ("site",)),
    "ablate_direction": (ablate_direction, _ANYWHERE, ("vector", "when"), ("site", "vector")),
    "add": (add, _ANYWHERE, ("vector", "scale", "when"), ("site", "vector")),
    "scale": (scale, _ANYWHERE, ("factor", "when"), ("site", "factor")),
    "knockout": (knockout, ("layer", "head", "q_pos", "k_pos"), (), ("layer",)),
    "splice": (splice, ("pos",), ("dictionary", "features", "keep_error"), ("dictionary",)),
}


def _model_named(content: object) -> tuple[str, str]:
    """The name and fingerprint of a model in a file. EditError for anything else."""
    given = object_of(content, "model", ["name", "fingerprint"])
    name, fingerprint = given.get("name"), given.get("fingerprint")
    if not isinstance(name, str) or not isinstance(fingerprint, str):
        raise EditError(f"model has a name and a fingerprint; given {short_repr(content)}")
    return name, fingerprint


def _warn_of_another(content: object, model: Model, source: object) -> None:
    if content is None:
        return
    name, fingerprint = _model_named(content)
    if fingerprint != model.fingerprint:
        warn(
            f"the edits in {source} were saved for {short_repr(name)} (fingerprint {short_repr(fingerprint)}), and this is "
            f"{model.name!r} ({model.fingerprint}): other weights, another dtype or another tokenizer"
        )
