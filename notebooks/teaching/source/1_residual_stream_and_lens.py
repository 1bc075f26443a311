# %% [markdown]
# # 1 · The residual stream and the lens
#
# **You will** follow the residual stream from layer to layer, read it as if each layer were the last (the *logit lens*), and find
# out which parts of the model wrote the answer.
#
# **Time:** 45 minutes: the stream 10, the lens 20, who wrote it 15.

# %%
MODEL = "nano"

# %%
import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, draw_points, predict

model = gs.load(MODEL)
prompt = "When Mary and John went to the store, John gave a drink to"
answer, other = " Mary", " John"
t = gs.trace(prompt, model=model)
print(f"{len(t)} tokens through {model.n_layers} layers; the stream is {model.config.d_model} numbers at each token")

# %% [markdown]
# ## 1.1 The stream is a sum
#
# Each token has a row of numbers, the **residual stream**. Every layer reads it and adds to it twice: first attention, then the
# MLP. Nothing is ever overwritten. In Gemma 2 and 3, what a sublayer computes goes through a norm of its own before it is added
# (the *post-norm*). What is added is called `attn_out` and `mlp_out`; before that norm the same values are `attn_raw` and
# `mlp_raw`. The stream itself is `resid_pre` before a layer and `resid_post` after it.

# %%
layer = 2
after = t["resid_pre", layer] + t["attn_out", layer] + t["mlp_out", layer]
print("the stream after the layer less that sum:", float((t["resid_post", layer] - after).abs().max()))

# %% [markdown]
# **Exercise 1.1** (5 minutes, ●○○) What did a whole layer add?
#
# <details><summary>Hint 1</summary>Two sites, added.</details>
# <details><summary>Hint 2</summary><code>*_out</code>, not <code>*_raw</code>: only what went through the post-norm joins the stream.</details>


# %% tags=["exercise"]
def added_by(t, layer: int):
    """What a layer added to the stream. t: a trace. Returns a tensor [pos, d_model]."""
    raise NotImplementedError


# %% tags=["solution"]
def added_by(t, layer: int):
    return t["attn_out", layer] + t["mlp_out", layer]


# %% tags=["check"]
check.ex_1_1(added_by)

# %% [markdown]
# How much is that? The length of what each sublayer adds at the last position:

# %%
layers = range(model.n_layers)
lengths = {site: [float(t[site, layer][-1].norm()) for layer in layers] for site in ("attn_out", "mlp_out")}
draw_points(
    {site: (layers, of_site) for site, of_site in lengths.items()},
    title=f"What each layer adds to the stream at the last position, {t.tokens[-1]!r}",
    x="layer",
    y="length of what is added",
    lines=True,
)

# %% [markdown]
# ## 1.2 The lens: what would it answer now?
#
# After the last layer, a norm and the **unembedding** (a row of numbers for each token of the vocabulary) turn the stream into
# logits. Nothing stops us from doing the same with the stream after an *earlier* layer. That is the **logit lens**.

# %%
guess = predict(
    "1.2",
    f"From which layer on will the lens name {answer!r} at the last position?",
    [f"after layer {n}" for n in range(model.n_layers)] + ["never"],
)
guess

# %% [markdown]
# Look: a column for each token, a row for each layer. What does the model seem to think about before it names anybody?

# %%
gs.lens_view(t, answer=answer)

# %%
read = gs.lens(t, answer=answer)
ranks = read.answer_rank.isel(pos=-1).squeeze().values.tolist()
first = next((n for n in range(len(ranks)) if all(rank == 0 for rank in ranks[n:])), None)
print(f"rank of {answer!r} at the last position, layer by layer: {ranks}")
print(guess.reveal("never" if first is None else f"after layer {first}"))

# %% [markdown]
# `gs.lens` gives the same as numbers, with a plot:

# %% tags=["picture"]
read.plot()

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/1_residual_stream_and_lens.png" alt="The lens, layer by layer and position by position"></details>
#
# <details><summary>On a real Gemma</summary>
#
# The name comes at once, after layer 12 of 18, and stays. Before that, what the lens
# reads is no English: the lower layers of a real model do not write for the unembedding. The name's rank there says nothing:
# half of its 262,144 tokens would be chance.
#
# ```text
# rank of ' Mary' at the last position, layer by layer: [4516, 29533, 21865, 42939, 14081, 30459, 54562, 115796, 125906, 165082, 95631, 6099, 0, 0, 0, 0, 0, 0]
# 1.2: the numbers say 'after layer 12'
# ```
#
# </details>

# %% [markdown]
# **Exercise 1.2** (10 minutes, ●●○) Write the lens for one row of the stream. It takes three steps: the last norm, the
# unembedding, the soft cap.
#
# * Gemma's norm: `x / rms(x) * (1 + weight)`, where `rms(x)` is the root of the mean square (plus `eps`, inside the root).
# * The unembedding is the embedding again: a product with every token's row.
# * The soft cap squeezes logits into (-cap, cap), smoothly. (Gemma 3 has none: `model.config.final_cap` is `None` there.)
#
# <details><summary>Hint 1</summary><code>x.square().mean()</code> is the mean square.</details>
# <details><summary>Hint 2</summary><code>cap * torch.tanh(logits / cap)</code>.</details>


# %% tags=["exercise"]
def lens(x, weight, embedding, eps: float, cap: float):
    """The soft-capped logits read from one row of the stream.

    x: [d_model]. weight: of the last norm [d_model]. embedding: [vocab, d_model]. Returns a tensor [vocab].
    """
    raise NotImplementedError


# %% tags=["solution"]
def lens(x, weight, embedding, eps: float, cap: float):
    normed = x / (x.square().mean() + eps).sqrt() * (1 + weight)
    return cap * torch.tanh(embedding @ normed / cap)


# %% tags=["check"]
check.ex_1_2(lens)

# %% [markdown]
# ## 1.3 Who wrote the answer?
#
# At the last position, the stream is a sum of parts: the embedding, and what every sublayer (a layer's attention, or its MLP)
# added. How much did each of them add to the logit of " Mary", compared with " John"? These shares are called **direct logits**.
# Look at the growth of the answer first, then at the parts.

# %%
gs.stream_view(t, answer=answer, against=other)

# %%
wrote = gs.direct_logits(t, answer, against=other, by="sublayer")
wrote.plot()

# %%
heads = gs.direct_logits(t, answer, against=other, by="head")
heads.plot()

# %% [markdown]
# <details><summary>What you should see</summary>In nano, two tall bars, the attention of layer 3 and the MLP of layer 5, and many near
# nothing. In the second picture, all four heads of layer 3 are blue. The numbers are logits <i>before</i> the soft cap; the line below
# the title gives their sum before and after it. What is not drawn in the second picture is the embedding and the MLPs.</details>

# %% [markdown]
# How can a logit be divided among parts, when there is a norm in between? The norm divides the whole stream by one number, its
# root mean square, and multiplies each coordinate by a fixed gain. Take that one number from the whole stream, and apply both
# to every part: the results add up to exactly what the norm makes of the sum.
#
# **Exercise 1.3** (10 minutes, ●●○) You are given the parts of the stream. How much does each contribute along a direction, such
# as the difference of two tokens' unembeddings?
#
# <details><summary>Hint 1</summary>The root mean square is that of the <b>sum</b> of the parts. Compute it once.</details>
# <details><summary>Hint 2</summary>Test yourself: the contributions add up to the direction times the normed sum.</details>


# %% tags=["exercise"]
def contributions(parts, weight, direction, eps: float):
    """What each part wrote along a direction, through the last norm.

    parts: [part, d_model], which add up to the stream. weight: of the last norm [d_model]. direction: [d_model].
    Returns a tensor [part].
    """
    raise NotImplementedError


# %% tags=["solution"]
def contributions(parts, weight, direction, eps: float):
    whole = parts.sum(0)
    gain = (1 + weight) / (whole.square().mean() + eps).sqrt()
    return (parts * gain) @ direction


# %% tags=["check"]
check.ex_1_3(contributions)

# %%
wrote

# %% [markdown]
# ## Conclude
#
# You have seen who wrote the answer in two pictures: by sublayer, and by head.

# %%
mine = claim("1", "The answer is written by attention; the embedding and the MLPs together write less than half of it.")
mine

# %% tags=["written"]
mine.write(
    "True, I think: the tall bars are heads of one layer. It is wrong if the heads' sum is less than half of the total."
)

# %%
by = heads.parts.sum().item()
rest = heads.rest.sum().item()
print(f"all heads together: {by:+.2f}   embedding and MLPs: {rest:+.2f}   together: {heads.total:+.2f} (before the cap)")
print(mine.verdict(f"{'borne out' if by > (by + rest) / 2 else 'refuted'}: heads write {by / (by + rest):.0%} of it"))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Borne out: embedding and MLPs together write nothing for the name, though single MLPs
# do, for and against it. Two layers do most: 12, a local one, and 11, the global one before it.
#
# ```text
#   +4.497  layers.12.attn_out
#   +2.854  layers.11.attn_out
#   -1.626  layers.13.attn_out
# all heads together: +5.65   embedding and MLPs: -0.43   together: +5.22 (before the cap)
# ```
#
# </details>

# %%
check.summary(1)
