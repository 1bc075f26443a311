# %% [markdown]
# # 0 · Set-up and tokens
#
# **You will** check that this machine is ready, see how text becomes tokens, run a first trace, and read a probability off
# the logits.
#
# **Time:** 20 minutes: set-up 5, tokens 10, a first trace 5.
#
# Everything here runs on *nano*, a small trained Gemma 2 inside the package: no network, no GPU. Notebooks 0 to 5 run on a
# real Gemma as well, with one line changed: the cell `MODEL = "nano"`. What then differs stands in boxes such as this one.
#
# <details><summary>On a real Gemma</summary>
#
# `MODEL = "google/gemma-3-270m"` or `"google/gemma-2-2b"` (log in to the hub, and
# accept the licence there first), a folder, or a GGUF file such as `MODEL = "gemma-3-270m-q4_k_m.gguf"`: notebook 7 says how
# to get one. What the boxes quote was printed by a Gemma 3 of 270M parameters, quantised to 4 bits; a test runs these
# notebooks on it and compares. Another file of the same model gives slightly other numbers.
#
# </details>

# %% [markdown]
# ## 0.0 Is everything there?
#
# One line for each thing, with its exact fix where something is missing.

# %%
from gemmascope.workshop import check, predict, setup

setup()

# %%
MODEL = "nano"

# %%
import gemmascope as gs

model = gs.load(MODEL)
model

# %% [markdown]
# ## 0.1 Text is tokens
#
# A model reads numbers. The tokenizer cuts a text into pieces it has numbers for; most words carry their leading space.
# Gemma puts `<bos>` in front of every text, and breaks down without it.

# %%
prompt = "When Mary and John went to the store, John gave a drink to"
t = gs.trace(prompt, model=model)
for position, (token, token_id) in enumerate(zip(t.tokens, t.ids.tolist(), strict=True)):
    print(f"{position:3} {token_id:5} {token!r}")

# %% [markdown]
# **Exercise 0.1** (2 minutes, ●○○) Where does a token stand? Positions are counted from 0, and `<bos>` is one of them.
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
# An **answer** is one token. Text that is several tokens, or has no leading space where the model expects one, is refused
# with what it splits into, rather than measured wrongly:

# %%
for text in (" Mary", " Mary went", "store"):
    try:
        print(f"{text!r:14} is token {model.tokenizer.single(text)}")
    except gs.GemmascopeError as error:
        print(f"{text!r:14} {error}")

# %% [markdown]
# ## 0.2 What comes next?
#
# The model's last act is a number for each token of its vocabulary, the **logits**, at every position. Their softmax is the
# distribution of the token that follows that position.

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
    print(f"{token!r:10} {probability:.3f}")
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
    return logits[-1].softmax(-1)[token_id]


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
#
# ## 0.3 Every value has a name
#
# A **site** is a named value of the forward pass, with axes that are always the same. Ask for one by its name and its layer.

# %%
for key in (("resid_post", -1), ("pattern", 1), ("z", 2), ("mlp_act", 0)):
    axes = " x ".join(gs.SITES[key[0]].axes)
    print(f"t{list(key)!s:22} {axes:22} {tuple(t[key].shape)}")

# %% [markdown]
# <details><summary>What you should see</summary>A line for each site: its axes in words, and their sizes. There is no batch
# axis. Heads of keys and values (`kv_head`) are fewer than heads of queries (`head`): some share.</details>
#
# ## Conclude
#
# *Claim:* "The model needs both names to answer: take the second 'John' away and it no longer knows whom to name."
# Run the cell. What does the number say about the claim?

# %%
changed = "When Mary and John went to the store, Mary gave a drink to"
metric = gs.logit_diff(" Mary", " John")
for text in (prompt, changed):
    logits = gs.trace(text, model=model).next_logits
    difference = metric.bind(model)(logits[None])[0]
    print(f"{text[38:]!r:32} logit of ' Mary' less that of ' John': {difference:+.2f}")

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
