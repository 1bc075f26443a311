"""The sites of a Gemma 2 forward pass: the one table behind look-up, validation, labels and documentation.

A site is a named value of the forward pass. The table lists the sites in the order in which a pass computes them, which is
the order in which a tap sees them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gemmascope.arguments import is_whole, short_repr
from gemmascope.errors import SiteError
from gemmascope.hook_names import AFTER_THE_LAYERS, OTHER_VALUE, SITE_OF_HOOK, is_known, long_name, split_short_name
from gemmascope.legible import prints_legibly


@dataclass(frozen=True)
class Site:
    """A named value of the forward pass.

    Attributes:
        name: What users type.
        axes: The names of its dimensions, for one run.
        meaning: One line for the documentation.
        in_layer: Whether every layer has one.
        hook: Its name in TransformerLens, if the value there is the same; else None.
        on_request: Whether it is computed only if a tap wants it, because it costs more than the forward pass itself.
    """

    name: str
    axes: tuple[str, ...]
    meaning: str
    in_layer: bool = True
    hook: str | None = None
    on_request: bool = False

    @property
    def heads(self) -> str | None:
        """The kind of heads this site has: "head" (query heads), "kv_head", or None."""
        return next((axis for axis in self.axes if axis in ("head", "kv_head")), None)

    @property
    def is_edges(self) -> bool:
        """Whether the site has a value for each pair of query and key position, rather than for each position."""
        return "k_pos" in self.axes

    @property
    def is_scale(self) -> bool:
        """Whether the site holds what a norm divides each row by."""
        return self.axes == ("pos",)


def _site(
    name: str, axes: str, meaning: str, hook: str | None = None, *, in_layer: bool = True, on_request: bool = False
) -> Site:
    return Site(name, tuple(axes.split()), meaning, in_layer, hook, on_request)


_TABLE = (
    _site("embed", "pos d_model", "token embedding x sqrt(d_model): where the stream begins", "hook_embed", in_layer=False),
    _site("resid_pre", "pos d_model", "the stream before a layer", "hook_resid_pre"),
    _site("attn_in_scale", "pos", "what the layer's input norm divides a row by: its root mean square", "ln1.hook_scale"),
    _site("attn_in", "pos d_model", "the stream after the layer's input norm", "ln1.hook_out"),
    _site("q_raw", "pos head d_head", "queries as W_Q gives them: before Gemma 3's norm of queries", "attn.hook_q"),
    _site("k_raw", "pos kv_head d_head", "keys as W_K gives them: before Gemma 3's norm of keys", "attn.hook_k"),
    _site("v", "pos kv_head d_head", "values", "attn.hook_v"),
    _site("q", "pos head d_head", "queries, before RoPE", "attn.hook_q_normed"),
    _site("k", "pos kv_head d_head", "keys, before RoPE", "attn.hook_k_normed"),
    _site("q_rot", "pos head d_head", "queries after RoPE", "attn.hook_rot_q"),
    _site("k_rot", "pos kv_head d_head", "keys after RoPE", "attn.hook_rot_k"),
    _site("scores", "head q_pos k_pos", "scaled dot products, before the soft cap", on_request=True),
    _site("scores_capped", "head q_pos k_pos", "after the soft cap, before the mask", on_request=True),
    _site("pattern", "head q_pos k_pos", "attention probabilities", "attn.hook_pattern", on_request=True),
    _site("z", "pos head d_head", "what each head read, before W_O", "attn.hook_z"),
    _site("attn_raw", "pos d_model", "attention output before the post-norm", "attn.hook_out"),
    _site("attn_out_scale", "pos", "what the post-norm of attention divides a row by", "ln1_post.hook_scale"),
    _site(
        "head_out",
        "pos head d_model",
        "what each head adds to the stream, through the post-norm with its scale frozen",
        on_request=True,
    ),
    _site("attn_out", "pos d_model", "attention output after the post-norm: what joins the stream", "hook_attn_out"),
    _site("resid_mid", "pos d_model", "the stream between attention and MLP", "hook_resid_mid"),
    _site("mlp_in_scale", "pos", "what the pre-MLP norm divides a row by", "ln2.hook_scale"),
    _site("mlp_in", "pos d_model", "the stream after the pre-MLP norm", "ln2.hook_out"),
    _site("mlp_gate", "pos d_mlp", "gate, before GELU", "mlp.hook_pre"),
    _site("mlp_up", "pos d_mlp", "up projection", "mlp.hook_pre_linear"),
    _site("mlp_act", "pos d_mlp", "gelu(gate) x up: the neurons", "mlp.hook_post"),
    _site("mlp_raw", "pos d_model", "MLP output before the post-norm", "mlp.hook_out"),
    _site("mlp_out_scale", "pos", "what the post-norm of the MLP divides a row by", "ln2_post.hook_scale"),
    _site("mlp_out", "pos d_model", "MLP output after the post-norm: what joins the stream", "hook_mlp_out"),
    _site("resid_post", "pos d_model", "the stream after a layer", "hook_resid_post"),
    _site("final_scale", "pos", "what the last norm divides a row by", "ln_final.hook_scale", in_layer=False),
    _site("final", "pos d_model", "the stream after the last norm", "ln_final.hook_out", in_layer=False),
    _site("logits_raw", "pos vocab", "logits before the final soft cap", "unembed.hook_out", in_layer=False),
    _site("logits", "pos vocab", "logits after the final soft cap", in_layer=False),
)

SITES: dict[str, Site] = {site.name: site for site in _TABLE}
LAYER_SITES: tuple[str, ...] = tuple(site.name for site in _TABLE if site.in_layer)
EDGE_SITES: tuple[str, ...] = tuple(site.name for site in _TABLE if site.is_edges)
SCALE_SITES: tuple[str, ...] = tuple(site.name for site in _TABLE if site.is_scale)


# The name of a site, and the layer; None for a site outside the layers.
SiteKey = tuple[str, int | None]


@dataclass(frozen=True)
class Address:
    """A site at a layer; layer is None for a site outside the layers. Prints as a dotted string, such as layers.5.z."""

    site: Site
    layer: int | None

    @property
    def key(self) -> SiteKey:
        """The name of the site, and the layer."""
        return self.site.name, self.layer

    @property
    def parts(self) -> tuple[Site, int | None]:
        """The site, and the layer."""
        return self.site, self.layer

    @property
    def is_after_layers(self) -> bool:
        """Whether the site comes after the last layer: final_scale, final, logits_raw or logits."""
        return self.layer is None and self.site.name != "embed"

    @prints_legibly
    def __str__(self) -> str:
        return self.site.name if self.layer is None else f"layers.{self.layer}.{self.site.name}"


def find_site(name: object) -> Site:
    """The site of that name. Raises SiteError, with similar names, for an unknown one."""
    if isinstance(name, Site):
        return name
    if isinstance(name, str) and name in SITES:
        return SITES[name]
    raise SiteError(_unknown(name))


def parse_site_name(name: object) -> tuple[Site, int | None]:
    """The site that a name refers to, and the layer if the name includes one.

    Args:
        name: "z"; "layers.5.z"; "attn.hook_z", "attn.o.hook_in" or "blocks.5.attn.hook_z" (TransformerLens).

    Raises:
        SiteError: The name is unknown, or stands for a different value in TransformerLens.
    """
    if not isinstance(name, str):
        return find_site(name), None
    if dotted := re.fullmatch(r"(?:layers|blocks)\.(-?[0-9]{1,9})\.(.+)", name):
        return find_site(_translate(dotted[2])), int(dotted[1])
    if name == AFTER_THE_LAYERS:
        return SITES["resid_post"], -1
    if name not in SITES and (short := split_short_name(name)) and is_known(short[0]):
        return find_site(_translate(short[0])), short[1]
    return find_site(_translate(name)), None


def find(key: object, n_layers: int, layer: int | None = None) -> Address:
    """The address that a key refers to.

    Args:
        key: "embed"; ("pattern", 5); "layers.5.pattern"; "blocks.5.attn.hook_pattern", ("k", 5, "attn") or "k5"
            (TransformerLens). A negative layer counts from the end.
        n_layers: How many layers the model has.
        layer: The layer, if the key is a bare site name.

    Raises:
        SiteError: There is no such site or layer.
    """
    if isinstance(key, tuple):
        if len(key) == 3 and isinstance(key[0], str) and isinstance(key[2], str):
            key = long_name(key[0], key[2]), key[1]
        if len(key) != 2:
            raise SiteError(f"a site is looked up as ('site', layer), such as ('pattern', 5); given {short_repr(key)}")
        name, layer = key
        # TransformerLens users write both cache["resid_post", 5] and cache[utils.get_act_name("resid_post", 5)].
        return find(name, n_layers, layer)
    if not isinstance(key, str):
        raise SiteError(_unknown(key))
    site, named = parse_site_name(key)
    if named is not None and layer is not None and find_layer(layer, n_layers) != find_layer(named, n_layers):
        raise SiteError(f"{short_repr(key)} names layer {named}, and layer {layer} was given as well; give one of them")
    return _address(site, layer if named is None else named, n_layers)


def layers_text(layers: Sequence[int]) -> str:
    """Layers that follow each other, in words: "layer 3" or "layers 3 to 7"."""
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"


def in_every_layer(name: str) -> Site | None:
    """The site that a name without a layer stands for, if every layer has it; None for other names.

    Raises:
        SiteError: The name is unknown, or stands for a different value in TransformerLens.
    """
    site, layer = parse_site_name(name)
    return site if site.in_layer and layer is None else None


def find_layer(layer: object, n_layers: int) -> int:
    """A layer as a number from 0; negative ones count from the end. Raises SiteError if there is no such layer."""
    if not is_whole(layer):
        raise SiteError(f"a layer is a whole number, {_layer_range(n_layers)}; given {short_repr(layer)}")
    number = int(layer)
    if not -n_layers <= number < n_layers:
        raise SiteError(f"there is no layer {short_repr(number)}: layers go {_layer_range(n_layers)}")
    return number % n_layers


def _layer_range(n_layers: int) -> str:
    return f"from 0 to {n_layers - 1} (or from -1 to -{n_layers}, counted from the end)"


def _address(site: Site, layer: int | None, n_layers: int) -> Address:
    if not site.in_layer:
        if layer is not None:
            raise SiteError(f"'{site.name}' is outside the layers: ask for it without one; given layer {short_repr(layer)}")
        return Address(site, None)
    if layer is None:
        raise SiteError(f"'{site.name}' is in every layer: say which, {_layer_range(n_layers)}")
    return Address(site, find_layer(layer, n_layers))


def _translate(name: str) -> str:
    """The site of a name that may be TransformerLens', whole or as its short form. Ours come first where both have one."""
    hook = name if name in SITES or is_known(name) or not is_known(long_name(name)) else long_name(name)
    if hook in OTHER_VALUE:
        raise SiteError(f"TransformerLens' {hook!r} {OTHER_VALUE[hook]}; use the site that you mean")
    return SITE_OF_HOOK.get(hook, hook)


def _unknown(name: object) -> str:
    suggestion = did_you_mean(name, list(SITES)) if isinstance(name, str) else ""
    return f"there is no site {short_repr(name)}.{suggestion} The sites are: {', '.join(SITES)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """' Did you mean ...?' for an error message, with up to three known names that resemble a name; "" if none does."""
    near = near_names(name, known)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def near_names(name: str, known: Sequence[str]) -> list[str]:
    """Up to three known names that resemble a name, the nearest first."""
    lower = name.lower().replace("hook_", "")
    inside = [other for other in known if len(lower) > 2 and (lower in other.lower() or other.lower() in lower.split("."))]
    close = difflib.get_close_matches(lower, known, n=3, cutoff=0.5)
    return list(dict.fromkeys([*inside, *close]))[:3]
