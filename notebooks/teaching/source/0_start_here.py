# %% [markdown]
# # 0 · Start here
#
# How does a language model work out the next word? In this workshop you take a small one apart and find the parts that do it.
#
# **You will**, in this notebook, check that this machine is ready, see how a notebook works here, cut text into tokens, run a
# first trace, and read a probability off the logits.
#
# **Time:** 20 minutes: set-up 5, tokens 10, a first trace 5.
#
# | notebook | the question it answers | minutes |
# |---|---|---|
# | **0 · Start here** | What goes in, and what comes out? | 20 |
# | [1 · The residual stream and the lens](1_residual_stream_and_lens.ipynb) | What would the model answer if it stopped early? | 45 |
# | [2 · Attention](2_attention.ipynb) | Where does each head look, and how far can it see? | 70 |
# | [3 · Patching](3_patching.ipynb) | Which places in the model decide the answer? | 60 |
# | [4 · The patching lab](4_patching_lab.ipynb) | Which six heads name the right person, and what does each do? | 80 |
# | [5 · Dictionaries and steering](5_dictionaries_and_steering.ipynb) | What does the stream say, in words, and can we change it? | 60 |
# | [6 · The true size](6_true_size.ipynb) | How does a model of 27 billion parameters fit on this machine? | 45 |
# | [7 · From nano to a real Gemma](7_from_nano_to_a_real_gemma.ipynb) | Does a real model do the same? | 90 |
# | [8 · Circuits](8_circuits.ipynb) | What did the answer read, and what did that read in turn? Is it true? | 85 |
# | [The heads of Gemma 2](heads_of_gemma_2.ipynb) | Everything that can be asked about a head; to look up | 45 |
# | [Porting from TransformerLens](porting_from_transformerlens.ipynb) | For those who bring an analysis of their own | 30 |
#
# Notebooks 1 to 4 build on each other. After them, take any.

# %% [markdown]
# ## How a notebook works here
#
# Run each cell with Shift-Enter, from top to bottom. You will meet four things:
#
# * **Look.** A picture or a lab comes first. Take half a minute to say what you see.
# * **Guess.** A question with answers to choose from. Click one *before* you run the cell below it. Being wrong is the useful
#   case.
# * **Exercise.** A function to write, in place of `raise NotImplementedError`. The cell below checks it on random inputs and
#   says what is wrong. Hints are folded; so is a link to the solution. You can leave an exercise out: nothing below needs it.
# * **Claim.** Every notebook ends with a statement. Write what you think of it; the verdict waits until you have. Some are false.
#
# *Run all* works too: it passes over what is still to be written, and the last cell lists it.

# %% [markdown]
# ## 0.0 Is everything there?
#
# One line for each thing; where something is missing, the line says how to mend it.

# %%
from gemmascope.workshop import check, claim, predict, setup

setup()

# %% [markdown]
# Everything runs on *nano*, a small trained Gemma 2 inside the package: no network, no GPU. Notebooks 0 to 5 run on a real Gemma
# as well. One line changes, the next one, and folded boxes like this one say what is different there:
#
# <details><summary>On a real Gemma</summary>
#
# `MODEL = "google/gemma-3-270m"` or `"google/gemma-2-2b"` (log in to the hub, and
# accept the licence there first), a folder, or a GGUF file such as `MODEL = "gemma-3-270m-q4_k_m.gguf"`: notebook 7 says how
# to get one. The numbers in these boxes were printed by a Gemma 3 of 270M parameters, quantised to 4 bits; a test runs these
# notebooks on it and compares. Another file of the same model gives slightly different numbers.
#
# </details>

# %%
MODEL = "nano"

# %%
import torch

import gemmascope as gs

model = gs.load(MODEL)
model

# %% [markdown]
# That line is the model's shape. Its words come up one at a time in the notebooks; the first that you need are *layers* and
# *vocabulary*.
#
# ## 0.1 Text is tokens
#
# A model reads numbers. The tokenizer cuts a text into pieces and gives each its number; most words keep the space before them.
# Gemma puts `<bos>` (*beginning of sequence*) in front of every text, and does not work without it. `gs.trace` runs the model on
# a text, and keeps the tokens with everything else that 0.3 names.

# %%
prompt = "When Mary and John went to the store, John gave a drink to"
t = gs.trace(prompt, model=model)
for position, (token, token_id) in enumerate(zip(t.tokens, t.ids.tolist(), strict=True)):
    print(f"{position:3} {token_id:5} {token!r}")

# %% [markdown]
# **Exercise 0.1** (2 minutes, ●○○) At which position is a token? Positions are counted from 0, and `<bos>` is one of them.
#
# <details><summary>Hint 1</summary>Python's lists can look for a value.</details>
# <details><summary>Hint 2</summary>Take the token as it is, with its space: " Mary" and "Mary" are two tokens.</details>


# %% tags=["exercise"]
def position_of(tokens: list[str], token: str) -> int:
    """The position of a token that occurs once.

    tokens: each token as text, '<bos>' first. token: as text, with its leading space. Returns a whole number from 0.
    """
    raise NotImplementedError


# %% tags=["solution"]
def position_of(tokens: list[str], token: str) -> int:
    return tokens.index(token)


# %% tags=["check"]
check.ex_0_1(position_of)

# %% [markdown]
# When we ask a model for an **answer**, we mean one token. Text that is several tokens, or lacks the space in front, is refused
# with a list of the pieces it splits into. Otherwise it would be measured wrongly, and nobody would notice:

# %%
for text in (" Mary", " Mary went", "store"):
    try:
        print(f"{text!r:14} is token {model.tokenizer.single(text)}")
    except gs.GemmascopeError as error:
        print(f"{text!r:14} {error}")

# %% [markdown]
# ## 0.2 What comes next?
#
# The last thing a model computes is a number for each token of its vocabulary, the **logits**, at every position. Their softmax
# is the probability of each token to come next.

# %%
guess = predict(
    "0.2",
    "After '... John gave a drink to', which token will this model find likeliest?",
    [" Mary", " John", " the", " her"],
)
guess

# %%
likeliest = t.top(5)
for token, _, probability in likeliest:
    print(f"{token!r:10} {probability:.3f}" if probability >= 0.001 else f"{token!r:10} below 0.001")
print(guess.reveal(likeliest[0][0]) if likeliest[0][0] in guess.choices else f"none of the choices: {likeliest[0][0]!r}")

# %% [markdown]
# **Exercise 0.2** (5 minutes, ●○○) Compute the probability of an answer yourself, from logits `[pos, vocab]`.
#
# <details><summary>Hint 1</summary>The answer comes after the last position.</details>
# <details><summary>Hint 2</summary>The softmax runs over the vocabulary: the last axis.</details>


# %% tags=["exercise"]
def probability_of(logits, token_id: int):
    """The probability of a token as the next one.

    logits: soft-capped logits, a tensor [pos, vocab]. token_id: a whole number. Returns one number between 0 and 1.
    """
    raise NotImplementedError


# %% tags=["solution"]
def probability_of(logits, token_id: int):
    return torch.softmax(logits[-1], -1)[token_id]


# %% tags=["check"]
check.ex_0_2(probability_of)

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# 270M knows the name, and is less sure of it:
#
# ```text
# ' Mary'    0.853
# ' the'     0.048
# ' his'     0.025
# ```
#
# </details>

# %% [markdown]
# ## 0.3 Every value has a name
#
# A **trace** holds everything that the model computed for a prompt. Each value has a name, its **site**, and axes that are always
# the same. Ask for one by its name and its layer.

# %%
for key in (("resid_post", -1), ("pattern", 1), ("z", 2), ("mlp_act", 0)):
    axes = " x ".join(gs.SITES[key[0]].axes)
    print(f"t{list(key)!s:22} {axes:22} {tuple(t[key].shape)}")

# %% [markdown]
# <details><summary>What you should see</summary>A line for each site: its axes in words, and their sizes. There is no batch
# axis. There are fewer heads of keys and values (<code>kv_head</code>) than heads of queries (<code>head</code>): some share.</details>

# %% [markdown]
# ## Conclude
#
# The prompt names John twice. Take the second "John" away, and put "Mary" there. What we measure is the **logit difference**: the
# logit of " Mary" less that of " John", for the token that comes next. Above 0 the model prefers Mary, below 0 John.

# %%
mine = claim("0", "The model needs both names: with the second 'John' changed into 'Mary', it no longer knows whom to name.")
mine

# %% tags=["written"]
mine.write("Wrong, I think: it will name John just as surely. The difference of the two logits must then turn negative.")

# %%
changed = "When Mary and John went to the store, Mary gave a drink to"
metric = gs.logit_diff(" Mary", " John")
differences = []
for text in (prompt, changed):
    differences.append(metric(gs.trace(text, model=model)))
    print(f"{text[38:]!r:32} logit of ' Mary' less that of ' John': {differences[-1]:+.2f}")
print(mine.verdict("refuted: it names the other person" if differences[1] < -1 else "borne out"))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# The same, with smaller numbers:
#
# ```text
# 'John gave a drink to'           logit of ' Mary' less that of ' John': +5.22
# 'Mary gave a drink to'           logit of ' Mary' less that of ' John': -3.61
# ```
#
# </details>

# %%
check.summary(0)
