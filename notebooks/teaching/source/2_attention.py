# %% [markdown]
# # 2 · Attention, local and global
#
# **You will** see where heads look, compute attention scores by hand the way Gemma 2 does, draw the local window, find heads by
# what they do, and find out what the model loses when no head can look far back.
#
# **Time:** 70 minutes: looking 5, scores 15, the window 10, finding heads 20, reading 8, how far back 6, far back 6.

# %%
MODEL = "nano"

# %%
import torch
from einops import einsum, repeat

import gemmascope as gs
from gemmascope.workshop import check, claim, draw_points, predict

model = gs.load(MODEL)
prompt = "When Mary and John went to the store, John gave a drink to"
t = gs.trace(prompt, model=model)
config = model.config
print(f"{config.n_heads} query heads share {config.n_kv_heads} kv heads; local layers see {config.window} keys")
print("layers:", ", ".join(f"{layer.index} {layer.kind}" for layer in t.layers))

# %% [markdown]
# ## 2.0 Look first
#
# Each row of a **pattern** is one token asking (the *query*), each column a token that can be read (the *key*); a row adds up to 1.
# On the left is a small pattern for every head, layer by layer; click one to see it large. Can you find a head that looks at the
# token before? One that looks at a name, from the last token?

# %%
gs.attention_view(t)

# %% [markdown]
# <details><summary>What you should see</summary>A click, or the arrow keys, choose a head. The first column, <code>&lt;bos&gt;</code>,
# takes much of the attention of many heads: a head that finds nothing to read looks there. So the range of colours is that of the
# other columns, and the first is often as dark as it gets. In nano, head 3 of layer 2 looks at the token before at about half of
# the tokens, and from the last token all heads of layer 3 look at Mary.</details>

# %% [markdown]
# ## 2.1 Scores
#
# Where do these patterns come from? A head multiplies the query of one position with the keys of the others. In Gemma 2 the
# product is first **scaled**, then **soft-capped**, then masked, and then goes through a softmax; the order matters. There are
# more query heads than kv heads (heads of keys and values): query head `h` reads kv head `h // heads_per_kv`, so neighbours share
# one (*grouped-query attention*). Queries and keys have been turned by their positions already (*RoPE*).
#
# **Exercise 2.1** (12 minutes, ●●○) Compute capped scores from queries and keys.
#
# (Gemma 3 has no soft cap here. It gives each head's queries and keys a norm of their own before RoPE instead.)
#
# <details><summary>Hint 1</summary><code>repeat(k, "pos kv d -> pos (kv g) d", g=...)</code> gives every query head its keys.</details>
# <details><summary>Hint 2</summary><code>einsum(q, k, "q head d, k head d -> head q k")</code>.</details>
# <details><summary>Hint 3</summary>Scale first; then <code>cap * torch.tanh(scores / cap)</code>.</details>


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
# Where does the cap bite? Every score of one layer, before and after it; on the line nothing is changed:

# %%
capped_layer = model.n_layers // 2
before = t["scores", capped_layer].flatten()
seen = before.isfinite()
after = config.attn_cap * torch.tanh(before / config.attn_cap) if config.attn_cap else before
draw_points(
    {"a score": (before[seen], after[seen])},
    title=f"Scores of layer {capped_layer}: "
    + (f"no score leaves ±{config.attn_cap:g}" if config.attn_cap else "no soft cap here"),
    x="before the soft cap",
    y="after it",
    equal=True,
)

# %% [markdown]
# ## 2.2 The window
#
# In a **local** layer a query sees the latest `window` keys, its own included. In a **global** layer it sees all keys up to its
# own. Here is a longer prompt:

# %%
longer = gs.trace(prompt + " Mary. " + prompt, model=model)
for name, run in (("the prompt above", t), ("twice as long", longer)):
    print(f"{name}: {len(run)} tokens, so the window cuts {'something' if len(run) > config.window else 'nothing'}")

# %% tags=["picture"]
gs.attention_view(longer)

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/2_attention.png" alt="The pattern of a head of the first layer, a band along the diagonal, and its heads in small"></details>
#
# <details><summary>What you should see</summary>Where the window is shorter than the prompt, local layers have a band along the
# diagonal; global layers reach back to the start.</details>
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

# %% [markdown]
# **Exercise 2.2** (6 minutes, ●●○) Draw that band: which keys does each query of a local layer see?
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

# %% [markdown]
# ## 2.3 Heads by what they do
#
# Take some random tokens and write them twice in a row: `A B C A B C`. At the second `A` a model can know what comes next, if one
# of its heads finds the first `A` and looks at the token *after* it. Such a head is an **induction head**. A simpler kind looks
# at the **previous token**. The bluer a head below, the more of its attention goes there; the number is its **score**.

# %%
previous = gs.head_scores(model, kind="previous_token")
previous.plot()

# %%
scores = gs.head_scores(model, kind="induction")
scores.plot()

# %%
scores

# %% [markdown]
# **Exercise 2.3** (10 minutes, ●●●) Compute the induction score of each head yourself.
#
# <details><summary>Hint 1</summary>With half = 3 the prompt is <code>&lt;bos&gt; A B C A B C</code>, positions 0 to 6. The query at 4 (the
# second A) should read position 2 (the B that followed the first A).</details>
# <details><summary>Hint 2</summary>How far back is that, in terms of half?</details>
# <details><summary>Hint 3</summary>Take the mean over the queries of the second copy only.</details>


# %% tags=["exercise"]
def induction_scores(pattern, half: int):
    """Mean attention from each token of the second copy to the token that followed it in the first copy.

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

# %% [markdown]
# ## 2.4 What a head reads
#
# The pattern says *where* a head reads. *What* it reads are the **values** at those positions (`v`, each position's own), added up
# with the pattern as weights. The result is called `z`.
#
# **Exercise 2.4** (8 minutes, ●●○) Compute `z` from the pattern and the values.
#
# <details><summary>Hint 1</summary>The sum is over keys.</details>
# <details><summary>Hint 2</summary>Values have kv heads. Give each query head its own, as you did with the keys.</details>


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
# ## 2.5 How far back?
#
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
# The summary of attention has that distance for all heads at once:

# %%
gs.attention_summary(t).plot("distance")

# %% [markdown]
# ## 2.6 Does it need to look far back?
#
# Local layers save memory. Could all layers be local? Here is a task in which it should matter: something is said at the
# beginning, and asked for at the end.

# %%
asked = gs.prompts.recall(8, 3, model.tokenizer)
far = [question for question in asked if len(model.ids(question.clean)) > config.window + 1]
print(asked[0].clean, "->", asked[0].answer)
print(f"{len(far)} of {len(asked)} such prompts are longer than the window of {config.window}")

# %% [markdown]
# In each of the longer prompts we cut what global layers see down to the window of the local ones; `<bos>` stays in sight.
# Nothing else changes. Information could still be handed on, from layer to layer, a window at a time.

# %%
guess = predict(
    "2.6",
    "The model answers all of the longer prompts correctly. With global layers as short-sighted as local ones, how many?",
    ["still all of them", "some of them", "none"],
)
guess


# %%
def short_sighted(n_pos: int) -> list:
    """Edits that keep the queries of global layers from seeing further back than those of local layers."""
    return [
        gs.knockout(layer=layer, q_pos=q, k_pos=slice(1, q - config.window + 1))
        for layer, kind in enumerate(config.kinds)
        if kind == "global"
        for q in range(config.window + 1, n_pos)
    ]


def n_right(edits_of) -> int:
    """How many of the longer prompts have their answer as the likeliest next token."""
    runs = [gs.trace(question.clean, model=model, edits=edits_of(len(model.ids(question.clean)))) for question in far]
    return sum(run.top(1)[0][0] == question.answer for run, question in zip(runs, far, strict=True))


if far:
    kept = n_right(short_sighted)
    print(f"right of {len(far)}: {n_right(lambda n_pos: [])} as it is, {kept} with short-sighted global layers")
    print(guess.reveal("still all of them" if kept == len(far) else "none" if kept == 0 else "some of them"))
else:
    print(f"none of these {len(asked)} prompts is longer than the window of {config.window}: there is nothing to cut")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Its window is far longer than these prompts. Notebook 7 makes a longer one.
#
# ```text
# none of these 8 prompts is longer than the window of 512: there is nothing to cut
# ```
#
# </details>

# %% [markdown]
# ## Conclude

# %%
mine = claim(
    "2",
    "The best induction head sits in a later layer than the best previous-token head, because it needs what that head wrote.",
)
mine

# %% tags=["written"]
mine.write(
    "The order can be seen in the two plots. That it needs it, they do not show: I would silence the earlier head and look."
)

# %% [markdown]
# The first half of the claim is about order, the second about need. The scores decide on the order. For the need, silence the
# previous-token head, and see what is left of the induction head's attention:


# %%
def best(array):
    """The strongest head of an array [layer, head], as (layer, head, score)."""
    layer, head = divmod(int(array.values.argmax()), array.sizes["head"])
    return layer, head, float(array.values.max())


first, second = best(previous.scores), best(scores.scores)
print(
    f"previous token: layer {first[0]} head {first[1]} ({first[2]:.2f}); induction: layer {second[0]} head {second[1]} ({second[2]:.2f})"
)

half = 12
words = torch.randperm(config.vocab_size - 300, generator=torch.Generator().manual_seed(0))[:half] + 300
twice = [config.bos_id, *words.tolist(), *words.tolist()]


def attention_to_what_followed(edits) -> float:
    """The induction score of the best induction head, on random tokens written twice, in a run with edits."""
    pattern = gs.trace(twice, model=model, edits=edits)["pattern", second[0]][second[1]]
    return float(torch.stack([pattern[q, q - half + 1] for q in range(1 + half, len(twice))]).mean())


whole, cut = attention_to_what_followed([]), attention_to_what_followed([gs.ablate("z", layer=first[0], head=first[1])])
print(f"the induction head's score is {whole:.2f}, and {cut:.2f} when the previous-token head is silenced")
order = "the order is as the claim has it" if first[0] < second[0] else "the order is not as the claim has it"
print(order)
print(mine.verdict(f"{order}; the need is {'borne out' if cut < whole / 2 else 'refuted'}"))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# The same order. The three best induction heads stand in global layers, as nano's best one
# does. The need is refuted: with the best previous-token head silenced, the best induction head does its work as before.
#
# ```text
#    0.832  layer 5 head 1
#    0.569  layer 11 head 2
#    0.552  layer 5 head 2
# previous token: layer 2 head 3 (0.66); induction: layer 5 head 1 (0.83)
# the order is as the claim has it
# the induction head's score is 0.68, and 0.70 when the previous-token head is silenced
# ```
#
# </details>

# %%
check.summary(2)
