# %% [markdown]
# # 2 · Attention, local and global
#
# **You will** compute attention scores by hand the way Gemma 2 does, draw the local window, and find heads by what they do.
#
# **Time:** 60 minutes: scores 15, the window 10, reading 15, finding heads 20.

# %%
MODEL = "nano"

# %%
import torch
from einops import einsum, repeat

import gemmascope as gs
from gemmascope.workshop import check, predict

model = gs.load(MODEL)
prompt = "When Mary and John went to the store, John gave a drink to"
t = gs.trace(prompt, model=model)
config = model.config
print(f"{config.n_heads} query heads share {config.n_kv_heads} kv heads; local layers see {config.window} keys")
print("layers:", ", ".join(f"{layer.index} {layer.kind}" for layer in t.layers))

# %% [markdown]
# ## 2.1 Scores
#
# A head compares the query of one position with the keys of others. In Gemma 2 the order matters: **scale** the product, then
# **soft cap** it, then mask, then softmax. And query heads outnumber kv heads: query head `h` reads kv head
# `h // heads_per_kv`, so neighbours share one (*grouped-query attention*).
#
# **Exercise 2.1** (12 minutes, ●●○) Capped scores from queries and keys.
#
# Gemma 3 has no soft cap there; it gives each head's queries and keys a norm of their own before RoPE instead.
#
# <details><summary>Hint 1</summary>`repeat(k, "pos kv d -> pos (kv g) d", g=...)` gives every query head its keys.</details>
# <details><summary>Hint 2</summary>`einsum(q, k, "q head d, k head d -> head q k")`.</details>
# <details><summary>Hint 3</summary>Scale first; then `cap * torch.tanh(scores / cap)`.</details>


# %% tags=["exercise"]
def capped_scores(q, k, scale: float, cap: float):
    """Attention scores after the scale and the soft cap, before the mask.

    q: [pos, head, d_head], k: [pos, kv_head, d_head], both after RoPE. Returns a tensor [head, q_pos, k_pos].
    """
    raise NotImplementedError


# %% tags=["solution"]
def capped_scores(q, k, scale: float, cap: float):
    shared = repeat(k, "pos kv d -> pos (kv g) d", g=q.shape[1] // k.shape[1])
    scores = einsum(q, shared, "q head d, k head d -> head q k") * scale
    return cap * torch.tanh(scores / cap)


# %% tags=["check"]
check.ex_2_1(capped_scores)

# %% [markdown]
# ## 2.2 The window
#
# In a **local** layer a query sees the `window` latest keys, its own included; in a **global** layer all keys up to its own.
#
# **Exercise 2.2** (6 minutes, ●○○) Which keys does each query of a local layer see?
#
# <details><summary>Hint 1</summary>Distance is query position less key position.</details>
# <details><summary>Hint 2</summary>A query is at distance 0 from itself, and counts.</details>


# %% tags=["exercise"]
def local_mask(n_pos: int, window: int):
    """True where a query sees a key in a local layer. Returns a bool tensor [q_pos, k_pos]."""
    raise NotImplementedError


# %% tags=["solution"]
def local_mask(n_pos: int, window: int):
    distance = torch.arange(n_pos)[:, None] - torch.arange(n_pos)
    return (distance >= 0) & (distance < window)


# %% tags=["check"]
check.ex_2_2(local_mask)

# %%
guess = predict(
    "2.2",
    f"This prompt has {len(t)} tokens and the window is {config.window}: does the window cut anything off here?",
    ["yes", "no"],
)
guess

# %%
longer = gs.trace(prompt + " Mary. " + prompt, model=model)
for name, run in (("this prompt", t), ("twice as long", longer)):
    print(f"{name}: {len(run)} tokens, so the window cuts {'something' if len(run) > config.window else 'nothing'}")
print(guess.reveal("yes" if len(t) > config.window else "no"))

# %% tags=["picture"]
gs.attention_view(longer)

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/2_attention.png" alt="The pattern of a head of the first layer, a band along the diagonal, and its heads in small"></details>
#
# <details><summary>What you should see</summary>Choose layers with the arrow keys. Where the window is shorter than the prompt,
# local layers have a band along the diagonal, and the window's edge is drawn; global layers reach back to the start. The first
# column, `&lt;bos&gt;`, takes much of the attention of many heads and is left out of the colours.</details>
#
# <details><summary>On a real Gemma</summary>
#
# There is no band: the window is too long for these prompts, and local layers see all
# that global ones see. Notebook 7 goes beyond it.
#
# ```text
# 4 query heads share 1 kv heads; local layers see 512 keys
# twice as long: 31 tokens, so the window cuts nothing
# ```
#
# </details>
#
# ## 2.3 What a head reads
#
# The pattern says where from; what is read are the values there, added up with the pattern's weights: `z`.
#
# **Exercise 2.4** (8 minutes, ●●○) From pattern and values to `z`.
#
# <details><summary>Hint 1</summary>The sum is over keys.</details>
# <details><summary>Hint 2</summary>Values have kv heads; share them out as you did with the keys.</details>


# %% tags=["exercise"]
def what_heads_read(pattern, v):
    """z: what each head reads. pattern: [head, q_pos, k_pos]. v: [pos, kv_head, d_head]. Returns [pos, head, d_head]."""
    raise NotImplementedError


# %% tags=["solution"]
def what_heads_read(pattern, v):
    shared = repeat(v, "pos kv d -> pos (kv g) d", g=len(pattern) // v.shape[1])
    return einsum(pattern, shared, "head q k, k head d -> q head d")


# %% tags=["check"]
check.ex_2_4(what_heads_read)

# %% [markdown]
# **Exercise 2.5** (6 minutes, ●●○) How far back does each head of a layer look, on average?
#
# <details><summary>Hint 1</summary>Weigh distances by the pattern, then take the mean over queries.</details>
# <details><summary>Hint 2</summary>The query at position 0 has no choice: leave it out.</details>


# %% tags=["exercise"]
def mean_distance(t, layer: int):
    """Mean distance of attention, in positions. t: a trace. Returns a tensor [head], over queries from position 1 on."""
    raise NotImplementedError


# %% tags=["solution"]
def mean_distance(t, layer: int):
    pattern = t["pattern", layer]
    positions = torch.arange(len(t), dtype=torch.float32)
    distance = (positions[:, None] - positions).clamp(min=0)
    return (pattern * distance).sum(-1)[:, 1:].mean(-1)


# %% tags=["check"]
check.ex_2_5(mean_distance)

# %% [markdown]
# ## 2.4 Heads by what they do
#
# Say random tokens twice. A head that, at the second saying of a token, attends to what *followed* its first saying can
# complete the sequence: an **induction head**.
#
# **Exercise 2.3** (10 minutes, ●●●) An induction score for each head.
#
# <details><summary>Hint 1</summary>With half = 3 the prompt is `&lt;bos&gt; A B C A B C`, positions 0 to 6. The query at 4 (the
# second A) should read position 2 (the B that followed the first A).</details>
# <details><summary>Hint 2</summary>How far back is that, in terms of half?</details>
# <details><summary>Hint 3</summary>Average over the queries of the second saying only.</details>


# %% tags=["exercise"]
def induction_scores(pattern, half: int):
    """Mean attention of the second saying's queries to what followed the same token the first time.

    pattern: [head, q_pos, k_pos] of a prompt: <bos>, `half` tokens, the same tokens again. Returns a tensor [head].
    """
    raise NotImplementedError


# %% tags=["solution"]
def induction_scores(pattern, half: int):
    back = half - 1
    queries = range(1 + half, pattern.shape[1])
    return torch.stack([pattern[:, q, q - back] for q in queries], -1).mean(-1)


# %% tags=["check"]
check.ex_2_3(induction_scores)

# %%
scores = gs.head_scores(model, kind="induction")
scores

# %%
scores.plot()

# %%
previous = gs.head_scores(model, kind="previous_token")
previous.plot()

# %% [markdown]
# ## Conclude
#
# *Claim:* "An induction head sits in a later layer than a head that attends to the previous token, because it needs what that
# head wrote." Do this model's best heads agree? What would you measure to be sure that one *needs* the other?


# %%
def best(array):
    """The strongest head of an array [layer, head], as (layer, head, score)."""
    layer, head = divmod(int(array.values.argmax()), array.sizes["head"])
    return layer, head, float(array.values.max())


first, second = best(previous.scores), best(scores.scores)
print(
    f"previous token: layer {first[0]} head {first[1]} ({first[2]:.2f}); induction: layer {second[0]} head {second[1]} ({second[2]:.2f})"
)
print("the order is as the claim has it" if first[0] < second[0] else "the order is not as the claim has it")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# The same order. The three best induction heads stand in global layers, as nano's best one
# does.
#
# ```text
#    0.832  layer 5 head 1
#    0.569  layer 11 head 2
#    0.552  layer 5 head 2
# previous token: layer 2 head 3 (0.66); induction: layer 5 head 1 (0.83)
# the order is as the claim has it
# ```
#
# </details>
