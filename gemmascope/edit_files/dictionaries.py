"""Dictionaries in JSON, by what gs.load_sae loads them from, and the conditions of edits."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from gemmascope.arguments import finite_number, short_repr
from gemmascope.edit_files.places import whole_json
from gemmascope.edit_files.tensors import tensor_json, tensor_of
from gemmascope.edits.call_text import name_of
from gemmascope.errors import EditError
from gemmascope.sae.conditions.feature_on import FeatureOn, feature_on
from gemmascope.sae.dictionary import Dictionary
from gemmascope.sae.load import load_sae
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.steering.conditions import ProbeAbove

# The arguments of gs.load_sae in a file, and the types that each may have.
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "source": (str,), "sae_id": (str,), "layer": (int, str), "width": (int, str), "l0": (int, str), "site": (str,),
    "revision": (str,), "any_model": (bool,),
}  # fmt: skip
_FINGERPRINT = "fingerprint"


def dictionary_json(dictionary: DictionaryWeights) -> dict[str, object]:
    """What loads a dictionary again, and its fingerprint. EditError for one that was made or changed in memory."""
    arguments = _arguments_of(dictionary.call) if isinstance(dictionary, Dictionary) else None
    if arguments is None:
        raise EditError(
            f"the dictionary {dictionary.call} was not loaded by its name, and its arrays are not saved with an edit: write "
            "it to files, and take what gs.load_sae makes of them"
        )
    return {**arguments, _FINGERPRINT: dictionary.fingerprint}


def dictionary_of(content: object, loaded: dict[str, Dictionary]) -> Dictionary:
    """The dictionary, loaded as the file says. EditError if it is another than the one that was saved.

    loaded: those of the file that were loaded so far, since two edits of one dictionary must share it.
    """
    given = object_of(content, "dictionary", [*_ARGUMENTS, _FINGERPRINT])
    arguments = {name: value for name, value in given.items() if name != _FINGERPRINT}
    for name, value in arguments.items():
        if not isinstance(value, _ARGUMENTS[name]) or (isinstance(value, bool) and bool not in _ARGUMENTS[name]):
            raise EditError(f"the dictionary's {name} is an argument of gs.load_sae; given {short_repr(value)}")
    if "source" not in arguments:
        raise EditError("the dictionary has no source: what gs.load_sae loads it from")
    key = repr(sorted(arguments.items()))
    dictionary = loaded[key] = loaded.get(key) or load_sae(**arguments)  # type: ignore[arg-type]
    if given.get(_FINGERPRINT, dictionary.fingerprint) != dictionary.fingerprint:
        raise EditError(
            f"the edit was saved with a dictionary of fingerprint {short_repr(given[_FINGERPRINT])}, and {dictionary.call} "
            f"has {dictionary.fingerprint}: its numbers are others"
        )
    return dictionary


def condition_json(when: object) -> dict[str, object]:
    """A condition as JSON. EditError for a function."""
    if isinstance(when, FeatureOn):
        return {
            "condition": "feature_on", "dictionary": dictionary_json(when.sae), "feature": int(when.feature),
            "above": when.above,
        }  # fmt: skip
    if isinstance(when, ProbeAbove):
        vector = tensor_json(when.vector, "the probe")
        return {"condition": "probe_above", "vector": vector, "bias": when.bias, "above": when.above}
    raise EditError(
        f"its condition, {name_of(when)!r}, is a function, and a file holds no code: take gs.feature_on(...) or "
        "gs.probe_above(...)"
    )


def condition_of(content: object, loaded: dict[str, Dictionary]) -> FeatureOn | ProbeAbove:
    """The condition that condition_json wrote. loaded: as in dictionary_of. EditError for anything else."""
    kind = content.get("condition") if isinstance(content, Mapping) else None
    if kind == "feature_on":
        given = object_of(content, "when", ["condition", "dictionary", "feature", "above"])
        sae = dictionary_of(given.get("dictionary"), loaded)
        feature = whole_json(given.get("feature"), "the condition's feature")
        return feature_on(sae, feature, _number(given, "above"))
    if kind == "probe_above":
        given = object_of(content, "when", ["condition", "vector", "bias", "above"])
        vector = tensor_of(given.get("vector"), "the probe")
        if vector.dim() != 1:
            raise EditError(f"a probe is a vector, [d_model]; given shape {tuple(vector.shape)}")
        return ProbeAbove(vector, _number(given, "bias"), _number(given, "above"))
    raise EditError(f"when is an object whose condition is 'feature_on' or 'probe_above'; given {short_repr(content)}")


def object_of(content: object, what: str, known: list[str]) -> dict[str, object]:
    """A JSON object of known fields. EditError for anything else."""
    if not isinstance(content, dict):
        raise EditError(f"{what} is an object with {', '.join(known)}; given {short_repr(content)}")
    if unknown := [name for name in content if name not in known]:
        raise EditError(f"{what} has no field {short_repr(unknown[0])}; its fields are {', '.join(known)}")
    return content


def _number(content: Mapping[str, object], name: str) -> float:
    return finite_number(content.get(name, 0.0), f"the condition's {name}", error=EditError)


def _arguments_of(call: str) -> dict[str, object] | None:
    """The arguments of a call of gs.load_sae with plain values; None for any other code."""
    try:
        code = ast.parse(call, mode="eval").body
        if not isinstance(code, ast.Call) or ast.unparse(code.func) != "gs.load_sae":
            return None
        values = [ast.literal_eval(value) for value in code.args]
        named = {str(one.arg): ast.literal_eval(one.value) for one in code.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return {**dict(zip(("source", "sae_id"), values, strict=False)), **named}
