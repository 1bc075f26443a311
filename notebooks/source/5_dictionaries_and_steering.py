# %% [markdown]
# # 5 · Dictionaries and steering
#
# **You will** take the stream apart into features that mean something, change one and see what that does; find a direction
# from contrasting prompts, and steer along it.
#
# **Time:** 60 minutes: features 20, splicing 15, directions 10, steering 15.
#
# A dictionary belongs to the model that it was trained on, and the one here was trained on nano: 5.1 and 5.2 stay with nano
# whatever `MODEL` is, directions and steering follow it. DeepMind's *Gemma Scope* has hundreds of dictionaries for the real
# Gemma 2, in the same format: `gs.load_sae("google/gemma-scope-2b-pt-res", layer=20, width="16k", l0=71)`.

# %%
MODEL = "nano"

# %%
import gemmascope as gs
from gemmascope.workshop import check, predict

model = gs.load(MODEL)
nano = gs.load("nano")
sae = gs.load_sae("nano", model=nano)
sae

# %% [markdown]
# ## 5.1 Features
#
# A sparse autoencoder writes a row of the stream as a sum of a few **features** out of many. A feature is on when what it
# reads is above its threshold: the *JumpReLU*.
#
# **Exercise 5.1** (6 minutes, ●○○) The encoder.
#
# <details><summary>Hint 1</summary>`x @ w_enc + b_enc` first.</details>
# <details><summary>Hint 2</summary>What is above the threshold goes through as it is; all else is 0.</details>


# %% tags=["exercise"]
def encode(x, w_enc, b_enc, threshold, b_dec):
    """Activations of features. x: [pos, d_model]. w_enc: [d_model, feature]. b_enc, threshold: [feature].

    b_dec: [d_model], of the decoder; given so that you can decide whether it has a place here. Returns [pos, feature].
    """
    raise NotImplementedError


# %% tags=["solution"]
def encode(x, w_enc, b_enc, threshold, b_dec):
    before = x @ w_enc + b_enc
    return before * (before > threshold)


# %% tags=["check"]
check.ex_5_1(encode)

# %%
t = gs.trace("When Mary and John went to the store, John gave a drink to", model=nano)
features = sae.encode(t)
features

# %%
gs.sae_view(features)

# %% [markdown]
# <details><summary>What you should see</summary>A few features at each token out of a thousand; several carry the name of a
# concept that they were found to stand for, measured on texts that the training never saw.</details>

# %%
texts = ["The capital of France is Paris.", "Anna has seven red boxes (and the old key).", "My sister went to the market."]
for text in texts:
    found = sae.encode(gs.trace(text, model=nano))
    named = [(found.tokens[p], concept) for p in range(1, len(found)) for _, _, concept in found.top(5, p) if concept]
    print(text, "->", ", ".join(f"{token.strip()!r}: {concept}" for token, concept in named[:6]))

# %% [markdown]
# ## 5.2 Change one
#
# A dictionary does not explain everything. To change a feature and nothing else, keep what it leaves over (the **error**): add
# the difference that the change makes.
#
# **Exercise 5.2** (8 minutes, ●●○) The stream with one feature set to another value.
#
# <details><summary>Hint 1</summary>New reconstruction less old one, added to x.</details>
# <details><summary>Hint 2</summary>What is in both reconstructions falls out.</details>


# %% tags=["exercise"]
def with_feature(x, acts, w_dec, b_dec, feature: int, to: float):
    """The stream with a feature set to a value, the dictionary's error kept.

    x: [d_model]. acts: [feature]. w_dec: [feature, d_model]. b_dec: [d_model]. Returns a tensor [d_model].
    """
    raise NotImplementedError


# %% tags=["solution"]
def with_feature(x, acts, w_dec, b_dec, feature: int, to: float):
    return x + (to - acts[feature]) * w_dec[feature]


# %% tags=["check"]
check.ex_5_2(with_feature)

# %% [markdown]
# `gs.splice(sae, {feature: value})` is that as an edit. A **feature sweep** takes each active feature out, one run each:

# %%
metric = gs.logit_diff(" Mary", " John")
swept = gs.feature_sweep(sae, t.ids, metric, model=nano)
swept

# %%
where, effect = swept.top(1)[0]
feature = int(where["feature"])
without = gs.trace(t.ids, model=nano, edits=[gs.splice(sae, {feature: 0.0})])
print(f"without feature {feature} ({where.get('concept') or 'no concept'}): {effect:+.2f} of {swept.base:+.2f}")
print("then the likeliest next tokens are", [token for token, _, _ in without.top(3)])

# %% [markdown]
# ## 5.3 A direction
#
# **Exercise 5.3** (4 minutes, ●○○) The simplest steering vector there is.
#
# <details><summary>Hint 1</summary>Two means, one difference.</details>


# %% tags=["exercise"]
def direction(positive, negative):
    """The direction from negative to positive cases. positive: [case, d_model], negative: likewise. Returns [d_model]."""
    raise NotImplementedError


# %% tags=["solution"]
def direction(positive, negative):
    return positive.mean(0) - negative.mean(0)


# %% tags=["check"]
check.ex_5_3(direction)

# %%
women = ["Mary", "Anna", "Susan", "Karen", "Heather", "Nora", "Laura", "Alice", "Emma", "Julia"]
men = ["John", "Paul", "Robert", "Martin", "Brian", "David", "James", "Henry", "Thomas", "Mark"]
d = gs.direction([f"Yesterday {name}" for name in women], [f"Yesterday {name}" for name in men], layer=2, model=model)
d

# %%
guess = predict(
    "5.3",
    "Peter is in neither list. With the direction added once at his name, will 'Peter was tired because' go on with ' she'?",
    ["yes", "no"],
)
guess

# %% [markdown]
# **Exercise 5.4** (6 minutes, ●●○) The opposite of adding: take a direction out of every row.
#
# <details><summary>Hint 1</summary>How much of the direction is in a row: a product, over the direction's squared length.</details>


# %% tags=["exercise"]
def without_direction(x, direction):
    """Rows without their part along a direction. x: [pos, d_model]. direction: [d_model], of any length. Returns [pos, d_model]."""
    raise NotImplementedError


# %% tags=["solution"]
def without_direction(x, direction):
    along = x @ direction / (direction @ direction)
    return x - along[:, None] * direction


# %% tags=["check"]
check.ex_5_4(without_direction)

# %% [markdown]
# ## 5.4 Steer

# %%
prompt = "Peter was tired because"
steered = gs.strength_sweep(prompt, d, gs.logit_diff(" she", " he"), strengths=[-4, -2, -1, 0, 1, 2, 4], pos=1, model=model)
steered

# %%
once = float(steered.to_dataframe().set_index("strength")["metric"][1.0])
print(guess.reveal("yes" if once > 0 else "no"))

# %% tags=["picture"]
steered.plot()

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/5_dictionaries_and_steering.png" alt="The metric and the perplexity, by the strength of steering"></details>

# %%
plain, pushed = (
    gs.generate(prompt, model=model, max_new_tokens=12, edits=edits)
    for edits in ([], [gs.add("resid_post", d.vector, layer=2, pos=1, scale=4.0)])
)
print("as it is:", prompt + plain.text)
print("steered: ", prompt + pushed.text)

# %% [markdown]
# ## Conclude
#
# *Claim:* "Steering is free: it changes what we want and nothing else." The sweep has two curves, the metric and the
# perplexity. Which of them refutes or supports the claim, and where?

# %%
frame = steered.to_dataframe().set_index("strength")
cost = frame["perplexity"] / frame["perplexity"][0.0] - 1
for strength in frame.index:
    print(
        f"strength {strength:+.0f}: she less he {frame['metric'][strength]:+6.2f}, perplexity {cost[strength]:+.0%} of the unsteered"
    )

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# The direction works there too, added once at the name, and a strength of 1 costs
# nothing; 4 costs a third. Backwards it hardly moves the metric: without it the model says " he" already.
#
# ```text
# 5.3: the numbers say 'yes'
# steered:  Peter was tired because she was tired.
# strength -4: she less he  -3.84, perplexity -1% of the unsteered
# strength +0: she less he  -4.89, perplexity +0% of the unsteered
# strength +1: she less he  +4.63, perplexity -2% of the unsteered
# strength +4: she less he  +4.57, perplexity +34% of the unsteered
# ```
#
# </details>
