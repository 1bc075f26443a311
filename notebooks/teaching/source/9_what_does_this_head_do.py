# %% [markdown]
# # 9 · What does this head do?
#
# **You will** go from a score to a page to an experiment: find a head that stands out, look at the texts on which it writes
# most, say what it does, and test that on texts that played no part in saying it.
#
# **Time:** 40 minutes: a score 5, a page 15, an experiment 15, a real model 5. There are no exercises: change the head and look.

# %%
import gemmascope as gs
from gemmascope.workshop import claim, predict

model = gs.load("nano")

# %% [markdown]
# ## 9.1 A score
#
# One pass over random tokens, written twice in a row, says how much each head attends to what came after an earlier copy of the
# token that it stands on: *induction*.

# %%
scores = gs.head_scores(model, kind="induction")
scores.plot()

# %%
best = scores.scores.argmax(...)
LAYER, HEAD = (int(best[axis]) for axis in ("layer", "head"))
print(f"the strongest induction head is {LAYER}.{HEAD}: {float(scores.scores.max()):.2f}")

# %% [markdown]
# The score was taken on random tokens. On texts, the same head may do more, or something else.
#
# ## 9.2 Its page
#
# `gs.top_examples` runs many texts and keeps, for every head at once, the positions where it adds most to the stream: the length
# of `head_out`. Half of the texts are kept back for the experiment.

# %%
families = (gs.prompts.ioi, gs.prompts.facts, gs.prompts.agreement, gs.prompts.induction)
texts = [pair.clean for family in families for pair in family(80, 7, model.tokenizer)]
seen, kept_back = texts[::2], texts[1::2]
examples = gs.top_examples(seen, "head", layers=LAYER, model=model, k=12, around=(16, 4), progress=False)
examples.stats()

# %% [markdown]
# Before you open the page, guess: if this head only did induction, what would stand before the framed tokens?

# %%
predict(
    "9.2",
    "On texts, where does the head write most?",
    ["at a token that came before", "at a name", "at the end", "elsewhere"],
)

# %%
gs.head_page(LAYER, HEAD, examples, model=model)

# %% [markdown]
# Read the page in this order:
#
# 1. **Strongest**: which tokens are framed? What comes before them?
# 2. Change *its value there* to *where it looked*: which earlier token does the head look at from the framed one?
# 3. **Random sample**: is it quiet elsewhere, or does it always write something?
# 4. **Tokens that it raises**: are they the tokens that it looked at?
# 5. **Earlier heads that its keys read**: is there a head of the layers below that attends to the previous token?
#
# The strongest texts show one end of a head only. What it does at its median is in the random sample.

# %%
frame = examples.top(("head", LAYER, HEAD), 8)
frame[["value", "before", "token"]]

# %% [markdown]
# ## 9.3 An experiment
#
# The page suggests where the head matters: where it writes most. Here is that as a number. On the texts that were kept back, take
# the positions where the head writes most, and as many at random. Silence the head, and see how much worse the model's
# prediction of the next token becomes at both.

# %%
held = gs.top_examples(
    kept_back, ("head", LAYER, [HEAD]), model=model, k=40, sample=40, one_per_text=False, around=0, progress=False
)


def log_probability(text, edits=()):
    """The log probability that the model gives each token of a text from the second on, [pos - 1]."""
    t = gs.trace(text, model=model, edits=list(edits))
    return t.logits[:-1].log_softmax(-1).gather(1, t.ids[1:, None])[:, 0]


def cost(frame):
    """The nats that are lost at the token after each place, when the head is silenced there and everywhere before."""
    silent = [gs.ablate("z", layer=LAYER, head=HEAD)]
    lost = []
    for text, pos in zip(frame["text"], frame["pos"], strict=True):
        with_it, without = log_probability(kept_back[text]), log_probability(kept_back[text], silent)
        if pos < len(with_it):  # the last token has none after it
            lost.append(float(with_it[pos] - without[pos]))
    return sum(lost) / len(lost), len(lost)


strong, n_strong = cost(held.top(HEAD))
random, n_random = cost(held.sample(HEAD))
print(f"where it writes most: {strong:+.3f} nats at {n_strong} places")
print(f"at random places:     {random:+.3f} nats at {n_random} places")

# %% [markdown]
# A head can write a lot and not be needed: another may stand in for it, or the model may be sure anyway. Where the two numbers
# are alike, its length says little, and you need another score: `gs.direct_logits`, or a sweep.
#
# The same for all heads of the layer, over all positions: the loss on whole texts, with each head at its mean.

# %%
losses = gs.sweep(
    kept_back[:20],
    None,
    gs.loss(),
    site="z",
    by=("layer", "head"),
    layer=[LAYER],
    ablate="mean",
    reference=gs.trace(seen[:20], model=model),
    model=model,
    progress=False,
)
losses

# %% [markdown]
# ## 9.4 Pages of everything
#
# A folder of pages has an index that is searched by number, token and word. Open `pages/index.html` in a browser.

# %%
gs.save_pages(examples, "pages", model=model, progress=False)

# %% [markdown]
# From a shell: `gemmascope pages corpus.txt --heads 2,3 --sae nano --out pages`.
#
# ## 9.5 A real Gemma
#
# The same questions to Gemma 3 270M, if `GEMMASCOPE_REAL` names its file (notebook 7 says how to get one); without it, this says
# so. The texts are what the model itself writes.

# %%
import os

REAL = os.environ.get("GEMMASCOPE_REAL", "")
if REAL:
    real = gs.load(REAL)
    real_scores = gs.head_scores(real, kind="induction")
    place = real_scores.scores.argmax(...)
    at = tuple(int(place[axis]) for axis in ("layer", "head"))
    prompts = ["The history of the bridge", "A letter to a friend:", "The recipe for bread is", "def add(a, b):"]
    written = [
        gs.generate(one, model=real, max_new_tokens=60, temperature=0.7, seed=n).text for n, one in enumerate(prompts)
    ]
    whole = [one + more for one, more in zip(prompts, written, strict=True)]
    of_real = gs.top_examples(whole, ("head", at[0]), model=real, k=4, progress=False)
    print(f"the strongest induction head of {real.name} is {at[0]}.{at[1]}: {float(real_scores.scores.max()):.2f}")
    page = gs.head_page(*at, of_real, model=real)
else:
    page = None
    print("GEMMASCOPE_REAL names no file: this part is left out")
page

# %% [markdown]
# ## Conclude

# %%
mine = claim("9", "The head is needed more where it writes most than elsewhere.")
mine

# %% tags=["written"]
mine.write("Borne out, I think: at the strongest places it looks at what is to be repeated, and nothing else there says it.")

# %%
print(mine.verdict("borne out" if strong > random + 0.05 else "refuted: it is not needed more there"))
