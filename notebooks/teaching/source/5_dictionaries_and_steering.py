# %% [markdown]
# # 5 · Dictionaries and steering
#
# **You will** take the stream apart into features that mean something, switch one off and see what the model says then; find a
# direction from contrasting prompts, and steer along it.
#
# **Time:** 60 minutes: features 20, changing one 15, directions 10, steering 15.
#
# A dictionary belongs to the model that it was trained on, and the one here was trained on nano: 5.1 and 5.2 stay with nano
# whatever `MODEL` is. Directions and steering follow `MODEL`. For the real Gemma 2, DeepMind's *Gemma Scope* has hundreds of
# dictionaries in the same format: `gs.load_sae("google/gemma-scope-2b-pt-res", layer=20, width="16k", l0=71)`.

# %%
MODEL = "nano"

# %%
import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, predict

model = gs.load(MODEL)
nano = gs.load("nano")
sae = gs.load_sae("nano", model=nano)
sae

# %% [markdown]
# ## 5.1 Features
#
# A **sparse autoencoder** writes each row of the stream as a sum of a few **features** out of a thousand. Look at a sentence about
# boxes first: which features are active at which token, and which of them carry a name? Click a row to see its feature, and a
# token to see which features it has.

# %%
text = "The boxes on the table"
t = gs.trace(text, model=nano)
features = sae.encode(t)
gs.sae_view(features)

# %% [markdown]
# <details><summary>What you should see</summary>A few features at each token. Some carry the name of a concept. The names were
# found afterwards, by measuring which features are active where the concept is, on texts that the training never saw.</details>

# %% [markdown]
# Other texts have other features:

# %%
texts = ["The capital of France is Paris.", "Anna has seven red boxes (and the old key).", "My sister went to the market."]
for each in texts:
    found = sae.encode(gs.trace(each, model=nano))
    print(each)
    for position in range(1, len(found)):
        concepts = dict.fromkeys(concept for _, _, concept in found.top(5, position) if concept)
        if concepts:
            print(f"  {found.tokens[position]!r:10} {'; '.join(concepts)}")

# %% [markdown]
# Each feature reads one number off the stream, and is active when that number is above a threshold of its own. This is called a
# *JumpReLU*: the number jumps from 0 to at least the threshold.
#
# **Exercise 5.1** (6 minutes, ●○○) Write the encoder that found these features.
#
# <details><summary>Hint 1</summary><code>x @ w_enc + b_enc</code> first.</details>
# <details><summary>Hint 2</summary>A number above the threshold stays as it is. All others become 0.</details>


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

# %% [markdown]
# ## 5.2 Change one
#
# At " boxes", the strongest feature stands for a plural right after "the". The verb comes three tokens later, and the noun just
# before it is a singular, "table". How does the model know that it has to say " are"?

# %%
at = features.tokens.index(" boxes")
plural, strength, concept = next(one for one in features.top(4, at) if one[2])
print(f"feature {plural} at {features.tokens[at]!r}: {strength:.1f} ({concept})")
for token, _, probability in t.top(3):
    print(f"{text} ...{token!r:8} {probability:.0%}")

# %%
guess = predict(
    "5.2",
    "Set this one feature to 0, and leave everything else as it is. What will the model say?",
    ["still: are", "is", "something else"],
)
guess

# %%
without = gs.trace(text, model=nano, edits=[gs.splice(sae, {plural: 0.0}, pos=at)])
for token, _, probability in without.top(3):
    print(f"{text} ...{token!r:8} {probability:.0%}")
said = without.top(1)[0][0]
print(guess.reveal("still: are" if said == " are" else "is" if said == " is" else "something else"))

# %% [markdown]
# How was that done? The features do not add up to the stream exactly; a part is left over, the **error**. Had we replaced the
# stream with the sum of the changed features, the error would be gone as well, and we would not know which of the two made the
# difference. So `gs.splice` keeps the stream, and adds to it only the *difference* between the changed sum and the old one.
#
# **Exercise 5.2** (8 minutes, ●●○) Compute the stream with one feature set to another value.
#
# <details><summary>Hint 1</summary>Write down both reconstructions, and subtract the old one from the new one.</details>
# <details><summary>Hint 2</summary>Everything that is in both cancels. What is left, is added to x.</details>


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
# Was that the only feature that matters here? A **feature sweep** sets each active feature to 0, one run each. The number is what
# that does to the logit of " are" less that of " is":

# %%
gs.feature_sweep(sae, text, gs.logit_diff(" are", " is"), model=nano)

# %% [markdown]
# ## 5.3 A direction
#
# There is a way to change a model without a dictionary. Take prompts of two kinds, and the stream of each at the same place. The
# difference of the two means is a **direction**: the simplest steering vector there is.
#
# **Exercise 5.3** (4 minutes, ●○○) Compute it.
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
# ## 5.4 Steer
#
# To **steer** is to add the direction to the stream, times a strength. The metric is the logit of " she" less that of " he". The
# **perplexity** says how surprised the model is by a text, here by the prompt: twice the perplexity is half the probability for
# each token.

# %%
prompt = "Peter was tired because"
she_less_he = gs.logit_diff(" she", " he")
steered = gs.strength_sweep(prompt, d, she_less_he, strengths=[-4, -2, -1, 0, 1, 2, 4], pos=1, model=model)
steered

# %%
once = float(steered.to_dataframe().set_index("strength")["metric"][1.0])
print(guess.reveal("yes" if once > 0 else "no"))

# %% tags=["picture"]
steered.plot()

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/5_dictionaries_and_steering.png" alt="The metric and the perplexity, by the strength of steering"></details>

# %% [markdown]
# Try it by hand: move the strength, and read what the model writes. Where does it change its mind, and does it ever stop making
# sense? (The lower curve is the perplexity of what the *unsteered* model would have written, with " he" in it. It is high where
# the steered model would write something else, nonsense or not: so read the text.)

# %%
gs.steer_lab(prompt, d, strengths=(-8.0, 8.0), pos=1, max_new_tokens=12, model=model, answer=" she", against=" he")

# %%
plain, pushed = (
    gs.generate(prompt, model=model, max_new_tokens=12, edits=edits)
    for edits in ([], [gs.add("resid_post", d.vector, layer=2, pos=1, scale=4.0)])
)
print("as it is:", prompt + plain.text)
print("steered: ", prompt + pushed.text)

# %% [markdown]
# Is steering free? In numbers: what each strength does to the metric, and what it costs in perplexity.

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

# %% [markdown]
# Adding a direction puts something in. The opposite is to take a direction out.
#
# **Exercise 5.4** (6 minutes, ●●○) Remove from every row the part that lies along a direction.
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
# ## Conclude
#
# The direction works. But does it work because of *where* it points?

# %%
mine = claim("5", "Any push of this length at the name would do: random directions raise ' she' just as much.")
mine

# %% tags=["written"]
mine.write(
    "I doubt it: the direction came from names of women and men. It is wrong if no random direction makes ' she' lead."
)

# %%
generator = torch.Generator().manual_seed(0)
raised = []
for _ in range(8):
    random = torch.randn(len(d.vector), generator=generator)
    random *= d.vector.norm().cpu() / random.norm()
    raised.append(she_less_he(gs.trace(prompt, model=model, edits=[gs.add("resid_post", random, layer=2, pos=1)])))
print(f"she less he: {frame['metric'][0.0]:+.2f} unsteered, {frame['metric'][1.0]:+.2f} with the direction")
print("with random directions of its length:", " ".join(f"{value:+.2f}" for value in raised))
lead = sum(value > 0 for value in raised)
print(mine.verdict(f"{'refuted' if lead < 4 else 'borne out'}: with {lead} of {len(raised)} random directions ' she' leads"))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Refuted there too. Random directions do something: each of them lowers the lead of " he" a little. None turns it round.
#
# ```text
# she less he: -4.89 unsteered, +4.63 with the direction
# with random directions of its length: -2.94 -1.91 -2.57 -1.35 -2.64 -3.58 -2.29 -1.00
# ```
#
# </details>

# %%
check.summary(5)
