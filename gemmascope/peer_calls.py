"""What other libraries call methods of a model or a cache, and the call here: for errors of names that do not exist."""

from __future__ import annotations

# Methods and attributes of TransformerLens' models, and of nnsight's.
OF_MODEL: dict[str, str] = {
    "run_with_cache": "gs.trace(prompt, model=model)",
    "run_with_hooks": "gs.trace(prompt, edits=[...], model=model), or model.run(prompt, tap=function)",
    "trace": "gs.trace(prompt, edits=[...], model=model)",
    "add_hook": "model.edited([...]), another model with these edits in every run",
    "reset_hooks": "not needed: edits belong to a run, or to what model.edited([...]) returns",
    "generate": "gs.generate(prompt, model=model)",
    "forward": "model.run(prompt)",
    "to_tokens": "model.ids(prompt)",
    "to_str_tokens": "model.texts(model.ids(prompt))",
    "to_single_token": "model.tokenizer.single(text)",
    "cfg": "model.config",
    "blocks": "model.layer(0)",
    "embed": "model.W_E",
    "unembed": "model.W_U",
    "OV": "model.layer(0).ov(head)",
    "QK": "model.layer(0).qk(head)",
    "all_composition_scores": "gs.composition(kind='k', model=model)",
}

_READ = "t[site, layer] for any of gs.SITES: a site that is not kept is computed when it is read"

# Methods of TransformerLens' ActivationCache.
OF_TRACE: dict[str, str] = {
    **dict.fromkeys(("keys", "values", "items"), _READ),
    "accumulated_resid": "t.stream, or gs.lens(t) for its logits",
    "decompose_resid": "gs.direct_logits(t, answer), whose parts add up to the logit",
    "logit_attrs": "gs.direct_logits(t, answer, against=other)",
    "get_full_resid_decomposition": "gs.direct_logits(t, answer, by='head'), or by='neuron'",
    "stack_head_results": "gs.direct_logits(t, answer, by='head'), or t['head_out']",
    "stack_neuron_results": "gs.direct_logits(t, answer, by='neuron')",
    "stack_activation": "t['z'], of all layers",
    "str_tokens": "t.tokens",
    "probs": "t.logits.softmax(-1), or t.top(5)",
}


def hint(calls: dict[str, str], name: str) -> str:
    """The end of an error about a name that does not exist: what does the same here; "" for a name that nobody has."""
    return f". Here it is {calls[name]}" if name in calls else ""
