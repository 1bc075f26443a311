# %% [markdown]
# # 3 · Patching: by hand, then a sweep
#
# **You will** change a run at one place and see what happens to the answer; then ask the same question at every layer and
# position at once.
#
# **Time:** 60 minutes: the idea 10, an edit by hand 15, with the package 10, sweeps 25.

# %%
MODEL = "nano"

# %%
import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, draw_points, predict

model = gs.load(MODEL)
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"
answer, other = " Mary", " John"
metric = gs.logit_diff(answer, other)
run, corrupted = gs.trace([clean, corrupt], model=model)
print(f"clean {metric(run):+.2f}   corrupted {metric(corrupted):+.2f}")

# %% [markdown]
# ## 3.1 The idea
#
# The two prompts differ in one token, and lead to opposite answers. The **metric** printed above says how far: the logit of
# " Mary" less that of " John", for the token that comes next. The first is the **clean** one, the second the **corrupted**
# one. A **patch** takes the value that the clean run had at one site, one layer and one position, puts it into the corrupted run
# there, and lets the run go on. If the clean answer comes back, what decides it passes through that place.
#
# **Exercise 3.1** (5 minutes, ●○○) Write the patch itself: the value with which the run goes on.
#
# <details><summary>Hint 1</summary>A copy of the value, with one row exchanged.</details>
# <details><summary>Hint 2</summary><code>value.clone()</code>, then write to it at <code>pos</code>.</details>


# %% tags=["exercise"]
def patched_value(value, clean, pos: int):
    """A run's value at a site, with one position as in the clean run.

    value, clean: [pos, d_model], of the run and of the clean run. Returns a tensor of that shape.
    """
    raise NotImplementedError


# %% tags=["solution"]
def patched_value(value, clean, pos: int):
    new = value.clone()
    new[pos] = clean[pos]
    return new


# %% tags=["check"]
check.ex_3_1(patched_value)

# %% [markdown]
# **Exercise 3.2** (8 minutes, ●●○) Do the same with the package: `gs.patch(site, source, layer=..., pos=...)` is an edit, and
# `gs.trace(prompt, model=model, edits=[...])` a run with edits. Patch the stream before a layer (`resid_pre`).
#
# <details><summary>Hint 1</summary>The source is the trace of the clean prompt; the prompt that is run is the corrupted
# one.</details>
# <details><summary>Hint 2</summary>Without <code>pos=</code> an edit is made at every position.</details>


# %% tags=["exercise"]
def patched_run(model, clean, corrupt, layer: int, pos: int):
    """The corrupted run with the clean stream before one layer, at one position. Returns a trace."""
    raise NotImplementedError


# %% tags=["solution"]
def patched_run(model, clean, corrupt, layer: int, pos: int):
    source = gs.trace(clean, model=model)
    return gs.trace(corrupt, model=model, edits=[gs.patch("resid_pre", source, layer=layer, pos=pos)])


# %% tags=["check"]
check.ex_3_2(patched_run)

# %%
guess = predict(
    "3.2",
    "The prompts differ at one position. Patched there before layer 0, how much of the answer comes back?",
    ["none of it", "about half", "all of it"],
)
guess

# %%
tokens = run.tokens
differs = next(n for n, (a, b) in enumerate(zip(tokens, corrupted.tokens, strict=True)) if a != b)
edit = gs.patch("resid_pre", run, layer=0, pos=differs)
back = gs.trace(corrupt, model=model, edits=[edit])
share = (metric(back) - metric(corrupted)) / (metric(run) - metric(corrupted))
print(f"they differ at position {differs}; patched there: {metric(back):+.2f}, {share:.0%} of the gap")
print(guess.reveal("all of it" if share > 0.9 else "none of it" if share < 0.1 else "about half"))

# %% [markdown]
# And before later layers? The same patch, before each layer in turn, at the changed position and at the last one:

# %%
layers = range(model.n_layers)
after_patch = {
    words: [
        metric(gs.trace(corrupt, model=model, edits=[gs.patch("resid_pre", run, layer=layer, pos=place)]))
        for layer in layers
    ]
    for words, place in (("patched at the changed position", differs), ("patched at the last position", -1))
}
draw_points(
    {words: (layers, values) for words, values in after_patch.items()},
    title="What one patch does to the answer",
    x="patched before layer",
    y="logit of ' Mary' less that of ' John'",
    lines=True,
    levels={"clean": metric(run), "corrupted": metric(gs.trace(corrupt, model=model))},
)

# %% [markdown]
# ## 3.2 A share of the gap
#
# A metric of +3 means little by itself. As a share of the gap between the two runs, it can be compared: 0 where the patch
# restored nothing, 1 where the answer is as sure as in the clean run.
#
# **Exercise 3.3** (4 minutes, ●○○) Compute that share.
#
# <details><summary>Hint 1</summary>The gap is the clean metric less the corrupted one.</details>


# %% tags=["exercise"]
def share_of_gap(patched, clean: float, corrupt: float):
    """patched: the metric of patched runs [layer, pos]; clean, corrupt: of those runs. Returns shares [layer, pos]."""
    raise NotImplementedError


# %% tags=["solution"]
def share_of_gap(patched, clean: float, corrupt: float):
    return (patched - corrupt) / (clean - corrupt)


# %% tags=["check"]
check.ex_3_3(share_of_gap)

# %% [markdown]
# ## 3.3 Everywhere at once
#
# Now patch the stream before every layer, at every position. This is called a **sweep**: every cell of the picture is a patched
# run of its own, and all of them share one pass through the model. The first picture has the *effect*, what the patch adds to the
# metric; the second has it as a share of the gap.

# %%
s = gs.sweep(clean, corrupt, metric, site="resid_pre", by=("layer", "pos"), model=model)
gs.sweep_view(s)

# %% tags=["picture"]
s.plot(normalized=True)

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/3_patching.png" alt="What patching the stream restores, layer by position"></details>
#
# <details><summary>What you should see</summary>Blue, the clean answer restored, at the position where the prompts differ, in the first layers; then at the
# last position, in the later ones; nearly nothing elsewhere. In between the information was carried from one to the other.
# Which layer does that?</details>

# %%
changed, last = s.normalized.isel(pos=differs).values, s.normalized.isel(pos=-1).values
for words, shares in (("changed", changed), ("last", last)):
    print(f"restored at the {words} position, before each layer:", " ".join(f"{round(100 * float(x))}%" for x in shares))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# The same picture, with more layers that only keep what they have. Layers 10 to 13 carry it; layer 11, a global one,
# does most.
#
# ```text
# restored at the changed position, before each layer: 100% 101% 101% 101% 101% 101% 101% 101% 101% 101% 99% 75% 43% 52% -2%
# restored at the last position, before each layer: 0% 0% 0% 0% 0% 0% 0% 0% 0% 0% 0% 28% 71% 65% 92% 92% 101% 101%
# ```
#
# </details>

# %% [markdown]
# **Exercise 3.4** (12 minutes, ●●●) Compute that picture yourself, with a loop: for every layer and position, the metric of the
# patched run less that of the corrupted run. The answers are given as token ids here.
#
# <details><summary>Hint 1</summary><code>gs.trace(...).next_logits</code> is <code>[vocab]</code>: take two of its numbers.</details>
# <details><summary>Hint 2</summary>Trace the clean prompt once, before the loops.</details>


# %% tags=["exercise"]
def sweep_by_hand(model, clean, corrupt, answer: int, other: int):
    """What patching the stream before every layer, at every position, changes. Returns a tensor [layer, pos]."""
    raise NotImplementedError


# %% tags=["solution"]
def sweep_by_hand(model, clean, corrupt, answer: int, other: int):
    def difference(trace):
        return float(trace.next_logits[answer] - trace.next_logits[other])

    source, start = gs.trace(clean, model=model), difference(gs.trace(corrupt, model=model))
    effect = torch.zeros(model.n_layers, len(source))
    for layer in range(model.n_layers):
        for pos in range(len(source)):
            edit = gs.patch("resid_pre", source, layer=layer, pos=pos)
            effect[layer, pos] = difference(gs.trace(corrupt, model=model, edits=[edit])) - start
    return effect


# %% tags=["check"]
check.ex_3_4(sweep_by_hand)

# %% [markdown]
# ## 3.4 Which heads carry it?
#
# Something moved the information from one position to the other, and only attention moves anything between positions. So patch
# what each head reads (`z`, notebook 2), one head at a time:

# %%
heads = gs.sweep(clean, corrupt, metric, site="z", by=("layer", "head"), model=model)
heads.plot(normalized=True)

# %%
heads

# %% [markdown]
# ## Conclude
#
# A patch shows that a head is enough to bring the answer back. Whether the model *needs* that head is another question.

# %%
mine = claim(
    "3",
    "One head moves the information from the changed name to the last position; without it the model cannot answer.",
)
mine

# %% tags=["written"]
mine.write(
    "I believe it: one cell is far darker than the others. If other heads stood in for it, the metric would stay above 0."
)

# %% [markdown]
# To decide it, give the strongest head in the **clean** run what it read in the corrupted one:

# %%
best = abs(heads.effect).stack(cell=("layer", "head")).idxmax().item()
without = gs.trace(clean, model=model, edits=[gs.patch("z", corrupted, layer=best[0], head=best[1])])
moved = float(heads.normalized.sel(layer=best[0], head=best[1]))
print(f"strongest: layer {best[0]} head {best[1]}, which moves the metric by {moved:+.0%} of the gap")
print(f"the clean run {metric(run):+.2f}; with that head's corrupted reading {metric(without):+.2f}")
print(mine.verdict(f"{'borne out' if metric(without) < 0 else 'refuted'} on this pair: the sign of the metric decides"))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Refuted, in two ways. The strongest head works *against* the answer: with its corrupted reading the clean run is surer than
# before. And what speaks for the answer is spread over several heads, none of which carries half of the gap.
#
# ```text
#   -4.176  layer 15, head 1
#   +3.661  layer 11, head 3
# strongest: layer 15 head 1, which moves the metric by -47% of the gap
# the clean run +5.22; with that head's corrupted reading +8.43
# ```
#
# </details>

# %%
check.summary(3)
