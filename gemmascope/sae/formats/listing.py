"""Which dictionaries a folder or a repository holds, from the paths of its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from gemmascope.errors import DictionaryError
from gemmascope.sae.catalogue import PARAMS
from gemmascope.sae.formats import circuit_tracer, dictionary_learning, saelens
from gemmascope.sites import did_you_mean

GEMMA_SCOPE, SAELENS, DICTIONARY_LEARNING, TRANSCODER = "params.npz", "SAELens", "dictionary_learning", "circuit-tracer"
CROSS_LAYER_FILE = re.compile(r"W_enc_([0-9]{1,6})\.safetensors")

# The settings beside a file; of others circuit-tracer's.
_CONFIGS = {saelens.WEIGHTS: saelens.CONFIG, dictionary_learning.WEIGHTS: dictionary_learning.CONFIG}

# What is read, for errors.
KNOWN_FORMATS = (
    f"{PARAMS} (Gemma Scope), {saelens.CONFIG} with {saelens.WEIGHTS} (SAELens), {dictionary_learning.WEIGHTS} with "
    f"{dictionary_learning.CONFIG} (dictionary_learning, SAEBench), layer_N.safetensors (circuit-tracer), and "
    "W_enc_N.safetensors with W_dec_N.safetensors (cross-layer, by gs.load_cross_layer)"
)


@dataclass(frozen=True)
class Held:
    """A dictionary that is no params.npz. sae_id: its folder, or its file for a transcoder. files: what reading it takes."""

    format: str
    sae_id: str
    files: tuple[str, ...]

    @property
    def layer(self) -> int | None:
        """The layer that its path names; None if it names none."""
        named = re.findall(r"(?:^|[/_.])(?:blocks|layers?)[._]([0-9]{1,6})(?![0-9])", self.sae_id)
        return int(named[-1]) if named else None


def held_in(paths: Iterable[str]) -> list[Held]:
    """The dictionaries among files, but for those in a params.npz."""
    present = set(paths)
    found = []
    for path in sorted(present, key=_natural):
        folder, name = PurePosixPath(path).parent, PurePosixPath(path).name
        beside = (folder / _CONFIGS.get(name, circuit_tracer.CONFIG)).as_posix()
        files = (beside, path) if beside in present else (path,)
        if name == saelens.WEIGHTS and len(files) == 2:
            found.append(Held(SAELENS, folder.as_posix(), files))
        elif name == dictionary_learning.WEIGHTS:
            found.append(Held(DICTIONARY_LEARNING, folder.as_posix(), files))
        elif circuit_tracer.layer_of(name) is not None:
            found.append(Held(TRANSCODER, path, files))
    return found


def choose_held(held: Sequence[Held], source: str, sae_id: str | None, layer: int | str | None) -> Held:
    """The one dictionary that is meant. DictionaryError, which lists them, for none or several."""
    fitting = [one for one in held if sae_id is None or one.sae_id in (sae_id, f"{sae_id}.safetensors")]
    if not fitting:
        ids = [one.sae_id for one in held]
        raise DictionaryError(f"{source} has no {sae_id!r}.{did_you_mean(sae_id or '', ids)} It has {_some(ids)}")
    if layer is not None and len(fitting) > 1:
        of_layer = [one for one in fitting if one.layer == layer]
        if not of_layer:
            named = sorted({one.layer for one in fitting if one.layer is not None})
            layers = (
                f"it has those of layers {', '.join(map(str, named))}" if named else "its paths name no layers: give sae_id"
            )
            raise DictionaryError(f"{source} has no dictionary of layer {layer!r}; {layers}")
        fitting = of_layer
    if len(fitting) > 1:
        ids = [one.sae_id for one in fitting]
        raise DictionaryError(f"{source} has {len(ids)} dictionaries that fit: say which, by sae_id, {_some(ids)}")
    return fitting[0]


def unknown_format(source: str, paths: Sequence[str]) -> DictionaryError:
    """The error for a folder or repository that holds no dictionary."""
    if any(CROSS_LAYER_FILE.fullmatch(PurePosixPath(path).name) for path in paths):
        return DictionaryError(f"{source} holds a cross-layer transcoder: gs.load_cross_layer({source!r}) reads it")
    if any(PurePosixPath(path).name == saelens.WEIGHTS for path in paths):
        return DictionaryError(f"{source} has {saelens.WEIGHTS} and no {saelens.CONFIG} beside it, which says what it is")
    present = f"It has {_some([PurePosixPath(path).as_posix() for path in paths])}" if paths else "It is empty"
    return DictionaryError(
        f"{source} holds no dictionaries: nothing in it is called layer_*/width_*/*/{PARAMS}, or has another form that is "
        f"read: {KNOWN_FORMATS}. {present}"
    )


def _some(names: Sequence[str]) -> str:
    """Up to six names, and how many more there are."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"{', '.join(map(repr, names[:6]))}{more}"


def _natural(path: str) -> list[tuple[int, str]]:
    """Sorts layer_2 before layer_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path)]
