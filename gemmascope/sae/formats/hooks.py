"""The names that other libraries give to places in the model, as our sites."""

from __future__ import annotations

import re
from typing import NamedTuple

from gemmascope.errors import DictionaryError, SiteError
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sites import parse_site_name

# What a transcoder may read, by TransformerLens' names: the stream before the MLP divided by its root mean square (None),
# the same with the norm's gain, or the stream itself.
_INPUTS: dict[str, str | None] = {
    "ln2.hook_normalized": None,
    "mlp.hook_in": "mlp_in",
    "hook_mlp_in": "resid_mid",
    "hook_resid_mid": "resid_mid",
}
_OUTPUTS = {"hook_mlp_out": "mlp_out", "mlp.hook_out": "mlp_raw"}
# transformers' name of the MLP's input, which SAELens may keep beside its own.
_NORM_OUTPUT = "pre_feedforward_layernorm.output"


class Place(NamedTuple):
    """A site and its layer; of a transcoder also what it reads and writes."""

    site: str
    layer: int | None
    input_site: str | None = None
    output_site: str = "mlp_out"


def place_of_hook(hook: str) -> Place:
    """The site and layer of an autoencoder's hook. DictionaryError for a hook that is no site of ours."""
    try:
        site, layer = parse_site_name(hook)
    except SiteError as error:
        raise DictionaryError(f"the hook {hook!r} is no site of ours: {error}") from error
    if site.in_layer and layer is None:
        raise DictionaryError(f"the hook {hook!r} does not say its layer")
    return Place(site.name, layer)


def place_of_transcoder(hook_in: str, hook_out: str | None, hf_hook_in: str | None = None) -> Place:
    """What a transcoder reads and writes. DictionaryError for hooks that are no such pair, or of two layers.

    Args:
        hook_in: The hook that it reads, such as "blocks.5.ln2.hook_normalized".
        hook_out: The hook that it writes; None means hook_mlp_out.
        hf_hook_in: transformers' name of what it reads, which tells two readings of hook_mlp_in apart.
    """
    layer, name_in = _layered(hook_in)
    layer_out, name_out = (layer, "hook_mlp_out") if hook_out is None else _layered(hook_out)
    if layer != layer_out:
        raise DictionaryError(f"a transcoder is of one layer; this one reads {hook_in!r} and writes {hook_out!r}")
    return Place(TRANSCODER, layer, *transcoder_sites(name_in, name_out, hf_hook_in))


def transcoder_sites(hook_in: str, hook_out: str, hf_hook_in: str | None = None) -> tuple[str | None, str]:
    """The sites of hooks without their layer: what is read (None: normed, without the gain), and what is written."""
    if hook_in not in _INPUTS or hook_out not in _OUTPUTS:
        raise DictionaryError(
            f"a transcoder that reads {hook_in!r} and writes {hook_out!r} is not known; those that are read take "
            f"{', '.join(map(repr, _INPUTS))} to {', '.join(map(repr, _OUTPUTS))}"
        )
    if hook_in == "hook_mlp_in" and hf_hook_in is not None and hf_hook_in.endswith(_NORM_OUTPUT):
        return "mlp_in", _OUTPUTS[hook_out]
    return _INPUTS[hook_in], _OUTPUTS[hook_out]


def _layered(hook: str) -> tuple[int, str]:
    match = re.fullmatch(r"blocks\.([0-9]{1,6})\.(.+)", hook)
    if not match:
        raise DictionaryError(f"the hook {hook!r} does not say its layer, as in 'blocks.5.hook_mlp_out'")
    return int(match[1]), match[2]
