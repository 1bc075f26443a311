# %% [markdown]
# # Attention heads of Gemma 2: a reference
#
# **You will** go through all that this toolkit says about attention heads: their shape, their patterns, what they do by their
# scores, what they read and write by their weights, what they gave an answer, and what is lost without them.
#
# **Time:** 45 minutes to read and run on nano. There is nothing to fill in: change things and look.
#
# It runs on nano, a small trained Gemma 2 inside the package, and unchanged but for the next line on the real 2B:
# `MODEL = "google/gemma-2-2b"` (its licence must have been accepted on the hub, and 2B in bfloat16 takes some 6 GB), or on a
# real Gemma 3 of 270M, which notebook 7 says how to get.

# %%
MODEL = "nano"

# %%
import gemmascope as gs

model = gs.load(MODEL)
config = model.config
# Pairs whose answers are one token for this model's tokenizer, of as many tokens each.
drawn = gs.prompts.ioi(60, 3, model.tokenizer)
pairs = [pair for pair in drawn if len(model.ids(pair.clean)) == len(model.ids(drawn[0].clean))][:8]
pair = pairs[0]
t = gs.trace(pair.clean, model=model)
t

# %% [markdown]
# ## 1 · Their shape
#
# In Gemma 2 several query heads share the keys and values of one kv head, and layers take turns: a **local** layer sees only the
# latest keys, a **global** one all of them. Which layer is which is read from the configuration.

# %%
kinds = {kind: [layer for layer, found in enumerate(config.kinds) if found == kind] for kind in ("local", "global")}
print(f"{model.n_layers} layers, {config.n_heads} query heads a layer, {config.heads_per_kv} to each kv head")
print(f"local layers {kinds['local']}, with a window of {config.window} positions; global layers {kinds['global']}")
cuts = len(t) > config.window
print(
    f"this prompt has {len(t)} tokens: in it the window {'cuts something off' if cuts else 'cuts nothing off, local and global layers can see the same'}"
)

# %% [markdown]
# ## 2 · Their patterns
#
# Arrow keys walk through layers and heads; the pointer shows exact values. The first position takes much of the attention in
# many heads (a *sink*): colours leave it out unless the box is ticked.

# %%
gs.attention_view(t, layers=list(range(min(6, model.n_layers))))

# %% [markdown]
# A summary of all heads: how spread their attention is (entropy), how far back it goes, how much of it rests on the first
# position.

# %%
summary = gs.attention_summary(t)
summary

# %%
summary.plot()

# %% [markdown]
# ## 3 · What they do, by their scores
#
# One pass over random tokens said twice scores every head for what heads are known to do. *Previous token*, *duplicate token*
# (attends to an earlier copy of its token), *induction* (attends to what came after that copy), *sink* (attends to the first
# position), *local reach* (how far back, in positions), *copying* (from the weights alone: does what it reads raise itself).

# %%
scores = gs.head_scores(model, kind=["previous_token", "duplicate_token", "induction", "sink", "local_reach", "copying"])


def strongest(array, k=3):
    """The k strongest heads of an array [layer, head]: [(layer, head, score), ...]."""
    order = array.values.ravel().argsort()[::-1][:k]
    return [(int(i) // config.n_heads, int(i) % config.n_heads, float(array.values.ravel()[i])) for i in order]


for kind, found in scores.items():
    said = ", ".join(f"{layer}.{head} ({score:.2f})" for layer, head, score in strongest(found.scores))
    print(f"{kind:>16}: {said}")

# %%
scores["induction"].plot()

# %% [markdown]
# ## 4 · What they read and write, by their weights
#
# A head's OV matrix says what it writes for what it reads, its QK matrix which keys a query looks for at a distance; their
# singular vectors, read in tokens, say so in words. Tokens stand for themselves as they enter the first layer, so this is
# clearest in early layers. In tokens of a model as small as nano it is often no more than a hint.

# %%
layer, head, _ = strongest(scores["copying"].scores)[0]
print(f"the OV matrix of layer {layer} ({config.kinds[layer]}), head {head}:")
model.layer(layer).ov(head).read_out(model)

# %%
layer, head, _ = strongest(scores["previous_token"].scores)[0]
print(f"the QK matrix of layer {layer} ({config.kinds[layer]}), head {head}, for keys one position before the query:")
model.layer(layer).qk(head, distance=1).read_out(model)

# %% [markdown]
# Composition: how far later heads read what earlier heads write, 0 to 1. All layers of 2B take some minutes, so this
# looks at the layer of the best previous-token head, and at what reads it in the next few.

# %%
sender = strongest(scores["previous_token"].scores)[0]
later = list(range(sender[0] + 1, model.n_layers))[:4]
if later:
    composed = gs.composition(model, "k", senders=sender[0], receivers=later)
    found = composed.scores.sel(from_layer=sender[0], from_head=sender[1])
    place = {name: int(found[name][int(index)]) for name, index in found.argmax(...).items()}
    reader = f"head {place['to_layer']}.{place['to_head']}"
    print(f"the previous-token head {sender[0]}.{sender[1]} is read most by the keys of {reader}: {float(found.max()):.3f}")

# %% [markdown]
# ## 5 · What they gave an answer
#
# The logit of an answer is a sum over what every part wrote into the stream, before the soft cap. Here the answer of an
# indirect-object prompt, less the other name's. Heads are read through Gemma 2's post-norm, so they add up.

# %%
print(pair)
direct = gs.direct_logits(t, pair.answer, against=pair.against, by="head")
direct

# %%
direct.plot()

# %% [markdown]
# ## 6 · What is lost without them
#
# Giving towards an answer is not needing. For what a head reads write its mean at that position over prompts of the same kind:
# one head a run, a few pairs, all runs in one pass. On 2B that is 208 runs a pair; `layer=[...]` asks for fewer.

# %%
reference = gs.trace([text for each in pairs for text in (each.clean, each.corrupt)], model=model)
ablated = gs.sweep(
    [each.clean for each in pairs],
    None,
    [gs.logit_diff(each.answer, each.against) for each in pairs],
    site="z",
    by=("layer", "head"),
    ablate="mean_by_pos",
    reference=reference,
    model=model,
    progress=False,
)
ablated

# %%
ablated.plot()

# %%
losses = -ablated.effect
worst = strongest(losses)[0]
said = f"without head {worst[0]}.{worst[1]} by {ablated.clean - worst[2]:.2f}"
print(f"the answer leads by {ablated.clean:.2f}, the mean of {len(pairs)} pairs; {said}")

# %% [markdown]
# An edit holds in what is generated as well. There is no mean for positions still to come, so here the head reads zeros:

# %%
edits = [gs.ablate("z", layer=worst[0], head=worst[1])]
print("with it:   ", repr(gs.generate(pair.clean, model=model, max_new_tokens=6).text))
print("without it:", repr(gs.generate(pair.clean, model=model, edits=edits, max_new_tokens=6).text))

# %% [markdown]
# The same by hand, live: choose a head and ablate it.

# %%
gs.head_lab(pair.clean, pair.answer, pair.against, model=model, max_new_tokens=6)

# %% [markdown]
# ## 7 · Local and global, when the window cuts
#
# A prompt longer than the window shows what local layers cannot see. Where the window is so long that such a prompt would
# take a while, this says so and goes on.

# %%
longest = 512
if config.window < longest:
    words = model.ids(pair.clean).tolist()[1:]
    ids = [*model.ids(pair.clean).tolist()[:1], *(words * (3 * config.window // len(words) + 1))][: 3 * config.window]
    beyond = gs.attention_summary(gs.trace(ids[: config.context], model=model))
    share = beyond.mean["beyond_window"]
    for kind, layers in kinds.items():
        most = float(share.sel(layer=layers).max()) if layers else float("nan")
        print(f"{kind} layers: at most {most:.1%} of a head's attention goes beyond the window")
else:
    print(
        f"the window of {config.window} is longer than {longest} positions: up to there local layers see what global ones see"
    )

# %% [markdown]
# Is that attention needed? Somebody's key is told at the beginning of a prompt and asked for at its end. Cut the edges of global
# layers that are longer than the window, but for those to the first position, so that they see what local layers see:

# %%
asked = gs.prompts.recall(8, 3, model.tokenizer)
longer = [question for question in asked if len(model.ids(question.clean)) > config.window + 1]


def short_sighted(n_pos: int) -> list:
    """Edits with which the queries of global layers see no further back than those of local layers."""
    return [
        gs.knockout(layer=layer, q_pos=q, k_pos=slice(1, q - config.window + 1))
        for layer in kinds["global"]
        for q in range(config.window + 1, n_pos)
    ]


def n_right(edits_of) -> int:
    """How many of the longer questions have their answer as the likeliest next token."""
    runs = [gs.trace(q.clean, model=model, edits=edits_of(len(model.ids(q.clean)))) for q in longer]
    return sum(run.top(1)[0][0] == question.answer for run, question in zip(runs, longer, strict=True))


if longer:
    print(
        f"right of {len(longer)}: {n_right(lambda n: [])} as it is, {n_right(short_sighted)} with global layers short-sighted"
    )
else:
    print(f"none of these {len(asked)} prompts is longer than the window of {config.window}: there is nothing to cut")

# %% [markdown]
# ## Conclude
#
# *Claim:* "The head that gives most towards the answer is the one that is needed most." Over all pairs, the two that decide:

# %%
runs = gs.trace([each.clean for each in pairs], model=model)
given = [
    gs.direct_logits(run, each.answer, against=each.against, by="head").parts for run, each in zip(runs, pairs, strict=True)
]
gave = strongest(sum(given) / len(given))[0]
print(f"gives most: head {gave[0]}.{gave[1]}, {gave[2]:.2f} logits before the cap")
print(f"is needed most: head {worst[0]}.{worst[1]}, without which {worst[2]:.2f} is lost")
print("the claim is", "borne out" if gave[:2] == worst[:2] else "refuted: what is needed may work through other heads")
