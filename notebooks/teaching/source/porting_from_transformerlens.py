# %% [markdown]
# # Porting from TransformerLens
#
# **You will** see how an analysis written for TransformerLens (a run with a cache, hook names, a patching loop) is written here, and
# check that the numbers are the same.
#
# **Time:** 30 minutes. There are no exercises.
#
# You do not need TransformerLens for this. Every number is computed a second time with plain `transformers` and forward hooks, so
# that it is compared with something that we did not write.

# %%
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

import gemmascope as gs
from gemmascope.workshop import claim

model = gs.load("nano")
folder = Path(gs.__file__).parent / "nano" / "checkpoint"
reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"
clean_ids, corrupt_ids = model.ids(clean), model.ids(corrupt)
mary, john = (model.tokenizer.single(name) for name in (" Mary", " John"))

# %% [markdown]
# ## 1 · A run with a cache
#
# In TransformerLens:
#
# ```python
# logits, cache = tl_model.run_with_cache(clean)           # logits [batch, pos, vocab]
# pattern = cache["blocks.3.attn.hook_pattern"][0]         # [head, q_pos, k_pos]
# pattern = cache["pattern", 3][0]                         # the same
# resid = cache["resid_post", 3][0]                        # [pos, d_model]
# ```
#
# Here, a trace is the cache. It has no batch axis. It accepts TransformerLens' names; an unknown name is an error that suggests
# similar ones.

# %%
t = gs.trace(clean, model=model)
pattern = t["blocks.3.attn.hook_pattern"]
assert torch.equal(pattern, t["pattern", 3])
resid = t["resid_post", 3]
print(tuple(pattern.shape), tuple(resid.shape), tuple(t.logits.shape))

# %%
with torch.no_grad():
    outputs = reference(clean_ids[None], output_attentions=True, output_hidden_states=True)
print(f"pattern of layer 3: at most {float((outputs.attentions[3][0] - pattern).abs().max()):.1e} apart")
print(f"stream after layer 3: at most {float((outputs.hidden_states[4][0] - resid).abs().max()):.1e} apart")
print(f"logits: at most {float((outputs.logits[0] - t.logits).abs().max()):.1e} apart")

# %% [markdown]
# ## 2 · The table of names
#
# The table below lists every site of this toolkit, with one of its names in TransformerLens. All names of TransformerLens 4 can be
# used, also those of what enters and leaves a module (`blocks.3.attn.o.hook_in` is another name of `z`) and the short forms of its
# cache (`("post", 3)`, `("k", 3, "attn")`, `("scale", 3, "ln1")`). An empty third column means that TransformerLens has no name for
# this value, or none for exactly this value: `attn.hook_attn_scores`, for example, is `scores_capped` except where keys are hidden.

# %%
assert torch.equal(t["blocks.3.attn.o.hook_in"], t["z", 3])
assert torch.equal(t["post", 3], t["mlp_act", 3])
names = [(name, " ".join(site.axes), site.hook or "", site.meaning) for name, site in gs.SITES.items()]
pd.set_option("display.max_colwidth", None)
pd.DataFrame(names, columns=["site", "axes", "TransformerLens", "meaning"]).set_index("site")

# %% [markdown]
# Some hooks of TransformerLens hold a value that no site here has. Asking for one is an error that says what the difference is; you
# are never given a similar value in its place. A misspelt name is an error that lists similar names.

# %%
for name in ("blocks.3.attn.hook_result", "blocks.3.attn.hook_attn_scores", "blocks.3.hook_resid_prev"):
    try:
        t[name]
    except gs.GemmascopeError as error:
        print(f"{name}: {str(error).split(' The sites are')[0]}")

# %% [markdown]
# The same for calls:
#
# | TransformerLens | here |
# |---|---|
# | `HookedTransformer.from_pretrained("gemma-2-2b")`, or `TransformerBridge.boot_transformers("google/gemma-2-2b")` | `gs.load("google/gemma-2-2b")` |
# | `tl_model.to_tokens(prompt)`, `to_str_tokens(prompt)` | `model.ids(prompt)`, `gs.trace(prompt, model=model).tokens` |
# | `tl_model.run_with_cache(prompt)` | `gs.trace(prompt, model=model)` |
# | `cache["pattern", 5]`, `cache["blocks.5.hook_resid_post"]` | `t["pattern", 5]`, `t["blocks.5.hook_resid_post"]` |
# | `tl_model.run_with_cache(prompt, names_filter=[...])` | `gs.trace(prompt, model=model, keep=[...])` |
# | `torch.stack([cache["pattern", layer] for layer in ...])` | `t["pattern"]`, with labels |
# | hooks at `ln1.hook_scale`, ... that write `clean_cache` | `gs.patch("attn_in_scale", clean_trace, layer=5)` |
# | `tl_model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])` | `gs.trace(prompt, model=model, edits=[gs.edit(site, function, layer=5)])` |
# | a hook that writes `clean_cache[name][:, pos]` | `gs.patch(site, clean_trace, layer=5, pos=pos)` |
# | a hook that writes zeros | `gs.ablate(site, layer=5, head=3)` |
# | `patching.get_act_patch_resid_pre(...)` | `gs.sweep(clean, corrupt, metric, site="resid_pre")` |
# | `patching.get_act_patch_attn_head_out_all_pos(...)` | `gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"))` |
# | `patching.get_act_patch_attn_head_k_all_pos(...)`, and `v` | the same with `site="k"`: both count kv heads there |
# | `patching.get_act_patch_attn_head_pattern_by_pos(...)` | `gs.sweep(..., site="pattern", by=("layer", "head", "q_pos"))` |
# | `patching.generic_activation_patch(...)` | `gs.sweep` with any site and axes; `layer=`, `pos=`, `head=` name a part of the grid |
# | `cache.accumulated_resid(apply_ln=True)`, times `W_U` | `gs.lens(t)`, soft cap included |
# | `cache.decompose_resid(...)` with `cache.logit_attrs(...)` | `gs.direct_logits(t, " Mary", against=" John")` |
# | `cache.stack_head_results(...)` with `cache.logit_attrs(...)` | `gs.direct_logits(t, " Mary", against=" John", by="head")` |
# | `tl_model.generate(prompt)` | `gs.generate(prompt, model=model)` |
#
# What differs:
#
# - **No batch axis and no padding.** A list of prompts gives a list of traces.
# - **`<bos>` is always there.** It is put in front of every text, and no option leaves it out, because Gemma 2 does not work without
#   it. A list of token ids is used unchanged.
# - **Weights are those of the checkpoint.** `HookedTransformer.from_pretrained` multiplies the gain of a norm into the weights that
#   read from it (`fold_ln`), so its `W_Q` and `W_U` differ from the checkpoint's. (In other models it also centres weights; in
#   Gemma 2 it does not, because the norms subtract no mean and the logits are capped.) Here nothing is folded. `layer.ov(head)` and
#   `layer.qk(head)` multiply the gains in when you read them, unless you ask them not to.
# - **What a cell holds.** A patching loop returns the metric of each patched run. Here, `s.effect` is that metric less the metric of
#   the corrupted run, so it is what the patch changed. `s.normalized` is the effect as a share of the gap; `s.clean` and `s.corrupt`
#   are the metrics of the two runs.
# - **Gemma 2's post-norms.** The output of each sublayer goes through a norm before it is added to the stream. `attn_out` is what is
#   added. `head_out` goes through the same norm with its scale held fixed, so that the heads add up to `attn_out`.
# - **Soft-capped logits.** `t.logits` and metrics are after the final soft cap. Direct logits are before it, and say so.

# %%
joins, before_norm = t["attn_out", 3], t["attn_raw", 3]
apart = (t["head_out", 3].sum(1) - joins).abs().max()
print(f"heads of layer 3 add up to what is added to the stream, to {float(apart):.1e}")
missed = float((before_norm - joins).norm() / joins.norm())
print(
    f"heads taken before the post-norm, as in hook_result, would add up to something else: {missed:.1f} times its size away"
)

# %% [markdown]
# ## 3 · A patching loop
#
# In TransformerLens, a run for every layer and position:
#
# ```python
# for layer in range(n_layers):
#     for pos in range(n_pos):
#         def hook(resid, hook): resid[:, pos] = clean_cache[hook.name][:, pos]; return resid
#         logits = tl_model.run_with_hooks(corrupt, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", hook)])
#         result[layer, pos] = logits[0, -1, mary] - logits[0, -1, john]
# ```
#
# The same loop with hooks of plain `transformers`, and the sweep:

# %%
n_layers, n_pos = model.n_layers, len(corrupt_ids)


def patched_run(layer: int, pos: int) -> float:
    """The logit difference of the corrupted run with the clean stream before a layer at one position."""

    def hook(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[0, pos] = outputs.hidden_states[layer][0, pos]
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handle = reference.model.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        logits = reference(corrupt_ids[None]).logits[0, -1]
    finally:
        handle.remove()
    return float(logits[mary] - logits[john])


start = time.perf_counter()
with torch.no_grad():
    loop = torch.tensor([[patched_run(layer, pos) for pos in range(n_pos)] for layer in range(n_layers)])
loop_seconds = time.perf_counter() - start

start = time.perf_counter()
s = gs.sweep(clean, corrupt, gs.logit_diff(" Mary", " John"), site="resid_pre", model=model, progress=False)
sweep_seconds = time.perf_counter() - start

same = float((torch.tensor(s.effect.values) + s.corrupt - loop).abs().max())
print(f"{n_layers * n_pos} cells: at most {same:.1e} apart; the loop took {loop_seconds / sweep_seconds:.1f} times as long")

# %%
s.plot()

# %% [markdown]
# The same for heads, where the loop patches `hook_z` (`patching.get_act_patch_attn_head_out_all_pos`). In `transformers`, `z` is
# the input of `o_proj`, with all heads of a layer side by side:

# %%
d_head, n_heads = model.config.d_head, model.config.n_heads
into = [layer.self_attn.o_proj for layer in reference.model.layers]
clean_z = {}
handles = [
    module.register_forward_pre_hook(lambda _, args, n=n: clean_z.update({n: args[0]})) for n, module in enumerate(into)
]
with torch.no_grad():
    reference(clean_ids[None])
for handle in handles:
    handle.remove()


def patched_head(layer: int, head: int) -> float:
    """The logit difference of the corrupted run with what one head reads in the clean one, at all positions."""
    columns = slice(head * d_head, (head + 1) * d_head)

    def hook(module, args):
        z = args[0].clone()
        z[..., columns] = clean_z[layer][..., columns]
        return (z,)

    handle = into[layer].register_forward_pre_hook(hook)
    try:
        logits = reference(corrupt_ids[None]).logits[0, -1]
    finally:
        handle.remove()
    return float(logits[mary] - logits[john])


with torch.no_grad():
    head_loop = torch.tensor([[patched_head(layer, head) for head in range(n_heads)] for layer in range(n_layers)])
by_head = gs.sweep(
    clean, corrupt, gs.logit_diff(" Mary", " John"), site="z", by=("layer", "head"), model=model, progress=False
)
same_heads = float((torch.tensor(by_head.effect.values) + by_head.corrupt - head_loop).abs().max())
print(f"{n_layers * n_heads} heads: at most {same_heads:.1e} apart")

# %% [markdown]
# ## 4 · A hook of your own
#
# ```python
# def halve(z, hook): z[:, :, 3] *= 0.5; return z                   # z [batch, pos, head, d_head]
# logits = tl_model.run_with_hooks(clean, fwd_hooks=[("blocks.2.attn.hook_z", halve)])
# ```

# %%
own = gs.trace(clean, model=model, edits=[gs.edit("z", lambda z: 0.5 * z, layer=2, head=3)])
ready = gs.trace(clean, model=model, edits=[gs.scale("z", 0.5, layer=2, head=3)])
print(f"as a function and as an edit: {float((own.logits - ready.logits).abs().max()):.1e} apart")
print(
    f"the answer leads by {float(t.next_logits[mary] - t.next_logits[john]):.2f}, then by {float(own.next_logits[mary] - own.next_logits[john]):.2f}"
)

# %% [markdown]
# ## 5 · What six notebooks do
#
# The table below has every operation of six public notebooks, and the line that does it here: TransformerLens' exploratory analysis,
# activation patching and attribution patching; the tutorials of SAELens and of Gemma Scope; ARENA's chapter on indirect objects.
# The cell runs each line of ours and shows the type of its result. A number in the notes refers to a paragraph of the guide's page
# on porting, which says why the values differ.

# %%
metric = gs.logit_diff(" Mary", " John")
family = gs.prompts.ioi(4)
traces = gs.trace([pair.clean for pair in family], model=model)
answers, against = [pair.answer for pair in family], [pair.against for pair in family]
sae = gs.load_sae()

# %%
operations = """
run with a cache | model.run_with_cache(clean) | gs.trace(clean) | no batch axis
tokens | model.to_str_tokens(clean), to_tokens | t.tokens | t.ids; model.ids(clean) without a run
read an activation | cache["pattern", 3] | t["pattern", 3] | TransformerLens' names are read too
logits, next tokens | model(clean), utils.test_prompt | t.top(5) | soft-capped
logit difference | logits[:, -1, mary] - logits[:, -1, john] | metric(t) | pos= for other positions
loss of a text | model(clean, return_type="loss") | t.loss() | mean=False: of each token; gs.loss(pos=...) in sweeps
logit lens | cache.accumulated_resid(apply_ln=True) @ W_U | gs.lens(t, "stream", answer=" Mary") | with the cap
lens, two prompts | by hand | gs.lens(t, against=corrupt) | difference, KL, tokens raised most
direct attribution by layer | cache.decompose_resid, logit_attrs | gs.direct_logits(t, " Mary", against=" John") | 1
direct attribution by head | cache.stack_head_results, logit_attrs | gs.direct_logits(t, " Mary", against=" John", by="head") | 1
the same over a batch | mean over the batch axis | gs.direct_logits(traces, answers, against, by="head").mean | .stderr, .interval()
a batch as one array | cache["z", 3] | gs.stack([t, gs.trace(corrupt)], "z", 3) | prompts of one length
attention patterns | cv.attention.attention_patterns(...) | gs.attention_view(t, layer=3) | a list of traces: the mean
head detectors | detect_head(model, seq, "induction_head") | gs.head_scores(kind=["previous_token", "duplicate_token", "induction"]) | 2
other kinds of heads | by hand | gs.head_scores(kind=["self", "first_occurrence", "positional", "entropy", "sink"]) | 2
patch the stream | patching.get_act_patch_resid_pre | gs.sweep(clean, corrupt, metric, site="resid_pre", progress=False) | 3
patch sublayers | patching.get_act_patch_attn_out, mlp_out | gs.sweep(clean, corrupt, metric, site="mlp_out", progress=False) | -
patch heads | get_act_patch_attn_head_out_all_pos | gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"), progress=False) | -
patch queries, keys, values | get_act_patch_attn_head_q_all_pos, ... | gs.sweep(clean, corrupt, metric, site="v", by=("layer", "head"), progress=False) | k and v count kv heads
patch patterns | get_act_patch_attn_head_pattern_all_pos | gs.sweep(clean, corrupt, metric, site="pattern", by=("layer", "head"), progress=False) | -
patch every kind at once | patching.get_act_patch_block_every | gs.sweep(clean, corrupt, metric, site=["resid_pre", "attn_out", "mlp_out"], progress=False) | one pass; heads: by=("layer", "head")
ablate | a hook that writes zeros | gs.trace(clean, edits=[gs.ablate("z", layer=3, head=0)]) | value="mean" too
a hook of one's own | model.run_with_hooks(tokens, fwd_hooks=[...]) | model.run(clean, tap=lambda site, layer, value: None) | may write in place and return nothing
a hook that stays | model.add_hook(..., is_permanent=True) | model.edited([gs.ablate("z", layer=3, head=0)]) | another model; 4
path patching | by hand (ARENA) | gs.path_sweep(clean, corrupt, metric, receiver=("q", 3), progress=False) | -
gradients at all sites | model.add_hook(..., "bwd") | t.grad(metric) | t.grad(metric, "z"): [layer, ...]
attribution patching | by hand | gs.attribute(clean, corrupt, metric, site="resid_pre") | -
attention times gradient | cache[name] * grad_cache[name] | gs.attention_attribution(t, metric) | -
head-to-head attribution | by hand | gs.head_paths(clean, corrupt, metric) | 5
weights | model.W_Q[3, 0], W_U | model.layer(3).W_Q[0] | model.W_E, model.W_U; 6
a token's direction | model.tokens_to_residual_directions(" Mary") | model.tokens_to_residual_directions(" Mary") | with the last norm's gain; 6
circuits in weights | model.OV, FactoredMatrix, all_composition_scores | gs.composition(kind="k") | model.layer(3).ov(0); 7
copying | ARENA's copy score of name movers | gs.name_copying([pair.clean for pair in family], answers) | gs.head_scores(kind="copying")
what is published | get_pretrained_saes_directory() | gs.saes("2b", layer=20, l0="canonical") | needs no network
load a dictionary | SAE.from_pretrained(release, sae_id) | gs.load_sae() | gs.load_sae(release, sae_id)
features of a dictionary | sae.encode(cache[name]) | sae.encode(t).top() | -
quality of a dictionary | L0, loss with the reconstruction, by hand | sae.loss_recovered([clean]) | sae.encode(t).l0, .explained
tokens that a feature raises | sae.W_dec[987] @ model.W_U | gs.feature_logits(sae, 987) | with the last norm's gain; gain=False
splice, ablate, steer with features | sae.decode, hooks | gs.feature_sweep(sae, clean, metric, features=[804, 265], pos=-1) | gs.splice(sae)
generate | model.generate(clean, top_k=50, temperature=0.8) | gs.generate(clean, top_k=50, temperature=0.8, samples=2, max_new_tokens=4) | 8
steer generation with a feature | a hook around model.generate | gs.generate(clean, edits=[gs.splice(sae, {987: 10.0})], max_new_tokens=4) | the feature is held at 10
"""
rows = [line.split(" | ") for line in operations.strip().splitlines()]
table = [(operation, theirs, ours, type(eval(ours)).__name__, notes) for operation, theirs, ours, notes in rows]
pd.DataFrame(table, columns=["operation", "theirs", "ours", "gives", "notes"]).set_index("operation")

# %% [markdown]
# ## Conclude
#
# Two loops and two sweeps have measured the same cells.

# %%
mine = claim("porting", "The sweeps give the same numbers as the loops, to within 0.0001.")
mine

# %% tags=["written"]
mine.write("True for the stream, as printed above. A larger difference in one cell of either would refute it.")

# %%
largest = max(same, same_heads)
print(f"largest difference: {largest:.1e}")
print(mine.verdict("borne out" if largest < 1e-4 else "refuted"))
