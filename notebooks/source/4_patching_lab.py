# %% [markdown]
# # 4 · The patching lab: find the circuit
#
# **You will** find the heads that let the model name the right person, first by looking in the patching lab, then by numbers;
# find the paths between them; and put your circuit to the test.
#
# **Time:** 60 minutes: the lab 15, heads 15, paths 10, the test 20.

# %%
MODEL = "nano"

# %%
from collections import defaultdict

import torch

import gemmascope as gs
from gemmascope.workshop import check, predict

model = gs.load(MODEL)
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"
answer, other = " Mary", " John"

# %% [markdown]
# ## 4.1 Look first
#
# Two prompts, an answer each, and a grid. Press **Estimate** for a first picture, click a cell for its exact value, drag over
# a rectangle for all of it. Arrow keys move, Enter runs the cell, Escape clears. Change the site to `z` to look at heads.

# %%
lab = gs.patching_lab(clean, corrupt, answer, other, model=model)
lab

# %% [markdown]
# What the lab shows, you can have in Python as well: `lab.run()` computes every cell, `lab.result` is what a sweep gives.

# %%
lab.run()
lab.result

# %% [markdown]
# ## 4.2 Heads, over many pairs
#
# One pair of prompts may mislead. `gs.prompts.ioi` draws pairs of the same kind with other names, places and things; a sweep
# over pairs of one length gives the mean effect.

# %%
drawn = defaultdict(list)
for pair in gs.prompts.ioi(120, 1, model.tokenizer):
    drawn[len(model.ids(pair.clean))].append(pair)
pairs = max(drawn.values(), key=len)[:12]
print(f"{len(pairs)} pairs of {len(model.ids(pairs[0].clean))} tokens, such as:\n{pairs[0]}")

# %% tags=["picture"]
metrics = [gs.logit_diff(pair.answer, pair.against) for pair in pairs]
heads = gs.sweep(
    [pair.clean for pair in pairs],
    [pair.corrupt for pair in pairs],
    metrics,
    site="z",
    by=("layer", "head"),
    model=model,
    progress=False,
)
heads.plot(normalized=True)

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/4_patching_lab.png" alt="What patching each head restores, the mean over pairs"></details>
#
# **Exercise 4.1** (5 minutes, ●○○) Name the k heads with the strongest effect, for or against.
#
# <details><summary>Hint 1</summary>`effect.flatten().abs().argsort(descending=True)`.</details>
# <details><summary>Hint 2</summary>`divmod(n, n_heads)` turns a flat number into (layer, head).</details>


# %% tags=["exercise"]
def strongest(effect, k: int) -> list:
    """effect: a tensor [layer, head]. Returns k pairs [layer, head], in any order."""
    raise NotImplementedError


# %% tags=["solution"]
def strongest(effect, k: int) -> list:
    flat = effect.flatten().abs().argsort(descending=True)[:k]
    return [list(divmod(int(n), effect.shape[1])) for n in flat]


# %% tags=["check"]
check.ex_4_1(strongest)

# %%
# The heads that each restore at least a twentieth of the gap; your function finds the same ones, strongest first.
share = heads.normalized
found = [(layer, head) for layer in range(share.sizes["layer"]) for head in range(share.sizes["head"])
         if abs(float(share[layer, head])) >= 0.05]  # fmt: skip
for layer, head in found:
    print(f"layer {layer} ({model.config.kinds[layer]}) head {head} restores {float(share[layer, head]):.0%}")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# More heads, in more layers, and several that work against the answer: patching them takes the run further from it.
#
# ```text
# layer 5 (global) head 2 restores 7%
# layer 10 (local) head 3 restores 15%
# layer 11 (global) head 3 restores 37%
# layer 15 (local) head 1 restores -43%
# layer 15 (local) head 2 restores 19%
# layer 15 (local) head 3 restores 19%
# layer 17 (global) head 2 restores -29%
# ```
#
# </details>

# %% [markdown]
# ## 4.3 Paths: who talks to whom?
#
# The strongest early head may write for the heads after it. A **path sweep** lets a head's change reach the answer through
# chosen receivers only: all other heads keep what they had, and the MLPs on the way compute anew.

# %%
guess = predict(
    "4.3",
    "The heads that name the person are told something by the strongest head before them. Through what?",
    ["their queries (where to look)", "their keys (what can be found)", "their values (what is copied)"],
)
guess

# %%
before = [at for at in found if at[0] < max(layer for layer, _ in found)]
strong = max(before, key=lambda at: float(share[at]))
later = sorted({layer for layer, _ in found if layer > strong[0]})
receivers = {
    "their queries (where to look)": "q",
    "their keys (what can be found)": "k",
    "their values (what is copied)": "v",
}
through = {}
for words, letter in receivers.items():
    path = gs.path_sweep(clean, corrupt, gs.logit_diff(answer, other), sender="z",
                         receiver=[(letter, layer, None) for layer in later], layer=[strong[0]], head=strong[1],
                         model=model, progress=False)  # fmt: skip
    through[words] = float(path.normalized.sel(layer=strong[0], head=strong[1]))
    print(f"head {strong[0]}.{strong[1]} through {words} in layers {later}: {through[words]:.0%} of the gap")
print(guess.reveal(max(through, key=lambda words: abs(through[words]))))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Values carry a little, and what later heads' queries are told goes against the answer. Most of what head 11.3 does, it writes
# into the logits itself: notebook 7 measures that.
#
# ```text
# head 11.3 through their queries (where to look) in layers [12, 13, 15, 17]: -26% of the gap
# head 11.3 through their keys (what can be found) in layers [12, 13, 15, 17]: -2% of the gap
# head 11.3 through their values (what is copied) in layers [12, 13, 15, 17]: 10% of the gap
# ```
#
# </details>
#
# ## 4.4 The test
#
# A circuit is a claim: *these heads are enough, and without them it cannot be done.* Both halves can be refuted:
#
# * silence all **other** heads: the answer should stay;
# * silence the **circuit**: the answer should go.
#
# To silence a head fairly, write its mean over prompts of the same kind (both versions of every pair), not zero.
#
# **Exercise 4.2** (10 minutes, ●●○) First with zeros: run a prompt with every head outside a circuit silenced.
#
# <details><summary>Hint 1</summary>`gs.ablate("z", layer=..., head=[...])` writes zeros for several heads of a layer.</details>
# <details><summary>Hint 2</summary>One edit for each layer that has heads outside the circuit.</details>


# %% tags=["exercise"]
def only(model, prompt, circuit) -> gs.Trace:
    """The run of a prompt in which only the circuit's heads read anything.

    circuit: pairs [layer, head]. Returns a trace.
    """
    raise NotImplementedError


# %% tags=["solution"]
def only(model, prompt, circuit) -> gs.Trace:
    kept = {tuple(pair) for pair in circuit}
    edits = []
    for layer in range(model.n_layers):
        others = [head for head in range(model.config.n_heads) if (layer, head) not in kept]
        if others:
            edits.append(gs.ablate("z", layer=layer, head=others))
    return gs.trace(prompt, model=model, edits=edits)


# %% tags=["check"]
check.ex_4_2(only)

# %%
every = [(layer, head) for layer in range(model.n_layers) for head in range(model.config.n_heads)]
reference = gs.trace([text for pair in pairs for text in (pair.clean, pair.corrupt)], model=model)
mean = [torch.stack([run["z", layer] for run in reference]).mean(0) for layer in range(model.n_layers)]


def silenced(heads) -> float:
    """The mean logit difference over all pairs with these heads at their mean, position by position."""
    by_layer = {layer: [head for at, head in heads if at == layer] for layer, _ in heads}
    edits = [gs.patch("z", mean[layer][:, these], layer=layer, head=these) for layer, these in by_layer.items()]
    traces = gs.trace([pair.clean for pair in pairs], model=model, edits=edits)
    one = model.tokenizer.single
    differences = [
        float(t.next_logits[one(p.answer)] - t.next_logits[one(p.against)]) for t, p in zip(traces, pairs, strict=True)
    ]
    return sum(differences) / len(differences)


whole = silenced([])


def verdict(circuit) -> tuple[float, float]:
    """What is left of the logit difference with the circuit alone, and without it."""
    alone = silenced([head for head in every if head not in circuit]) / whole
    without = silenced(circuit) / whole
    print(f"{len(circuit)} heads: alone they keep {alone:.0%} of the logit difference; without them {without:.0%} is left")
    return alone, without


verdict(found)
# %% [markdown]
# Without these heads the answer is gone. But are they enough? Patching shows where the *difference* between the two prompts
# flows. What both prompts need alike, such as finding out where names stand, it cannot show. Silence single heads to see
# what else is needed:

# %%
without_one = gs.sweep([pair.clean for pair in pairs], None, metrics, site="z", by=("layer", "head"),
                       ablate="mean_by_pos", reference=reference, model=model, progress=False)  # fmt: skip
need = {head: -float(without_one.effect[head]) / whole for head in every}
needed = [head for head in every if need[head] > 0.02]
for head in sorted(needed, key=lambda head: -need[head]):
    print(f"head {head[0]}.{head[1]}: without it {need[head]:.0%} of the difference is lost")

# %%
circuit = sorted({*found, *needed})
print("the circuit:", ", ".join(f"{layer}.{head}" for layer, head in circuit))
alone, without = verdict(circuit)

# %% [markdown]
# <details><summary>What you should see</summary>The first set destroys the answer when it is silenced, and is not enough on its
# own. With the heads that both prompts need, the circuit alone keeps most of the difference, or all of it.</details>
#
# ## Conclude
#
# *Claim:* "The model finds the indirect object with these heads: alone they keep at least 80% of the logit difference; without
# them less than a tenth is left." Both numbers stand above. Which would refute the claim, and does it?

# %%
verdict_said = "borne out" if alone >= 0.8 and without < 0.1 else "refuted"
print(f"{len(circuit)} of {len(every)} heads: alone {alone:.0%}, without {without:.0%}: the claim is {verdict_said}")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# A quarter of all heads. Alone they do it better than the whole model, because heads outside write against the answer; without
# them the other name is preferred.
#
# ```text
# head 11.3: without it 43% of the difference is lost
# head 4.1: without it 23% of the difference is lost
# 18 of 72 heads: alone 154%, without -57%: the claim is borne out
# ```
#
# </details>
