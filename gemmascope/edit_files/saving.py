"""gs.save_edits: edits as a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edit_files.dictionaries import condition_json, dictionary_json
from gemmascope.edit_files.places import place_json, whole_json
from gemmascope.edit_files.tensors import tensor_json
from gemmascope.edits.call_text import name_of
from gemmascope.edits.conditional import Conditional
from gemmascope.edits.edit import PLACES, Edit, listed_edits
from gemmascope.edits.kinds import Ablate, AblateDirection, Add, Custom, Knockout, Patch, Scale
from gemmascope.edits.sources import is_trace
from gemmascope.errors import EditError, GemmascopeError
from gemmascope.files.json_reader import MAX_BYTES
from gemmascope.files.writing import write_file
from gemmascope.model.model import Model
from gemmascope.sae.splice import Splice
from gemmascope.sites import parse_site_name
from gemmascope.values import is_array

# Followed by the number of the version.
NAME, VERSION = "gemmascope.edits", 1


def save_edits(edits: Sequence[Edit], path: str | os.PathLike[str], *, model: Model | None = None) -> None:
    """Write edits to a file, from which gs.open_edits reads them back: equal, and to the same bits in a run.

    The file is JSON. Numbers are exact; a file holds no code, so that it can be opened whoever wrote it. A dictionary of
    gs.splice or gs.feature_on is written as what gs.load_sae loads it from.

    Args:
        edits: The edits, in their order: of gs.patch with a tensor, gs.ablate with a number, gs.ablate_direction, gs.add,
            gs.scale, gs.knockout and gs.splice, with a condition or without.
        path: The file, such as "edits.json".
        model: The model that they were made for, whose name and fingerprint are written down: opening them for another
            one then warns. None leaves it open.

    Raises:
        EditError: For an edit or condition with a function, one that reads traces (take their values, as a tensor), a
            dictionary that was not loaded by name, or a number that is not finite.
        FileError: The file cannot be written.

    Examples:
        >>> gs.save_edits([gs.ablate("z", layer=2, head=3)], "edits.json")
        >>> gs.open_edits("edits.json")
        [gs.ablate('z', layer=2, head=3)]
    """
    if model is not None and not isinstance(model, Model):
        raise EditError(f"model is what gs.load returns; given {short_repr(model)}")
    content = edits_content(listed_edits(edits))
    if model is not None:
        content["model"] = {"name": model.name, "fingerprint": model.fingerprint}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if len(text) > MAX_BYTES:
        raise EditError(f"the edits take {len(text):,} bytes as JSON, and a file has at most {MAX_BYTES:,}: save fewer")
    write_file(path, text)


def edits_content(edits: Sequence[Edit]) -> dict[str, object]:
    """What a file of these edits holds. EditError as in save_edits."""
    return {"format": f"{NAME}.{VERSION}", "edits": [_numbered(number, edit) for number, edit in enumerate(edits)]}


def _numbered(number: int, edit: Edit) -> dict[str, object]:
    try:
        return edit_json(edit)
    except GemmascopeError as error:
        raise EditError(f"edit {number} of the list, {short_repr(edit)}, cannot be saved: {error}") from error


def edit_json(edit: Edit) -> dict[str, object]:
    """One edit as JSON. GemmascopeError for one that a file cannot hold."""
    if isinstance(edit, Conditional):
        if isinstance(edit.inner, Conditional):
            raise EditError("it has two conditions: a file holds edits with one")
        return {**edit_json(edit.inner), "when": condition_json(edit.when)}
    if isinstance(edit, Custom):
        raise EditError(
            f"it holds a function, {name_of(edit.fn)!r}, and a file holds no code: write what it does with gs.scale, gs.add "
            "or gs.patch, or pickle it"
        )
    if type(edit) not in _WRITTEN:
        raise EditError(f"it is a {type(edit).__name__}; saved are {', '.join(kind for kind, _ in _WRITTEN.values())}")
    kind, written = _WRITTEN[type(edit)]
    content: dict[str, object] = {"edit": kind}
    if kind not in ("splice", "knockout"):  # which have one site
        if not isinstance(edit.site, str):
            raise EditError(f"site is a text; given {short_repr(edit.site)}")
        parse_site_name(edit.site)
        content["site"] = str.__str__(edit.site)
    if edit.layer is not None and kind != "splice":
        content["layer"] = whole_json(edit.layer, "layer")
    places = {name: getattr(edit, name) for name in PLACES}
    content |= {name: place_json(place, name) for name, place in places.items() if place is not None}
    return {**content, **written(edit)}


def _patch(edit: Patch) -> dict[str, object]:
    if is_trace(edit.source):
        raise EditError(
            f"its source is a trace: take its values, as a tensor, such as gs.patch({edit.site!r}, "
            f"trace[{edit.site!r}, {edit.layer}][POS], layer={edit.layer}, pos=POS)"
        )
    if not is_array(edit.source):
        raise EditError(f"its source is a {type(edit.source).__name__}, not a tensor")
    return {"source": tensor_json(edit.source, "the source")}


def _ablate(edit: Ablate) -> dict[str, object]:
    if isinstance(edit.value, str) or edit.reference:
        raise EditError(
            f"it takes its values from traces: take their mean yourself, such as gs.patch({edit.site!r}, "
            f"torch.cat([t[{edit.site!r}, {edit.layer}][1:] for t in traces]).mean(0), layer={edit.layer}), with [HEADS] "
            "behind mean(0) where the edit names heads"
        )
    return {"value": _finite(edit.value, "value")}


def _add(edit: Add) -> dict[str, object]:
    return {"vector": tensor_json(edit.vector, "the vector"), "scale": _finite(edit.scale, "scale")}


def _splice(edit: Splice) -> dict[str, object]:
    if (edit.site, edit.layer, edit.head) != (edit.dictionary.writes, edit.dictionary.layer, None):
        raise EditError("it is not what gs.splice makes: it writes elsewhere than its dictionary does")
    features = {str(whole_json(feature, "a feature")): _finite(value, "value") for feature, value in edit.features.items()}
    return {"dictionary": dictionary_json(edit.dictionary), "features": features, "keep_error": bool(edit.keep_error)}


def _finite(value: object, name: str) -> float:
    return finite_number(value, name, error=EditError)


# Each kind of edit that a file can hold: its name there, and what it holds beside its places.
_WRITTEN: dict[type[Edit], tuple[str, Callable[..., dict[str, object]]]] = {
    Patch: ("patch", _patch),
    Ablate: ("ablate", _ablate),
    AblateDirection: ("ablate_direction", lambda edit: {"vector": tensor_json(edit.vector, "the direction")}),
    Add: ("add", _add),
    Scale: ("scale", lambda edit: {"factor": _finite(edit.factor, "factor")}),
    Knockout: ("knockout", lambda edit: {}),
    Splice: ("splice", _splice),
}
