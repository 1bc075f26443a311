"""gs.attribution_graph: the graph of one prompt, from one reversed pass for each chunk of targets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from gemmascope.arguments import true_or_false, whole_number
from gemmascope.circuits.frozen import require_plain
from gemmascope.circuits.graph.bases.sources import basis_of
from gemmascope.circuits.graph.build import Builder
from gemmascope.circuits.graph.data import About
from gemmascope.circuits.graph.encoding import freeze
from gemmascope.circuits.graph.files.journal import GraphJournal, JournalStopped
from gemmascope.circuits.graph.memory import budget_of, pass_memory
from gemmascope.circuits.graph.nodes import NodeKeys
from gemmascope.circuits.graph.outputs import read_outputs
from gemmascope.circuits.graph.result import AttributionGraph, result_of
from gemmascope.edits.places import Pos
from gemmascope.errors import GraphError, warn
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace as run_trace
from gemmascope.sae.cross_layer import CrossLayerTranscoder
from gemmascope.sae.dictionary import Dictionary

Dictionaries = (
    str | os.PathLike[str] | Dictionary | CrossLayerTranscoder | Sequence[Dictionary] | Callable[[int], Dictionary]
)


@computes
def attribution_graph(
    prompt: Prompt | Trace,
    *,
    model: Model | None = None,
    basis: str = "transcoder",
    dictionaries: Dictionaries | None = None,
    targets: object = None,
    pos: Pos = None,
    max_nodes: int = 4096,
    keep: int = 2048,
    memory: int | str | None = None,
    progress: bool = True,
    out: str | os.PathLike[str] | None = None,
) -> AttributionGraph:
    """The graph of who gave what to whom in a run, down from a logit to the embeddings.

    With attention patterns and norms' scales held at their values, what lies between two writers of the stream is linear.
    Each target (a logit, or what a feature reads) goes down the layers as a row of one reversed pass, and meets what wrote
    to the stream on its way. All that it meets adds up to its input.

    Interrupting (Ctrl-C) gives a warning and returns the graph of the rows that are finished.

    Args:
        prompt: Text (`<bos>` is put in front), token ids or chat messages; or a trace without edits.
        model: The model; None means nano, or that of the trace.
        basis: What the nodes are. "transcoder": features of transcoders, which stand for the MLPs, one a layer or
            cross-layer, with or without skip connections. "neuron": the neurons, read by RelP; nothing is trained. "sae":
            features of autoencoders at resid_post, resid_mid, mlp_out, attn_out or z; MLPs without one are passed by RelP.
        dictionaries: The transcoders or autoencoders: what gs.load_sae returns, as a list; what gs.load_cross_layer returns;
            a folder or hub id that holds a transcoder for each layer; or a function that gives the one of a layer, which is
            let go once the layer is encoded. None: for neurons, and for nano, whose own transcoders and autoencoder (of
            resid_post of layer 3) are in the package.
        targets: What to explain. None: the likeliest next tokens that hold 95% of the probability, at most 10. Or a token
            (" Mary", or its id), gs.logit_diff(" Mary", " John"), a direction of `final` as ("name", vector), or a list of
            such. Tokens are read before the soft cap, less the vocabulary's mean.
        pos: The position that is read, written as in gs.patch. None: the last.
        max_nodes: The most features whose own inputs are found. If more are active, those with the most influence in the
            graph so far come next.
        keep: The most edges of a node that are listed; the others are added up.
        memory: How much the rows of a pass may take, in bytes or as text ("2GiB"); what does not fit comes in another pass.
            The active features of dictionaries and finished rows are kept beside it. None: what the model was loaded to
            leave for it, or a quarter of what is free.
        progress: Show a progress bar when it takes more than a second.
        out: A file for the finished rows, written a chunk at a time. A second call with the same file goes on where the
            first one stopped, to the same numbers; memory= and progress= may differ, and another memory= changes their
            rounding. Another graph's file is refused, never overwritten. gs.open_graph reads it once the graph is finished.

    Returns:
        An AttributionGraph.

    Raises:
        PromptError: The prompt cannot be read.
        GraphError: A target or basis that is not there, position 0, no active feature, or a layer without a transcoder.
        SiteError: A run with edits, or a position that does not exist.
        DictionaryError: Dictionaries that are not there, or of another model.
        BudgetError: memory is too little for one target.

    Examples:
        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> graph = gs.attribution_graph(prompt, basis="neuron", targets=gs.logit_diff(" Mary", " John"), progress=False)
        >>> graph
        AttributionGraph of nano: 15 tokens, explains "' Mary' - ' John'" by ... neurons and ... edges; ...
        >>> bool(((graph.sums["sum"] - graph.sums["input"]).abs() < 1e-4).all())
        True

    References:
        Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language Models"
        (transformer-circuits.pub/2025/attribution-graphs).
        Jafari et al., "RelP: Faithful and efficient circuit discovery via relevance patching" (arXiv 2508.21258).
    """
    max_nodes = whole_number(max_nodes, "max_nodes", least=1, error=GraphError)
    keep = whole_number(keep, "keep", least=1, error=GraphError)
    progress = true_or_false(progress, "progress", error=GraphError)
    builder = prepare(prompt, model, basis, dictionaries, targets, pos, (max_nodes, keep), memory)
    journal = GraphJournal()
    try:
        if out is not None:
            journal.open(out, builder.question(), builder.budget)
            builder.continue_from(journal, same_chunks=memory is None)
        return run_all(builder, progress)
    finally:
        journal.close()


def prepare(
    prompt: object,
    model: Model | None,
    basis: str,
    dictionaries: object,
    targets: object,
    pos: object,
    sizes: tuple[int, int],
    memory: object,
) -> Builder:
    """A graph whose run is frozen and encoded, and of which no row is there. sizes: max_nodes and keep."""
    trace = _trace_of(prompt, model)
    model = trace.model
    nodes = basis_of(basis, dictionaries, model)
    outputs, logits = read_outputs(trace, targets, pos)
    budget = budget_of(memory, model)
    pass_memory(model, len(trace), sizes[1]).require(budget)
    if model.dtype != torch.float32:
        warn(
            f"{model.name!r} computes in {str(model.dtype)[6:]}: small edges may be wrong by a factor. Load it with "
            "dtype='float32' to trust them"
        )
    run = freeze(trace, nodes)
    keys = NodeKeys(tuple(nodes.units), len(trace), len(outputs))
    active = nodes.active(keys)
    if active is not None and not len(active):
        raise GraphError(
            "no feature of the dictionaries is active after position 0: are they of this model and of these layers? "
            "gs.load_sae(...).encode(trace).explained says how much of a site they explain"
        )
    of_pass = pass_memory(model, len(trace), sizes[1], nodes, keys)
    of_pass.require(budget)
    ids = tuple(trace.ids.tolist())
    about = About(
        model.name, model.network_fingerprint, model.n_layers, model.config.vocab_size, ids, tuple(trace.tokens), basis,
        logits.pos,
    )  # fmt: skip
    return Builder(run, nodes, keys, tuple(outputs), logits, about, *sizes, of_pass, budget)


def run_all(builder: Builder, progress: bool) -> AttributionGraph:
    """Build all rows. An interrupt, or a file that takes no more, ends it with a warning, once there are rows."""
    finished = True
    try:
        _run_chunks(builder, progress)
    except KeyboardInterrupt:
        if not builder.parts:
            raise
        finished = False
        warn(f"interrupted: {builder.n_done} of up to {builder.n_targets()} rows of the graph are finished")
    except JournalStopped as stopped:
        finished = False
        warn(
            f"{builder.journal.path} takes no more rows: {stopped}. The graph ended there, with {builder.n_done} of up to "
            f"{builder.n_targets()} rows. A second call with the same file goes on"
        )
    data = builder.data(is_finished=finished)
    if finished:
        builder.journal.finish(data)
    return result_of(data, builder.run, builder.basis)


def _run_chunks(builder: Builder, progress: bool) -> None:
    from tqdm.auto import tqdm

    total, done = builder.n_targets(), builder.n_done
    with tqdm(total=total, initial=done, desc="graph", unit="row", delay=1.0, leave=False, disable=not progress) as bar:
        for targets in builder.chunks():
            share = len(targets) / builder.about.n_layers
            builder.run_chunk(targets, lambda share=share: bar.update(share))  # type: ignore[misc]


def _trace_of(prompt: object, model: Model | None) -> Trace:
    """The run of the graph. SiteError for one with edits."""
    if isinstance(prompt, Trace):
        if model is not None and model is not prompt.model:
            raise GraphError(f"the trace is of {prompt.model.name!r}, and model={model!r} was given: leave it out")
        run = prompt
    else:
        model = model_or_nano(model)
        run = run_trace(model.ids(prompt), model=model)  # type: ignore[arg-type]
    require_plain(run, "an attribution graph")
    return run
