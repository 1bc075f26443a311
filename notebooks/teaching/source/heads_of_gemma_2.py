# %% [markdown]
# # Attention heads of Gemma 2: a reference
#
# **You will** go through everything that this toolkit can tell about attention heads: their shape, their patterns, what they do,
# what their weights read and write, what they contribute to an answer, and what is lost without them.
#
# **Time:** 45 minutes to read and run on nano. There are no exercises: change things and look.
#
# It runs on nano, a small trained Gemma 2 inside the package. To run it on the real 2B, change the next line to
# `MODEL = "google/gemma-2-2b"` (accept its licence on the hub first; 2B in bfloat16 takes about 6 GB). For a real Gemma 3 of 270M,
# notebook 7 says how to get one.

# %%
MODEL = "nano"

# %%
import gemmascope as gs
from gemmascope.workshop import claim

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
# In Gemma 2 several query heads share the keys and values of one kv head. Layers alternate: a **local** layer sees only the latest
# keys, a **global** one all of them. The configuration says which layer is which.

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
# A click or the arrow keys choose a head; the pointer shows exact values. In many heads the first position takes much of the
# attention (a *sink*), so the range of colours leaves it out, unless you choose otherwise in the line at the top.

# %%
gs.attention_view(t, layers=list(range(min(6, model.n_layers))))

# %% [markdown]
# A summary of all heads: how spread out their attention is (entropy), how far back it goes, and how much of it is on the first
# position.

# %%
summary = gs.attention_summary(t)
summary

# %%
summary.plot()

# %% [markdown]
# ## 3 · What they do, by their scores
#
# Heads are known to do a few things. One pass over random tokens, written twice in a row, scores every head for each of them:
# *previous token*; *duplicate token* (attends to an earlier copy of the same token); *induction* (attends to what came after that
# copy); *sink* (attends to the first position); *local reach* (how far back, in positions). *Copying* needs no prompt: it asks the
# weights whether reading a token raises the logit of the same token.

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
# A head has two matrices. OV says what the head writes when it reads something; QK says which keys a query looks for at some
# distance. Their singular vectors can be translated into tokens. That works best in early layers, where the stream still holds
# the tokens themselves; in a model as small as nano, it is often no more than a hint.

# %%
layer, head, _ = strongest(scores["copying"].scores)[0]
print(f"the OV matrix of layer {layer} ({config.kinds[layer]}), head {head}:")
model.layer(layer).ov(head).read_out(model)

# %%
layer, head, _ = strongest(scores["previous_token"].scores)[0]
print(f"the QK matrix of layer {layer} ({config.kinds[layer]}), head {head}, for keys one position before the query:")
model.layer(layer).qk(head, distance=1).read_out(model)

# %% [markdown]
# Composition says how much a later head reads of what an earlier head writes, from 0 to 1. All layers of 2B would take some
# minutes, so this looks at the layer of the best previous-token head, and at the next few layers.

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
# ## 5 · What they contribute to an answer
#
# Before the soft cap, the logit of an answer is the sum of what every part wrote into the stream. Here it is the logit of the name to
# answer, less that of the other name. What a head writes goes through Gemma 2's post-norm first, so that the heads add up.

# %%
print(pair)
direct = gs.direct_logits(t, pair.answer, against=pair.against, by="head")
direct

# %%
direct.plot()

# %% [markdown]
# ## 6 · What is lost without them
#
# A head can write for an answer and still not be needed, if others stand in for it. So silence one head at a time: replace what it
# reads with the mean over prompts of the same kind, position by position. All runs go through the model in one pass. On 2B that
# is 208 runs a pair; `layer=[...]` asks for fewer.

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
# An edit also applies to generated text. The positions still to come have no mean, so here the head reads zeros:

# %%
edits = [gs.ablate("z", layer=worst[0], head=worst[1])]
print("with it:   ", repr(gs.generate(pair.clean, model=model, max_new_tokens=6).text))
print("without it:", repr(gs.generate(pair.clean, model=model, edits=edits, max_new_tokens=6).text))

# %% [markdown]
# The same by hand: choose a head, mute it, and watch the answer.

# %%
gs.head_lab(pair.clean, pair.answer, pair.against, model=model, max_new_tokens=6)

# %% [markdown]
# ## 7 · Beyond the window
#
# In a prompt longer than the window, global layers see more than local ones. How much do they use it? Here is the largest share of
# attention that any head of each kind of layer gives to keys further back than the window. (With a window of more than 512
# positions such a prompt would take a while, so this says so and goes on.)

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
# Whether a model needs that attention, notebook 2 asks of nano (2.6), and notebook 7 of a real Gemma (7.5).
#
# ## Conclude
#
# Sections 5 and 6 rank the heads in two ways.

# %%
mine = claim("heads", "The head that writes most for the answer is the one that is needed most.")
mine

# %% tags=["written"]
mine.write("Not sure: a head that tells others where to look would be needed more than the heads that write.")

# %%
runs = gs.trace([each.clean for each in pairs], model=model)
given = [
    gs.direct_logits(run, each.answer, against=each.against, by="head").parts for run, each in zip(runs, pairs, strict=True)
]
gave = strongest(sum(given) / len(given))[0]
print(f"writes most: head {gave[0]}.{gave[1]}, {gave[2]:.2f} logits before the cap")
print(f"is needed most: head {worst[0]}.{worst[1]}, without which {worst[2]:.2f} is lost")
print(mine.verdict("borne out" if gave[:2] == worst[:2] else "refuted: what is needed most may work through other heads"))
