# %% [markdown]
# # 6 · The true size: plan, int8 and streaming 27B
#
# **You will** find out how much memory a model takes before you load it, quantise weights by hand, count the bytes of keys and
# values, and run a model whose layers do not all fit.
#
# **Time:** 45 minutes: planning 10, int8 15, keys and values 10, streaming 10.
#
# You need no real weights for this: the plan knows the shapes of Gemma 2, and nano streams the way its big relatives do.

# %%
import tempfile
from pathlib import Path

import pandas
import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, predict

# %% [markdown]
# ## 6.0 Will it fit?

# %%
guess = predict(
    "6.0",
    "27B in bfloat16, a prompt of 1,024 tokens: how much memory, about?",
    ["less than 30 GB", "30 to 45 GB", "45 to 60 GB", "more than 60 GB"],
)
guess

# %%
plan = gs.plan("27b", weights="bf16", context=1024, device="cpu")
plan

# %%
peak = plan.to_dict()["peaks"]["trace"] / 1e9
ends = [("less than 30 GB", 30), ("30 to 45 GB", 45), ("45 to 60 GB", 60), ("more than 60 GB", float("inf"))]
print(guess.reveal(next(words for words, end in ends if peak < end)), f"({peak:.1f} GB for a trace)")

# %% [markdown]
# The same for all three sizes, for longer prompts and for graphics cards; the black line is what a card holds. *Resident* or *fits
# whole* means that all layers stay in memory; where layers *stream*, some are read again for every run (6.3). Which sizes fit into
# the memory of your own machine?

# %%
gs.plan_view()

# %% [markdown]
# ## 6.1 Eight bits
#
# One way to need less: store each weight in one byte instead of two. A byte holds a whole number, here from -127 to 127. So the
# weights are divided into groups along the input, and each group shares one **scale**, by which its whole numbers are multiplied.
#
# **Exercise 6.1** (10 minutes, ●●○) Round weights to int8 in groups, and turn them back into numbers.
#
# <details><summary>Hint 1</summary><code>w.reshape(len(w), -1, group)</code> gives the groups an axis.</details>
# <details><summary>Hint 2</summary>The scale of a group is its largest absolute value, divided by 127.</details>


# %% tags=["exercise"]
def rounded(w, group: int):
    """The weights after rounding to int8 and back. w: [out, in], with `in` a multiple of group. Returns [out, in]."""
    raise NotImplementedError


# %% tags=["solution"]
def rounded(w, group: int):
    grouped = w.reshape(len(w), -1, group)
    scale = grouped.abs().amax(-1, keepdim=True) / 127
    return ((grouped / scale).round() * scale).reshape(w.shape)


# %% tags=["check"]
check.ex_6_1(rounded)

# %% [markdown]
# What does it cost? The same prompts, with the weights as they are and in int8:

# %%
compared = gs.compare(
    gs.load("nano"), gs.load("nano", weights="int8"), ["The capital of France is", "When Mary and John went to"]
)
compared

# %% [markdown]
# ## 6.2 Keys and values
#
# The weights take the same room for every prompt. Keys and values grow with it: a model keeps those of all earlier positions. In
# Gemma 2, half of the layers keep only the latest window of them, and there are fewer kv heads than query heads.
# `kv_bytes` in the plan's table is what they take:

# %%
pandas.DataFrame(plan.table())

# %% [markdown]
# **Exercise 6.2** (8 minutes, ●●○) Compute how many bytes the keys and values of a prompt take.
#
# <details><summary>Hint 1</summary>Keys and values: twice kv heads x d_head numbers for each position that is kept.</details>
# <details><summary>Hint 2</summary>A local layer keeps min(window, context) positions, a global one all.</details>


# %% tags=["exercise"]
def cache_bytes(n_local, n_global, n_heads, n_kv_heads, d_head, window, context, bytes_each) -> int:
    """Bytes of the keys and values of one prompt of `context` tokens. All are whole numbers; window is in positions."""
    raise NotImplementedError


# %% tags=["solution"]
def cache_bytes(n_local, n_global, n_heads, n_kv_heads, d_head, window, context, bytes_each) -> int:
    per_position = 2 * n_kv_heads * d_head * bytes_each
    return per_position * (n_local * min(window, context) + n_global * context)


# %% tags=["check"]
check.ex_6_2(cache_bytes)

# %% [markdown]
# ## 6.3 Layers that stream
#
# A model larger than the memory can still run: while one layer computes, the next one is read from the disk. Layers that fit stay
# in memory. The results are the same, bit for bit. Where not even two layers fit, an error says so before anything is read:

# %%
folder = Path(tempfile.mkdtemp()) / "nano-int8"
gs.quantize("nano", folder)
whole = gs.load(folder)
try:
    gs.load(folder, memory="1MB")
except gs.GemmascopeError as error:
    print(error)

# %%
streamed = gs.load(folder, memory="40MB")
prompt = "When Mary and John went to the store, John gave a drink to"
same = torch.equal(gs.trace(prompt, model=whole).logits, gs.trace(prompt, model=streamed).logits)
print("the same bits:", same)

# %% [markdown]
# ## Conclude
#
# When a model streams, every layer has to be read from the disk for a run. What does that mean for a sweep of many runs?

# %%
mine = claim("6", "A sweep of 90 patched runs reads each streamed layer 90 times.")
mine

# %% tags=["written"]
mine.write(
    "I doubt it: the runs could share a layer while it is there. The number of times that each layer is read decides."
)

# %%
import collections

from gemmascope.model.gemma2 import Gemma2

counted = collections.Counter()
layers = Gemma2.layers


def counting(network, reverse=False):
    for layer in layers(network, reverse):
        counted[layer.index] += 1
        yield layer


Gemma2.layers = counting
try:
    corrupt = prompt.replace(", John", ", Mary")
    swept = gs.sweep(prompt, corrupt, gs.logit_diff(" Mary", " John"), site="resid_pre", model=streamed, progress=False)
finally:
    Gemma2.layers = layers
print(f"{swept.effect.size} patched runs; times that each layer was read: {sorted(set(counted.values()))}")
print(mine.verdict("refuted" if max(counted.values()) < swept.effect.size / 10 else "borne out"))

# %%
check.summary(6)
