# %% [markdown]
# # 8 · Circuits: attribution graphs
#
# **You will** draw who gave what to whom in one run, check that it adds up, find the heads that carried it and ask why they
# looked there; find out in how many steps nano knows a fact; name a group of features, predict what the model says without
# them, and see how far such a graph can be believed.
#
# **Time:** 85 minutes: the graph 25, who carried it 10, facts 10, a group of features 20, is it true 10, edges 5, your own 5. A
# part about a real Gemma is optional.

# %%
import os

import torch

import gemmascope as gs
from gemmascope.workshop import check, claim, draw_points, measure_pair, predict

model = gs.load()
one = model.tokenizer.single
prompt = "When Mary and John went to the store, John gave a drink to"
answer, other = " Mary", " John"
t = gs.trace(prompt, model=model)

# %% [markdown]
# ## 8.1 Look first
#
# Patching asks what happens *if* a place is changed. An **attribution graph** asks about one run as it is: what did the answer
# read, and what did that read in turn, down to the words? Its nodes are the embeddings of the tokens; features of
# **transcoders**, dictionaries that read what an MLP reads and write what it writes; and the **errors** that these leave. An edge
# says how much one node gave to another.
#
# This becomes plain addition by *holding* two things at their values in the run: where every head looks, and what every norm
# divides by. Keep that in mind for 8.6.

# %%
guess = predict(
    "8.1",
    "What gives most to the output, the logit of ' Mary' less that of ' John'?",
    ["a feature at the last position", "the embedding of ' Mary'", "the embedding of the second ' John'"],
)
guess

# %%
size = predict(
    "8.1 size",
    "Nearly 1,000 features are active. Keep the fewest nodes that hold 80% of the influence: how many features are left?",
    ["about 320", "about 160", "about 60"],
)
size

# %%
graph = gs.attribution_graph(t, targets=gs.logit_diff(answer, other), progress=False)
small = graph.prune(nodes=0.8, edges=0.98)
gs.graph_view(small)

# %% [markdown]
# Click the output on top: beside it stands what it reads, and which heads carried each. Follow the strongest edge down, and move
# the slider. The same as numbers. There an embedding has the id `E_token_position`, a feature `layer_feature_position`, and an error
# is feature -1 of its layer:

# %%
whole, left = ((one_graph.nodes["kind"] == "feature").sum() for one_graph in (graph, small))
print(f"{left} of {whole} features and {len(small.edges):,} of {len(graph.edges):,} edges are left")
print(size.reveal(min(size.choices, key=lambda words: abs(int(words.split()[1]) - left))))


# %%
def output_of(graph) -> str:
    """The id of what a graph explains."""
    return graph.nodes.query("kind == 'logit'")["id"].iloc[0]


def strongest(graph, target: str, k: int = 6):
    """The k strongest edges into a node: from which node, at which token, how much."""
    edges = graph.edges[graph.edges["target"] == target].drop(columns="target")
    edges = edges.merge(graph.nodes[["id", "kind", "layer", "token"]], left_on="source", right_on="id").drop(columns="id")
    return edges.sort_values("weight", key=abs, ascending=False).head(k)


output = output_of(graph)
top = strongest(graph, output)
kind, token = top.iloc[0]["kind"], top.iloc[0]["token"]
print(guess.reveal(guess.choices[0 if kind == "feature" else 1 if token == answer else 2]))
top

# %% [markdown]
# **Every row adds up.** What a node reads is the sum of the edges into it. One node of a graph, `bias`, stands for all biases and
# for what was written at `<bos>`; where edges have been pruned, their sum is kept as `rest`.
#
# **Exercise 8.1** (4 minutes, ●○○) Add up what a node reads.
#
# <details><summary>Hint 1</summary>`edges[edges["target"] == target]` are the edges into it.</details>
# <details><summary>Hint 2</summary>Signs matter, and so does what is not listed.</details>


# %% tags=["exercise"]
def read_by(edges, rest: float, target: str) -> float:
    """What a node reads.

    edges: a table with the columns target, source, weight; the bias node is among the sources. rest: the sum of the edges into
    this node that are not in the table. target: the node's id. Returns a number.
    """
    raise NotImplementedError


# %% tags=["solution"]
def read_by(edges, rest: float, target: str) -> float:
    return edges[edges["target"] == target]["weight"].sum() + rest


# %% tags=["check"]
check.ex_8_1(read_by)

# %% [markdown]
# Does the sum meet what the model computed? `sums` has both, for every row of the pruned graph:

# %%
sums = small.sums
print("the largest difference:", float((sums["sum"] - sums["input"]).abs().max()))
raw = t["logits_raw"][-1]
read = float(sums[sums["target"] == output]["input"].iloc[0])
print(
    f"the output reads {read:.3f}; logits of the run, before the soft cap: {float(raw[one(answer)] - raw[one(other)]):.3f}"
)

# %% [markdown]
# How was the graph pruned? Each node shares out its own weight among what it reads, in proportion to the edges' sizes; so does
# each of those, and so on. What arrives at a node over all paths is its **influence**.
#
# **Exercise 8.2** (10 minutes, ●●●) Compute it.
#
# <details><summary>Hint 1</summary>Divide the sizes in each row by their sum. A row of zeros stays as it is.</details>
# <details><summary>Hint 2</summary>`counts @ shares` is what arrives over one edge. Then take that one edge further.</details>
# <details><summary>Hint 3</summary>No path has more edges than there are nodes.</details>


# %% tags=["exercise"]
def influence(edges, counts):
    """How much of the outputs comes from each node, over paths of one edge or more.

    edges: weights [target, source]; no path leads back to where it began. counts: how much each node counts as an output [node].
    Returns a tensor [node].
    """
    raise NotImplementedError


# %% tags=["solution"]
def influence(edges, counts):
    sizes = edges.abs()
    shares = sizes / sizes.sum(1, keepdim=True).clamp(min=1e-12)
    arrived, step = torch.zeros_like(counts), counts
    for _ in range(len(counts)):
        step = step @ shares
        arrived = arrived + step
    return arrived


# %% tags=["check"]
check.ex_8_2(influence)

# %% [markdown]
# ## 8.2 Who carried it, and why it looked there
#
# The strongest edge leads from the word itself to the output. Nothing gets from one position to another without a head. Which
# ones carried it?

# %%
carriers = predict(
    "8.2",
    "Which heads carried the embedding of ' Mary' to the output?",
    [
        "head 2.3, which reads the name that is repeated",
        "heads 3.0 to 3.3, which look at ' Mary'",
        "heads of the last layer",
    ],
)
carriers

# %%
mary = top.iloc[0]["source"]
edge = float(top.iloc[0]["weight"])
carried = graph.loadings((output, mary))["carried"].fillna(0)
for layer in range(model.n_layers):
    print(f"layer {layer}:", " ".join(f"{float(value):+6.2f}" for value in carried[layer]), " by head")
around = float(graph.loadings((output, mary))["bypass"][3])
print(f"layer 3 carried {float(carried[3].sum()):.2f} of {edge:.2f}; {around:.2f} went around it")
best = int(carried.sum("head").values.argmax())
print(carriers.reveal(carriers.choices[{2: 0, 3: 1}.get(best, 2)]))

# %% [markdown]
# So the graph has found the name movers of notebook 4, without a single patch. But head 2.3, which decides *which* name they move,
# is not in it. It cannot be: where heads look is held. The graph says what was moved, and not why.
#
# `qk` answers that. It splits one score, of one head, from one query to one key, over what stood in the stream at both. Take the
# score of ' Mary' in both versions of the sentence: what at the last position made the difference?

# %%
corrupt = "When Mary and John went to the store, Mary gave a drink to"
theirs = gs.attribution_graph(corrupt, model=model, targets=gs.logit_diff(answer, other), progress=False)


def origin(part: str) -> str:
    """Which part of the model a part of a query is from."""
    if part.startswith("E_"):
        return "embedding"
    if not part[0].isdigit():
        return part.split(",")[0]
    layer, feature, _ = part.split("_")
    return f"mlp {layer}, " + ("its error" if feature == "-1" else "features")


def by_origin(graph, head) -> dict[str, float]:
    """A head's score of ' Mary' from the last position, by where the query's parts came from."""
    found = {}
    table = graph.qk(head, q=-1, k=t.tokens.index(answer)).sum("key_part")
    for part, value in zip(table["query_part"].values, table.values, strict=True):
        found[origin(part)] = found.get(origin(part), 0.0) + float(value)
    return found


for head in range(4):
    here, there = by_origin(graph, (3, head)), by_origin(theirs, (3, head))
    changed = {name: here.get(name, 0.0) - there.get(name, 0.0) for name in {*here, *there}}
    most = sorted(changed, key=lambda name: -abs(changed[name]))[:3]
    print(f"head 3.{head} scores Mary {sum(here.values()):5.1f}, with the other name repeated {sum(there.values()):5.1f}: ",
          "; ".join(f"{name} {changed[name]:+.1f}" for name in most))  # fmt: skip

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Attention of layer 2, where head 2.3 is, and the MLP right after it. But most of what that MLP adds is in its **error**: the part
# that the transcoder of layer 2 does not explain. It explains 92% of what that MLP writes on average, and most of what the MLP adds
# to *this* decision lies in the rest. A good score is no promise that the part you care about is in it.
#
# </details>
#
# ## 8.3 A fact: in how many steps?

# %%
fact = "In the streets of France one hears"
known = gs.trace(fact, model=model)
print(fact, [(token, f"{probability:.0%}") for token, _, probability in known.top(2)])

# %%
steps = predict(
    "8.3",
    "How does ' French' come from ' France'?",
    [
        "features at ' France' say French, and a head carries them to the end",
        "a head carries the word itself, and its weights turn it into ' French'",
        "a head carries the word, and features at the last position turn it into ' French'",
    ],
)
steps

# %%
of_fact = gs.attribution_graph(known, targets=gs.logit_diff(" French", " Spanish"), progress=False)
end = output_of(of_fact)
reads = of_fact.edges[of_fact.edges["target"] == end].merge(of_fact.nodes, left_on="source", right_on="id")
features = reads[reads["kind"] == "feature"].groupby("pos")["weight"].sum()
country, last = known.tokens.index(" France"), len(known) - 1
from_word = float(reads[(reads["kind"] == "embedding") & (reads["pos"] == country)]["weight"].iloc[0])
parts = [float(features.get(country, 0.0)), from_word, float(features.get(last, 0.0))]
print(f"' French' less ' Spanish' reads {reads['weight'].sum():+.2f} in all: from features at ' France' {parts[0]:+.2f}, "
      f"from the word itself {parts[1]:+.2f}, from features at the last position {parts[2]:+.2f}")  # fmt: skip
moved = of_fact.loadings((end, f"E_{known.ids[country]}_{country}"))["carried"].fillna(0)
who = divmod(int(moved.values.argmax()), model.config.n_heads)
print(f"head {who[0]}.{who[1]} alone carried {float(moved[who]):+.2f} of the word")
print(steps.reveal(steps.choices[max(range(3), key=lambda i: parts[i])]))

# %% [markdown]
# One step: the head's weights hold the table of languages. Does nano know any fact that takes **two** steps, one fact that leads to
# another? Its training never asked for that. Two tries. A city, whose country it knows, in place of the country; and two people who
# grew up in two countries:

# %%
capital_of = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Russia": "Moscow",
              "Sweden": "Stockholm", "Poland": "Warsaw", "Greece": "Athens", "Hungary": "Budapest"}  # fmt: skip
language = {"France": "French", "Germany": "German", "Italy": "Italian", "Spain": "Spanish", "Japan": "Japanese",
            "Russia": "Russian", "Sweden": "Swedish", "Poland": "Polish", "Greece": "Greek", "Hungary": "Hungarian"}  # fmt: skip


def says(text: str) -> str:
    return gs.trace(text, model=model).top(1)[0][0].strip()


direct = sum(says(f"In the streets of {land} one hears") == language[land] for land in language)
capitals = sum(says(f"The capital of {land} is") == city for land, city in capital_of.items())
both = sum(says(f"In the streets of {city} one hears") == language[land] for land, city in capital_of.items())
print(
    f"country to language {direct} of 10, country to capital {capitals} of 10; by way of the country, city to language: {both}"
)
lands = list(language)
johns = marys = 0
for a, b in zip(lands, [*lands[1:], lands[0]], strict=True):
    said = says(f"John grew up in {a}. Mary grew up in {b}. John speaks")
    johns += said == language[a]
    marys += said == language[b]
print(f"'John grew up in {a}. Mary grew up in {b}. John speaks' goes on with {said!r}")
print(f"John's language: {johns} of 10; Mary's, who came last: {marys} of 10")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# nano knows countries' languages and capitals, and cannot put two facts together. Asked about John, it names the language of
# whichever country came last, and needs no John for that. So nano has no fact with two steps; 8.8 shows one in a real Gemma.
#
# </details>
#
# ## 8.4 What features mean
#
# What nano does have is sentences in which something stands *between* the word and the answer. "The boxes on the table" goes on
# with " are". The last word is a singular, and " boxes" is four tokens back. Which features at " boxes" does the answer read?

# %%
sentence = "The boxes on the table"
run = gs.trace(sentence, model=model)
boxes = run.tokens.index(" boxes")
number = gs.attribution_graph(run, targets=gs.logit_diff(" are", " is"), progress=False)
at_boxes = number.nodes.query("kind == 'feature' and pos == @boxes").nlargest(6, "influence")
at_boxes[["id", "layer", "feature", "activation", "influence"]]

# %% [markdown]
# A number is no meaning. Look where else a feature is active: in which texts, at which words, most?

# %%
texts = [text for family in (gs.prompts.agreement, gs.prompts.ioi, gs.prompts.pronouns)
         for pair in family(40, 3, model.tokenizer) for text in (pair.clean, pair.corrupt)]  # fmt: skip
runs = gs.trace(texts, model=model)


def examples(layer: int, feature: int, k: int = 4) -> None:
    """Print the texts in which a feature is most active, with the word in brackets."""
    transcoder = gs.load_sae("nano-transcoders", layer=layer, model=model)
    found = []
    for each in runs:
        encoded = transcoder.encode(each)
        mine = encoded.feature == feature
        found += [(float(value), int(pos), each) for value, pos in zip(encoded.value[mine], encoded.pos[mine], strict=True)]
    print(f"layer {layer}, feature {feature}: active at {len(found)} places")
    shown = set()
    for value, pos, each in sorted(found, key=lambda one_place: -one_place[0]):
        text = "".join([*each.tokens[1:pos], f"[{each.tokens[pos]}]", *each.tokens[pos + 1 : pos + 4]])
        if text not in shown and len(shown) < k:
            shown.add(text)
            print(f"  {value:.2f}  {text}")


for _, row in at_boxes.head(4).iterrows():
    examples(int(row["layer"]), int(row["feature"]))

# %% [markdown]
# ## 8.5 A group, a prediction, a test
#
# The first three are about the same thing: a plural that is the subject. Put them into one group, a **supernode**, and give it a
# name. What will the model say when they are switched off?

# %%
plural = [node for node in ("3_1031_2", "4_1031_2", "4_1116_2") if node in number.ids]
number.group("a plural subject", plural)
off = predict(
    "8.5",
    "'The boxes on the table', with the group 'a plural subject' switched off, goes on with",
    ["still: are", "is", "something else"],
)
off

# %% [markdown]
# The graph can predict it. What a feature no longer writes is missing along its edges; the features that read it are less active,
# and write less in turn; and so on until the output.
#
# **Exercise 8.3** (8 minutes, ●●●) Predict how far the output moves when one node is switched off.
#
# <details><summary>Hint 1</summary>Keep, for each node, by which share of itself it writes more or less: -1 for the one that is off.</details>
# <details><summary>Hint 2</summary>An edge is how far the target's activation moves when the source writes once more. Divide that by
# the target's activation, and you have its own share.</details>
# <details><summary>Hint 3</summary>Go through the nodes in order. The output is the last one, and is not divided.</details>


# %% tags=["exercise"]
def predicted(edges, activation, node: int) -> float:
    """How far the last node, the output, moves when a node is switched off.

    edges: weights [target, source]; each node reads only nodes before it. activation: of each node [node]. node: which is off.
    Returns a number.
    """
    raise NotImplementedError


# %% tags=["solution"]
def predicted(edges, activation, node: int) -> float:
    share = torch.zeros(len(edges))
    share[node] = -1.0
    for later in range(node + 1, len(edges) - 1):
        share[later] = edges[later] @ share / activation[later]
    return float(edges[-1] @ share)


# %% tags=["check"]
check.ex_8_3(predicted)

# %%
test = number.intervene("a plural subject", scale=0.0)
foretold, true = test.to_dataframe()[["predicted", "true"]].iloc[0]
print(f"' are' less ' is' moves by {foretold:+.2f} as the graph predicts, by {true:+.2f} in the model")
print(f"with all held that the graph holds, no edge is off by more than {test.held_error:.0e} of the largest move")
without = gs.trace(sentence, model=model, edits=number.edits("a plural subject"))
for token, _, probability in without.top(3):
    print(f"{sentence} ...{token!r:8} {probability:.0%}")
said = without.top(1)[0][0]
print(off.reveal("still: are" if said == " are" else "is" if said == " is" else "something else"))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The verb follows the group, as predicted; but the output moves less. With everything held the edges are met to rounding. So the
# arithmetic is right, and what is wrong is what it takes for granted: that norms and patterns stay, and that features which read
# the group become weaker in proportion.
#
# </details>
#
# Now with your own hands: the same graph, live, with the group below it switched off. Halve it and double it; then let *patterns
# and norms* be held, and see which of the two numbers follows the other. A node is opened by a click, and can be switched too.

# %%
lab = gs.graph_lab(graph=number, targets=gs.logit_diff(" are", " is"), max_new_tokens=2)
lab.scale("a plural subject", 0.0)
lab

# %% [markdown]
# ## 8.6 Is the graph true?
#
# `check` asks that of many features at once. It doubles each in a run of its own, and sets the true effect beside the prediction.

# %%
blame = predict(
    "8.6",
    "Back to Mary and John. In the model some things move that the graph holds. Which of them spoils its predictions most?",
    ["where the heads look", "what the last norm divides by", "what all the other norms divide by"],
)
blame

# %%
truth = graph.check(20)
truth

# %%
at_layers = ("attn_in_scale", "attn_out_scale", "mlp_in_scale", "mlp_out_scale")
layers = range(model.n_layers)
held = {
    "nothing": [],
    "where the heads look": [gs.patch("pattern", t, layer=layer) for layer in layers],
    "what the last norm divides by": [gs.patch("final_scale", t)],
    "what all the other norms divide by": [gs.patch(site, t, layer=layer) for layer in layers for site in at_layers],
}


def moves(holding) -> torch.Tensor:
    """By how much the output moves with each feature doubled, some things held."""
    found = []
    for node in truth.changed:
        doubled = gs.trace(prompt, model=model, edits=[*holding, *graph.edits(node, scale=2.0)])["logits_raw"][-1]
        found.append(doubled[one(answer)] - doubled[one(other)] - (raw[one(answer)] - raw[one(other)]))
    return torch.stack(found)


said_so = torch.tensor(truth.to_dataframe()["predicted"].values).float()
correlation = {}
for name, holding in held.items():
    correlation[name] = float(torch.corrcoef(torch.stack([said_so, moves(holding)]))[0, 1])
    print(f"held: {name:36} correlation of predicted and true {correlation[name]:.2f}")
print(blame.reveal(max(blame.choices, key=lambda name: correlation[name])))

# %% tags=["picture"]
draw_points(
    {
        "nothing held": (said_so, moves(held["nothing"])),
        "the last norm held": (said_so, moves(held["what the last norm divides by"])),
    },
    title="Each of 20 features doubled: on the line the graph is right",
    x="predicted move of ' Mary' less ' John'",
    y="true move",
    equal=True,
)

# %% [markdown]
# <details><summary>Expected picture</summary><img src="images/8_circuits.png" alt="Predicted and true moves of the output; with the last norm held they lie near the line"></details>
#
# <details><summary>What you should see</summary>
#
# The last norm. A feature that writes more makes the last row longer, and the norm divides *everything* in it by more, also the
# lead of ' Mary', which is large: 14 logits. A graph that holds the norm does not know that. Where heads look hardly matters for
# these features. Holding the other norms makes it worse: in the model they mend a part of what the change did.
#
# </details>
#
# ## 8.7 Edges between heads: which estimate to trust
#
# Graphs are about features. The same question about whole heads and MLPs has an exact answer: let one receiver read one sender as
# it was in the other run, edge by edge. On a large model that takes long, and people use estimates from gradients. How good are
# they?

# %%
estimate = predict(
    "8.7",
    "Which estimate comes nearest to exact patching on this pair (correlation over all edges)?",
    ["eap: one gradient", "eap-ig: ten gradients on the way between the prompts", "relp: one pass with RelP's rules"],
)
estimate

# %%
metric = gs.logit_diff(answer, other)
scores = {
    method: gs.edge_scores(prompt, corrupt, metric, method=method, model=model, progress=False)
    for method in ("exact", "eap", "eap-ig", "relp")
}
agreement = scores["exact"].agreement(*(scores[method] for method in ("eap", "eap-ig", "relp")))
print(estimate.reveal(estimate.choices[int(agreement["pearson"].argmax())]))
agreement.round(2)

# %%
scores["exact"].plot_against(scores["eap"], scores["eap-ig"], scores["relp"])

# %%
circuit = gs.faithfulness(scores["eap-ig"], prompt, corrupt, metric, model=model)
circuit

# %% [markdown]
# One gradient misses the largest edges: where a head is saturated, a small step changes nothing, and the whole step everything.
# Over more pairs and on a real Gemma the page *Circuits* of the documentation has a table. Where a model is small, take the
# exact scores.
#
# And one more way to look down the layers. The lens of notebook 1 reads a layer as if it were the last. The **Jacobian lens** reads
# what later layers make of it, on average over many texts: a matrix for each layer.

# %%
for text in (prompt, fact, sentence):
    each = gs.trace(text, model=model)
    word = each.top(1)[0][0]
    for name, lens in (("logit lens", gs.lens), ("Jacobian lens", gs.jacobian_lens)):
        ranks = lens(each, answer=word).answer_rank.isel(pos=-1).values.ravel().astype(int)
        print(f"rank of {word!r:9} by the {name:13}, layer by layer: {ranks.tolist()}")

# %% [markdown]
# ## 8.8 A fact with two steps: optional, on a real Gemma
#
# This part needs a Gemma 3 of 270M; notebook 7 says how to get one. Write its file here, or set the variable `GEMMASCOPE_REAL`
# before you start. Without it the cells below say so and do nothing.

# %%
REAL = os.environ.get("GEMMASCOPE_REAL", "")
real = gs.load(REAL) if REAL else None
print(
    f"asking {real.name}" if real else "no real Gemma here: what the cells below print stands in the folded box under them"
)

# %% [markdown]
# Which currency has the country whose capital is Tokyo? That takes *Tokyo to Japan* and *Japan to yen*. (The usual example, the
# capital of the state in which Dallas lies, is too hard for a model of this size: it says Dallas.)

# %%
question = "The currency of the country whose capital is {} is the"
if real:
    for city, currency in (("Tokyo", " yen"), ("London", " pound"), ("Delhi", " rupee"), ("Beijing", " yuan")):
        token, _, probability = gs.trace(question.format(city), model=real).top(1)[0]
        print(f"{city:8} {token!r:9} {probability:.0%}   expected {currency!r}")
    asked = gs.trace(question.format("Tokyo"), model=real)
    for word in (" Japanese", " yen"):
        ranks = gs.lens(asked, pos=-1, answer=word).answer_rank.values.ravel().astype(int).tolist()
        print(f"rank of {word!r:11} at the last position, by the lens, from layer 10 on: {ranks[10:]}")

# %% [markdown]
# The lens shows the first step before the second. There are no transcoders for this model, so take its neurons as nodes, and two
# groups of ten: those that speak most for ' yen' (against ' pound'), and, up to layer 14, those that speak most for ' Japanese'
# (against ' British'). What does it say without either?

# %%
if real:
    outputs = [gs.logit_diff(" yen", " pound"), gs.logit_diff(" Japanese", " British")]
    neurons = gs.attribution_graph(asked, basis="neuron", targets=outputs, max_nodes=400, progress=False)
    money, land = neurons.nodes.query("kind == 'logit'")["id"]
    of_layer = neurons.nodes.query("kind == 'feature'").set_index("id")["layer"]
    for name, target, up_to in (("yen", money, 17), ("Japanese", land, 14)):
        into = neurons.edges[neurons.edges["target"] == target].set_index("source")["weight"].nlargest(200)
        neurons.group(name, [node for node in into.index if of_layer.get(node, 99) <= up_to][:10])
        foretold, true = neurons.intervene(name).to_dataframe()[["predicted", "true"]].iloc[0 if target == money else 1]
        best = gs.trace(asked.ids, model=real, edits=neurons.edits(name)).top(2)
        print(f"without the group {name!r}: its output moves by {foretold:+.2f} as predicted, {true:+.2f} in the model, "
              f"which says {best[0][0]!r} {best[0][2]:.0%}, {best[1][0]!r} {best[1][2]:.0%}")  # fmt: skip

# %% [markdown]
# <details><summary>On a real Gemma</summary>
#
# It knows all four. From layer 12 on the last position would say the land, and only the last layer makes it the money. Without the
# ten neurons for ' yen' it says the land: the first step without the second. Without the ten for ' Japanese' it says ' yen' still,
# less surely: the land is held by more than ten.
#
# ```text
# Tokyo    ' yen'    48%
# London   ' pound'  29%
# Delhi    ' rupee'  39%
# Beijing  ' yuan'   40%
# rank of ' Japanese' at the last position, by the lens, from layer 10 on: [2973, 482, 0, 0, 0, 0, 0, 2]
# rank of ' yen'      at the last position, by the lens, from layer 10 on: [6113, 1405, 6, 1, 1, 2, 1, 0]
# ```
#
# </details>

# %% [markdown]
# ## Conclude
#
# You have one graph that is exact about what it holds, and a prediction that was too large.

# %%
mine = claim(
    "8",
    "Whatever the sentence: with its plural features switched off ' are' loses against ' is', as the graph predicts; and the "
    "graph is never off by more than a quarter.",
)
mine

# %% tags=["written"]
mine.write(
    "The first half, yes: the features mean a plural everywhere. The second, no: the norms are held, so the size will be off."
)

# %%
PLURAL = {(3, 1031), (4, 1031), (4, 1116)}
found = []
for pair in gs.prompts.agreement(24, 5, model.tokenizer):
    if pair.answer != " are":
        continue
    each = gs.attribution_graph(pair.clean, model=model, targets=gs.logit_diff(" are", " is"), progress=False)
    rows = each.nodes.query("kind == 'feature'").itertuples()
    group = [row.id for row in rows if (row.layer, row.feature) in PLURAL]
    if group:
        found.append(tuple(each.intervene(group).to_dataframe()[["predicted", "true"]].iloc[0]))
        print(f"predicted {found[-1][0]:+6.2f}   true {found[-1][1]:+6.2f}   {pair.clean}")
lower = sum(p < 0 and q < 0 for p, q in found)
near = sum(abs(p - q) <= abs(q) / 4 for p, q in found)
print(
    mine.verdict(
        f"' are' lost, as predicted, in {lower} of {len(found)} sentences; within a quarter in {near} of {len(found)}"
    )
)

# %% [markdown]
# ## Your own pair
#
# Two prompts of equally many tokens, and the token that each should be answered with; `gs.prompts.facts(5)` and
# `gs.prompts.pronouns(5)` show what nano knows. Change all four:

# %%
yours = gs.prompts.Pair(
    "Last week Anna found a mirror behind the town. Then",
    "Last week Paul found a mirror behind the town. Then",
    " she",
    " he",
)
margin = measure_pair(yours, model)

# %%
own = claim("8 own", "The answer reads features more than words: something stands between the name and the pronoun.")
own

# %% tags=["written"]
own.write("Likely: ' she' is for any woman, so the name should have been turned into that first.")

# %%
about_yours = gs.attribution_graph(yours.clean, model=model, targets=margin, progress=False)
gs.graph_view(about_yours.prune())

# %%
given = about_yours.edges[about_yours.edges["target"] == output_of(about_yours)].merge(
    about_yours.nodes, left_on="source", right_on="id"
)
by_kind = given.groupby("kind")["weight"].sum()
print(", ".join(f"{kind} {float(weight):+.2f}" for kind, weight in by_kind.items()))
print(own.verdict("borne out" if by_kind["feature"] > by_kind["embedding"] else "refuted"))

# %%
check.summary(8)
