"""The names that TransformerLens gives to the values of a Gemma 2 or 3, and the site that holds each of them.

Two sets of names are in use: those of HookedTransformer (`attn.hook_z`) and those of TransformerBridge, which calls what
enters and leaves every module `hook_in` and `hook_out` (`attn.o.hook_in`). ActivationCache has short forms of the first as
well: `cache["post", 5]`, `cache["k", 5, "attn"]`, `cache["k5"]`. All are given here without `blocks.5.`.
"""

from __future__ import annotations

import re

# By module, so that what enters one module can be seen to be what leaves another.
SITE_OF_HOOK: dict[str, str] = {
    "hook_embed": "embed", "embed.hook_out": "embed", "rotary_emb.hook_in": "embed",
    "hook_in": "resid_pre", "hook_resid_pre": "resid_pre",
    "ln1.hook_in": "resid_pre", "ln1.hook_scale": "attn_in_scale", "ln1.hook_out": "attn_in",
    "attn.hook_in": "attn_in",
    "attn.q.hook_in": "attn_in", "attn.q.hook_out": "q_raw", "attn.hook_q": "q_raw", "attn.hook_rot_q": "q_rot",
    "attn.k.hook_in": "attn_in", "attn.k.hook_out": "k_raw", "attn.hook_k": "k_raw", "attn.hook_rot_k": "k_rot",
    # In Gemma 3 alone. Without these norms, `q` and `k` hold what `q_raw` and `k_raw` do.
    "attn.q_norm.hook_in": "q_raw", "attn.q_norm.hook_out": "q", "attn.hook_q_normed": "q",
    "attn.k_norm.hook_in": "k_raw", "attn.k_norm.hook_out": "k", "attn.hook_k_normed": "k",
    "attn.v.hook_in": "attn_in", "attn.v.hook_out": "v", "attn.hook_v": "v",
    "attn.hook_pattern": "pattern",
    "attn.hook_z": "z", "attn.o.hook_in": "z", "attn.o.hook_out": "attn_raw", "attn.hook_out": "attn_raw",
    "ln1_post.hook_in": "attn_raw", "ln1_post.hook_scale": "attn_out_scale", "ln1_post.hook_out": "attn_out",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid", "hook_mlp_in": "resid_mid",
    "ln2.hook_in": "resid_mid", "ln2.hook_scale": "mlp_in_scale", "ln2.hook_out": "mlp_in",
    "mlp.hook_in": "mlp_in", "mlp.gate.hook_in": "mlp_in", "mlp.in.hook_in": "mlp_in",
    "mlp.gate.hook_out": "mlp_gate", "mlp.hook_pre": "mlp_gate",
    "mlp.in.hook_out": "mlp_up", "mlp.hook_pre_linear": "mlp_up",
    "mlp.out.hook_in": "mlp_act", "mlp.hook_post": "mlp_act",
    "mlp.out.hook_out": "mlp_raw", "mlp.hook_out": "mlp_raw",
    "ln2_post.hook_in": "mlp_raw", "ln2_post.hook_scale": "mlp_out_scale", "ln2_post.hook_out": "mlp_out",
    "hook_mlp_out": "mlp_out",
    "hook_out": "resid_post", "hook_resid_post": "resid_post",
    "ln_final.hook_scale": "final_scale", "ln_final.hook_out": "final", "unembed.hook_in": "final",
    "unembed.hook_out": "logits_raw", "hook_unembed": "logits_raw",
}  # fmt: skip

# What enters the last norm is the output of the last layer, which this name does not mention.
AFTER_THE_LAYERS = "ln_final.hook_in"

_ANGLES = "holds cosines or sines of RoPE's angles, the same for every prompt; 'q_rot' and 'k_rot' are turned by them"
_COPY = "is a copy of the stream for every head there; the stream is 'resid_pre', its norm 'attn_in'"

# Names whose number is another one than any site's, so translating them would be wrong.
OTHER_VALUE: dict[str, str] = {
    "attn.hook_attn_scores": "has -inf at masked keys there, or the lowest number; at the keys that a query sees it is "
    "'scores_capped', which is unmasked; 'scores' is before the cap",
    "attn.hook_result": "leaves out Gemma 2's post-norm there; 'head_out' goes through it and adds up to 'attn_out'",
    **{
        f"{norm}.hook_normalized": f"is before the norm's gain there; '{site}' is after it"
        for norm, site in (("ln1", "attn_in"), ("ln1_post", "attn_out"), ("ln2", "mlp_in"), ("ln2_post", "mlp_out"))
    },
    **{f"attn.{x}_norm.hook_normalized": f"is before the norm's gain there; '{x}' is after it" for x in "qk"},
    **{f"attn.{x}_norm.hook_scale": f"has no site here; it is the root mean square of each head of '{x}_raw'" for x in "qk"},
    "ln_final.hook_normalized": "is before the norm's gain there; 'final' is after it",
    **{f"{of}hook_{name}": _COPY for of in ("", "attn.") for name in ("attn_in", "q_input", "k_input", "v_input")},
    **{f"{of}.hook_{name}": _ANGLES for of in ("attn", "rotary_emb") for name in ("cos", "sin")},
    "rotary_emb.hook_out": _ANGLES,
    "hook_pos_embed": "is no vector of Gemma 2, whose positions act by turning queries and keys; see 'q_rot' and 'k_rot'",
    "embed.hook_in": "holds the token ids, which are t.ids here",
    "attn.hook_hidden_states": "holds nothing in a run of Gemma 2 there; what attention reads is 'attn_in'",
}

# What ActivationCache calls by another name, and the modules that its short forms put in front of a name.
_ALIASES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v", "mlp_pre": "pre",
    "mlp_post": "post",
}  # fmt: skip
_IN_ATTENTION = frozenset(("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"))
_IN_MLP = frozenset(("pre", "post", "pre_linear"))
_MODULES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
_NORM_VALUES = frozenset(("scale", "normalized"))


def long_name(short: str, module: str | None = None) -> str:
    """The name of a hook that a short form stands for: "post" is mlp.hook_post, "scale" of "ln1" is ln1.hook_scale.

    Args:
        short: The name without its module.
        module: The module that the short form names, such as "attn", "a" or "ln1"; None if it names none.
    """
    name = _ALIASES.get(short, short)
    named = _MODULES.get(module or "", module or "")
    of = named or ("attn" if name in _IN_ATTENTION else "mlp" if name in _IN_MLP else "")
    if name in _NORM_VALUES and not of:
        of = "ln_final"
    return f"{of}.hook_{name}" if of else f"hook_{name}"


def split_short_name(name: str) -> tuple[str, int] | None:
    """The hook and the layer of a short form that holds its layer, such as "k6" or "scale4ln1"; None for other names."""
    match = re.fullmatch(r"([a-z]+)([0-9]{1,9})([a-z][a-z0-9_.]*)?", name)
    return (long_name(match[1], match[3]), int(match[2])) if match else None


def is_known(hook: str) -> bool:
    """Whether TransformerLens has this name."""
    return hook in SITE_OF_HOOK or hook in OTHER_VALUE or hook == AFTER_THE_LAYERS
