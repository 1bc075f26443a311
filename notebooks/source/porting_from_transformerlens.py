# %% [markdown]
# # Porting from TransformerLens
#
# **You will** take a piece of an analysis as it is written with TransformerLens - a run with a cache, hook names, a loop that
# patches - and get the same numbers here.
#
# **Time:** 30 minutes. There is nothing to fill in.
#
# TransformerLens is not needed. So that the numbers stand beside something that is not ours, every piece is computed a second
# time with plain `transformers` and forward hooks, which is what a patching loop comes down to.

# %%
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM

import gemmascope as gs

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
# Here a trace is the cache. It has no batch axis, and reads TransformerLens' names as they are; a name that there is not is an
# error that lists the near ones.

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
# Made from the table of sites that drives look-up in this toolkit; where the third column is empty TransformerLens has no hook.

# %%
names = [(name, " ".join(site.axes), site.hook or "", site.meaning) for name, site in gs.SITES.items()]
pd.set_option("display.max_colwidth", None)
pd.DataFrame(names, columns=["site", "axes", "TransformerLens", "meaning"]).set_index("site")

# %% [markdown]
# And of calls:
#
# | TransformerLens | here |
# |---|---|
# | `HookedTransformer.from_pretrained("gemma-2-2b")` | `gs.load("google/gemma-2-2b")` |
# | `tl_model.to_tokens(prompt)`, `to_str_tokens(prompt)` | `model.ids(prompt)`, `gs.trace(prompt, model=model).tokens` |
# | `tl_model.run_with_cache(prompt)` | `gs.trace(prompt, model=model)` |
# | `cache["pattern", 5]`, `cache["blocks.5.hook_resid_post"]` | `t["pattern", 5]`, `t["blocks.5.hook_resid_post"]` |
# | `tl_model.run_with_hooks(tokens, fwd_hooks=[(name, hook)])` | `gs.trace(prompt, edits=[gs.edit(site, function, layer=5)])` |
# | a hook that writes `clean_cache[name][:, pos]` | `gs.patch(site, clean_trace, layer=5, pos=pos)` |
# | a hook that writes zeros | `gs.ablate(site, layer=5, head=3)` |
# | `patching.get_act_patch_resid_pre(...)` | `gs.sweep(clean, corrupt, metric, site="resid_pre")` |
# | `patching.get_act_patch_attn_head_out_all_pos(...)` | `gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"))` |
# | `cache.logit_attrs(...)`, `cache.stack_head_results(...)` | `gs.direct_logits(t, " Mary", against=" John", by="head")` |
# | `tl_model.generate(prompt)` | `gs.generate(prompt, model=model)` |
#
# What differs:
#
# - **No batch axis and no padding.** A list of prompts gives a list of traces.
# - **Weights are as they are stored.** TransformerLens folds norms into weights and centres them unless it is told not to
#   (`from_pretrained_no_processing`), so its stream differs by a constant; here nothing is folded.
# - **Gemma 2's post-norms.** Each sublayer's output passes a norm before it joins the stream. `attn_out` is what joins;
#   `head_out` goes through that norm with its scale frozen, so heads add up to `attn_out`.
# - **Soft-capped logits.** `t.logits` are after the final soft cap; metrics read them; direct logits are before it, and say so.

# %%
apart = (t["head_out", 3].sum(1) - t["attn_out", 3]).abs().max()
print(f"heads of layer 3 add up to what joins the stream, to {float(apart):.1e}")

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
# ## Conclude
#
# *Claim:* "The sweep's numbers are those of the loop, to 0.0001." The number that decides:

# %%
print(f"largest difference {same:.1e}: the claim is {'borne out' if same < 1e-4 else 'refuted'}")
