# %% [markdown]
# # 6 · The true size: plan, int8 and streaming 27B
#
# **You will** find out what a model takes in memory before you load it, quantise weights by hand, and run a model whose layers
# do not all fit.
#
# **Time:** 40 minutes: planning 15, int8 15, streaming 10.
#
# Real weights are not needed: the plan knows the shapes of Gemma 2, and nano streams like its big relatives.

# %%
import tempfile
from pathlib import Path

import pandas
import torch

import gemmascope as gs
from gemmascope.workshop import check, predict

# %% [markdown]
# ## 6.1 What will it take?

# %%
guess = predict(
    "6.1",
    "27B in bfloat16, a prompt of 1,024 tokens: how much memory, about?",
    ["less than 30 GB", "30 to 45 GB", "45 to 60 GB", "more than 60 GB"],
)
guess

# %%
plan = gs.plan("27b", weights="bf16", context=1024, device="cpu")
plan

# %%
table = pandas.DataFrame(plan.table())
table

# %%
peak = plan.to_dict()["peaks"]["trace"] / 1e9
ends = [("less than 30 GB", 30), ("30 to 45 GB", 45), ("45 to 60 GB", 60), ("more than 60 GB", float("inf"))]
print(guess.reveal(next(words for words, end in ends if peak < end)), f"({peak:.1f} GB for a trace)")

# %% [markdown]
# Besides the weights it is keys and values that grow with the prompt. In Gemma 2 half of the layers keep a window of them only,
# and kv heads are fewer than query heads.
#
# **Exercise 6.2** (8 minutes, ●●○) How many bytes do keys and values take?
#
# <details><summary>Hint 1</summary>Keys and values: twice kv heads x d_head numbers for each position that is kept.</details>
# <details><summary>Hint 2</summary>A local layer keeps min(window, context) positions, a global one all.</details>


# %% tags=["exercise"]
def cache_bytes(n_local, n_global, n_heads, n_kv_heads, d_head, window, context, bytes_each) -> int:
    """Bytes of the keys and values of one prompt of `context` tokens. All are whole numbers; window in positions."""
    raise NotImplementedError


# %% tags=["solution"]
def cache_bytes(n_local, n_global, n_heads, n_kv_heads, d_head, window, context, bytes_each) -> int:
    per_position = 2 * n_kv_heads * d_head * bytes_each
    return per_position * (n_local * min(window, context) + n_global * context)


# %% tags=["check"]
check.ex_6_2(cache_bytes)

# %% [markdown]
# ## 6.2 Eight bits
#
# Half the bytes: each group of weights along the input shares a scale, and a weight is a whole number from -127 to 127.
#
# **Exercise 6.1** (10 minutes, ●●○) Round weights to int8 and back.
#
# <details><summary>Hint 1</summary>`w.reshape(len(w), -1, group)` gives the groups an axis.</details>
# <details><summary>Hint 2</summary>The scale of a group is its largest size over 127.</details>


# %% tags=["exercise"]
def rounded(w, group: int):
    """The weights as int8 in groups stands for them. w: [out, in], in a multiple of group. Returns [out, in]."""
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
# ## 6.3 Layers that stream
#
# A model larger than the memory: one layer is computed while the next arrives. What fits stays. The numbers are the same, bit
# for bit.

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
# *Claim:* "For a sweep, streaming costs next to nothing: the weights cross once, however many runs there are." Count layers,
# not seconds: how often was each asked for?

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
print(f"{swept.effect.size} patched runs; each layer was asked for {set(counted.values())} times")
