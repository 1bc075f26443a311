# %% [markdown]
# # 4 · The patching lab: find the circuit
#
# **You will** find the heads that let the model name the right person, first by looking in the patching lab, then by numbers;
# find the paths between them; put your circuit to the test; and see what each of its heads does. At the end, you ask a question
# of your own.
#
# **Time:** 80 minutes: the lab 15, heads 15, paths 10, the test 15, what they do 15, your own pair 10.

# %%
MODEL = "nano"

# %%
from collections import defaultdict

import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, draw_reading, measure_pair, predict

model = gs.load(MODEL)
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"
answer, other = " Mary", " John"

# %% [markdown]
# ## 4.1 Look first
#
# Two prompts, an answer each, and a grid: every cell is a place where the clean run can be patched into the corrupted one. Click a
# cell to see what its patch does; the arrow keys and Enter do the same. Which cells bring the answer back? Then click *the residual
# stream* in the sentence above the grid and choose `z`, what heads read: the grid is now layer by head. Which heads would you put
# on your list?

# %%
lab = gs.patching_lab(clean, corrupt, answer, other, model=model)
lab

# %% [markdown]
# Everything that the lab shows can be had in Python too: `lab.run()` computes every cell, and `lab.result` is what a sweep gives.

# %%
lab.run()
lab.result

# %% [markdown]
# ## 4.2 Heads, over many pairs
#
# One pair of prompts may mislead. `gs.prompts.ioi` draws pairs of the same kind with other names, places and things (*ioi* stands
# for indirect object identification: naming the person who is given something). A sweep over pairs of one length gives the mean
# effect, which the picture shows as a share of the mean gap.

# %%
drawn = defaultdict(list)
for pair in gs.prompts.ioi(120, 1, model.tokenizer):
    drawn[len(model.ids(pair.clean))].append(pair)
pairs = max(drawn.values(), key=len)[:12]
print(f"{len(pairs)} pairs of {len(model.ids(pairs[0].clean))} tokens, such as:\n{pairs[0]}")

# %% tags=["picture"]
metrics = [gs.logit_diff(pair.answer, pair.against) for pair in pairs]  # each pair has names of its own
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

# %% [markdown]
# **Exercise 4.1** (5 minutes, ●○○) List the k heads with the strongest effect, for or against the answer.
#
# <details><summary>Hint 1</summary><code>effect.flatten().abs().argsort(descending=True)</code>.</details>
# <details><summary>Hint 2</summary><code>divmod(n, n_heads)</code> turns a flat number into (layer, head).</details>


# %% tags=["exercise"]
def strongest(effect, k: int) -> list:
    """effect: a tensor [layer, head]. Returns k pairs (layer, head), in any order."""
    raise NotImplementedError


# %% tags=["solution"]
def strongest(effect, k: int) -> list:
    flat = effect.flatten().abs().argsort(descending=True)[:k]
    return [divmod(int(n), effect.shape[1]) for n in flat]


# %% tags=["check"]
check.ex_4_1(strongest)

# %%
# The heads that each restore at least a twentieth of the gap.
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
# In nano, the first of these heads is in an earlier layer than the others, and restores everything by itself. Perhaps it tells the
# others something. A **path sweep** patches one head, and lets the change reach only the receivers that you choose, such as the queries
# of later heads. All other heads keep the values that they had; the MLPs on the way compute anew.

# %%
guess = predict(
    "4.3",
    "Later heads name the person, and the strongest head before them tells them something. What does it change in them?",
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

# %% [markdown]
# ## 4.4 The test
#
# A circuit is a claim: *these heads are enough, and without them the model cannot do it.* Both halves can be tested:
#
# * silence all **other** heads: the answer should stay;
# * silence the **circuit**: the answer should go.
#
# **Exercise 4.2** (10 minutes, ●●○) Run a prompt with every head outside a circuit silenced: what it reads becomes zero.
#
# <details><summary>Hint 1</summary><code>gs.ablate("z", layer=..., head=[...])</code> writes zeros for several heads of a layer.</details>
# <details><summary>Hint 2</summary>One edit for each layer that has heads outside the circuit.</details>


# %% tags=["exercise"]
def only(model, prompt, circuit) -> gs.Trace:
    """The run of a prompt in which only the circuit's heads read anything.

    circuit: a list of pairs (layer, head). Returns a trace.
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

# %% [markdown]
# Zero is a crude way to silence a head: it never reads zero, and the layers after it may go astray. Fairer is its mean over prompts
# of the same kind, position by position. That leaves what all these prompts have in common, and takes away what tells them apart:

# %%
every = [(layer, head) for layer in range(model.n_layers) for head in range(model.config.n_heads)]


def both_versions(pairs) -> list:
    """The runs of both prompts of every pair."""
    return gs.trace([text for pair in pairs for text in (pair.clean, pair.corrupt)], model=model)


def silenced(heads, pairs) -> float:
    """The mean logit difference over pairs of one length, with these heads at their mean over both versions of each pair."""
    runs = both_versions(pairs)
    edits = []
    for layer in sorted({layer for layer, _ in heads}):
        these = [head for at, head in heads if at == layer]
        mean = torch.stack([run["z", layer] for run in runs]).mean(0)
        edits.append(gs.patch("z", mean[:, these], layer=layer, head=these))
    traces = gs.trace([pair.clean for pair in pairs], model=model, edits=edits)
    differences = [gs.logit_diff(pair.answer, pair.against)(run) for run, pair in zip(traces, pairs, strict=True)]
    return sum(differences) / len(differences)


def verdict(circuit, pairs) -> tuple[float, float]:
    """What is left of the logit difference with the circuit alone, and without it."""
    whole = silenced([], pairs)
    alone = silenced([head for head in every if head not in circuit], pairs) / whole
    without = silenced(circuit, pairs) / whole
    print(f"{len(circuit)} heads: alone they keep {alone:.0%} of the logit difference; without them {without:.0%} is left")
    return alone, without


_ = verdict(found, pairs)

# %% [markdown]
# Without these heads the answer is gone. But they are not enough. Why? A patch shows what *differs* between the two prompts. A head
# that does the same useful thing in both does not show up. To find such heads, silence one at a time:

# %%
without_one = gs.sweep([pair.clean for pair in pairs], None, metrics, site="z", by=("layer", "head"),
                       ablate="mean_by_pos", reference=both_versions(pairs), model=model, progress=False)  # fmt: skip
need = {head: -float(without_one.effect[head]) / without_one.clean for head in every}
needed = [head for head in every if need[head] > 0.02]
for head in sorted(needed, key=lambda head: -need[head]):
    print(f"head {head[0]}.{head[1]}: without it {need[head]:.0%} of the difference is lost")

# %%
circuit = sorted({*found, *needed})
print("the circuit:", ", ".join(f"{layer}.{head}" for layer, head in circuit))
_ = verdict(circuit, pairs)

# %% [markdown]
# <details><summary>What you should see</summary>The first set destroys the answer when it is silenced, and is not enough on its
# own. With the heads that both prompts need, the circuit alone keeps most of the difference, or all of it.</details>
#
# <details><summary>On a real Gemma</summary>
#
# A quarter of all heads. Alone they do it better than the whole model, because heads outside write against the answer; without
# them the other name is preferred.
#
# ```text
# 18 heads: alone they keep 154% of the logit difference; without them -57% is left
# head 11.3: without it 43% of the difference is lost
# head 4.1: without it 23% of the difference is lost
# ```
#
# </details>

# %% [markdown]
# ## 4.5 What do they do?
#
# We know *that* these heads are needed, and not yet what any of them does. The answer has to be worked out at the last position,
# so ask where each head of the circuit looks from there.

# %%
reads = predict(
    "4.5",
    f"Where does head {strong[0]}.{strong[1]}, the strongest of the early ones, look from the last position?",
    ["at the name to answer", "at the other name, where it is repeated", "at the other name, where it comes first"],
)
reads

# %%
t = gs.trace(clean, model=model)
draw_reading(t, circuit)

# %% [markdown]
# A row for each head, a dot for each token that it looks at from the last position. That is one prompt. The same over all pairs:
# attention to the *answer*, to the *other* name where it comes first, to it where it comes *again*, and to whichever of the two
# people is *named second*.


# %%
def name_places(run, pair) -> dict[str, int]:
    """Where the names are: the answer, the other name, and again; and whichever of the two is named second."""
    words = [token.strip() for token in run.tokens]
    said_once = words.index(pair.answer.strip())
    repeated = [position for position, word in enumerate(words) if word == pair.against.strip()]
    return {
        "answer": said_once,
        "other": repeated[0],
        "other again": repeated[1],
        "named second": max(said_once, repeated[0]),
    }


traces = gs.trace([pair.clean for pair in pairs], model=model)
places = [name_places(run, pair) for run, pair in zip(traces, pairs, strict=True)]


def mean_attention(runs, layer, head, place) -> float:
    """The mean attention of a head from the last position to one of these places."""
    return sum(float(run["pattern", layer][head, -1, at[place]]) for run, at in zip(runs, places, strict=True)) / len(places)


attention = {at: {place: mean_attention(traces, *at, place) for place in places[0]} for at in circuit}
print("attention to".ljust(12), *(f"{place:>13}" for place in places[0]))
for (layer, head), shares in attention.items():
    print(f"head {layer}.{head}".ljust(12), *(f"{share:>13.0%}" for share in shares.values()))
seen = list(attention[strong].values())[:3]
order = ["at the name to answer", "at the other name, where it comes first", "at the other name, where it is repeated"]
print(reads.reveal(order[seen.index(max(seen))]))

# %% [markdown]
# And what do they write? The share of each head in the logits, for the answer and against the other name:

# %%
wrote = gs.direct_logits(traces, [pair.answer for pair in pairs], against=[pair.against for pair in pairs], by="head")
direct = wrote.mean["parts"]
for layer, head in circuit:
    print(f"head {layer}.{head} writes {float(direct.sel(layer=layer, head=head)):+.2f} for the answer")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Three steps, by six heads of two layers:
#
# 1. Head **2.3** looks at the name that is repeated. It tells the last position: *this one has been mentioned twice*.
# 2. Head **2.2** looks at whichever name came second in the text, in both prompts alike. That is why no patch could find it.
# 3. Heads **3.0 to 3.3** use both to find the name that is left. They look at it, and write it into the logits.
#
# </details>

# %% [markdown]
# That is a story, and stories need a test. If it is true, the heads of step 3 should follow what they are told: with head 2.3
# reading the other name, they should look at the other person. So patch the strongest head, and look at the ones after it:

# %%
followers = [at for at in circuit if at[0] > strong[0] and attention[at]["answer"] > 0.2]
other_reading = gs.trace([pair.corrupt for pair in pairs], model=model)
misled = [
    gs.trace(pair.clean, model=model, edits=[gs.patch("z", source, layer=strong[0], head=strong[1])])
    for pair, source in zip(pairs, other_reading, strict=True)
]
for layer, head in followers:
    for words, runs in (("as it is", traces), (f"{strong[0]}.{strong[1]} misled", misled)):
        right, wrong = (mean_attention(runs, layer, head, place) for place in ("answer", "other"))
        print(f"head {layer}.{head}, {words}: {right:.0%} on the answer, {wrong:.0%} on the other name")
named = sum(run.top(1)[0][0] == pair.answer for run, pair in zip(misled, pairs, strict=True))
print(f"with head {strong[0]}.{strong[1]} misled, the model still names the right person in {named} of {len(pairs)} prompts")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# The same kinds of heads, in more layers, and less sharply. The strongest early head looks at the repeated name, as nano's does;
# 12.1, 13.3 and 17.2 look at the name to answer. But 11.3 writes for the answer by itself. When it is misled, 12.1 hardly follows,
# and half of the prompts are still answered: no single head holds it all together.
#
# ```text
# head 11.3               8%            6%           30%            9%
# head 12.1              38%           23%            2%           34%
# head 11.3 writes +4.58 for the answer
# head 12.1 writes +1.69 for the answer
# head 12.1, as it is: 38% on the answer
# head 12.1, 11.3 misled: 34% on the answer
# with head 11.3 misled, the model still names the right person in 7 of 12 prompts
# ```
#
# </details>

# %% [markdown]
# Try it yourself. **M** mutes a head, **S** mutes all others, and the slider makes it louder or quieter; the large number is the
# logit of the answer less that of the other name. Mute head 2.2, then 2.3, then one of layer 3. Which loss can the others make up
# for?

# %%
gs.head_lab(clean, answer, other, model=model, max_new_tokens=6)

# %% [markdown]
# ## Conclude
#
# You found this circuit on twelve pairs, and tested it on the same twelve. Does it hold for sentences that it was not made from?

# %%
mine = claim(
    "4",
    "On other sentences of another length, the circuit alone keeps at least 80% of the logit difference, and without it less than "
    "a tenth is left.",
)
mine

# %% tags=["written"]
mine.write(
    "It should hold: the heads look at names, wherever they stand. Less than 80% alone would mean that a head is missing."
)

# %%
fresh = defaultdict(list)
for pair in gs.prompts.ioi(120, 2, model.tokenizer):
    fresh[len(model.ids(pair.clean))].append(pair)
del fresh[len(model.ids(pairs[0].clean))]
others = max(fresh.values(), key=len)[:12]
print(f"{len(others)} pairs of {len(model.ids(others[0].clean))} tokens, such as:\n{others[0]}")
alone, without = verdict(circuit, others)
print(mine.verdict("borne out" if alone >= 0.8 and without < 0.1 else "refuted"))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# It holds there too.
#
# ```text
# 18 heads: alone they keep 160% of the logit difference; without them -49% is left
# ```
#
# </details>

# %% [markdown]
# ## Your own pair
#
# Now ask about something else. You need two prompts of equally many tokens that differ in a word or two, and the token that each
# should be answered with. nano knows names, capitals, colours, plurals, and what its training taught it; `gs.prompts.facts(5)`,
# `gs.prompts.agreement(5)` and `gs.prompts.pronouns(5)` show examples. Change all four:

# %%
yours = gs.prompts.Pair("The capital of France is", "The capital of Spain is", " Paris", " Madrid")
margin = measure_pair(yours, model)

# %% [markdown]
# What do you expect? Put a claim of your own in place of this one, and change the last line of the last cell so that it tests yours.

# %%
own = claim("own", "Up to the middle of the model, the answer is decided where the two prompts differ.")
own

# %% tags=["written"]
own.write("Yes: the city can only be read from the country, and it takes a few layers until the last position has it.")

# %%
gs.patching_lab(yours.clean, yours.corrupt, yours.answer, yours.against, model=model)

# %%
flow = gs.sweep(yours.clean, yours.corrupt, margin, site="resid_pre", model=model, progress=False).normalized
ids = model.ids(yours.clean).tolist(), model.ids(yours.corrupt).tolist()
differ = [position for position, (one, two) in enumerate(zip(*ids, strict=True)) if one != two]
there, last = flow.isel(pos=differ).sum("pos").values, flow.isel(pos=-1).values
print("restored where they differ, before each layer:  ", " ".join(f"{float(x):.0%}" for x in there))
print("restored at the last position, before each layer:", " ".join(f"{float(x):.0%}" for x in last))
middle = model.n_layers // 2
print(
    own.verdict(
        f"{'borne out' if min(there[: middle + 1]) > 0.5 else 'refuted'}: {float(there[middle]):.0%} before layer {middle}"
    )
)

# %%
check.summary(4)
