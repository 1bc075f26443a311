"""gs.jacobian_lens: what each layer disposes the model to say, read through the mean Jacobian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmascope.analysis.lenses import read_lenses
from gemmascope.arguments import short_repr
from gemmascope.circuits.jacobian.lens import JacobianLens
from gemmascope.circuits.jacobian.load import load_jacobian_lens
from gemmascope.edits.places import Pos
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import LensError, SiteError
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.metric import Answer
from gemmascope.run.trace import Trace


@computes
def jacobian_lens(
    trace: Trace | list[Trace] | tuple[Trace, ...],
    lens: JacobianLens | None = None,
    top: int = 5,
    *,
    pos: Pos = None,
    answer: Answer | list[Answer] | None = None,
    against: Trace | Prompt | Sequence[Trace] | Sequence[Prompt] | None = None,
) -> Any:
    """Read the stream through a Jacobian lens: what the stream after each layer goes on to make the model say, on average.

    gs.lens reads the stream as if the later layers were skipped. Here each row h of ("resid_post", layer) is first carried
    to J @ h, where J is the mean Jacobian from that layer to the last one, and then goes through the last norm, the
    unembedding and the soft cap. At the last layer the logits are the run's own. Layers that the lens has no matrix for are
    left out.

    Args:
        trace: What gs.trace returns; the list that it returns for several prompts gives means over them.
        lens: What gs.fit_jacobian_lens or gs.load_jacobian_lens returns. None is for runs of nano alone: the lens inside the
            package.
        top: How many of the likeliest tokens to keep at each place.
        pos: The positions to read, as in gs.patch; None means all.
        answer: A token to follow, as in gs.lens.
        against: Another run to compare with, as in gs.lens.

    Returns:
        As gs.lens: a Lens, whose transport is the Jacobian lens; with `against` a LensDifference; for a list of traces their
        means.

    Raises:
        LensError: For a lens of another model, or none where the model is not nano.
        SiteError: For a position or number of tokens that is not there, or several answers.
        PromptError: For an answer that is not one token.

    Examples:
        >>> trace = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> reading = gs.jacobian_lens(trace, answer=" Mary", pos=-1)
        >>> reading.answer_rank.values.ravel()
        array([...])
        >>> reading.top_tokens.values[-1, 0, 0]
        ' Mary'

    References:
        Gurnee et al., "Verbalizable Representations Form a Global Workspace in Language Models" (Transformer
        Circuits, 2026).
    """
    transport = lens_for(trace, lens)
    return read_lenses(trace, "resid_post", top, pos, None, answer, against, transport)


def lens_for(trace: object, lens: object) -> JacobianLens:
    """The lens to read a run or a list of runs with: the given one, or nano's own. LensError if it does not fit."""
    runs = [run for run in (trace if isinstance(trace, (list, tuple)) else [trace]) if isinstance(run, Trace)]
    if not runs:
        raise SiteError(f"a lens reads a trace: gs.jacobian_lens(gs.trace(prompt)); given {not_a_trace(trace)}")
    if lens is not None and not isinstance(lens, JacobianLens):
        raise LensError(f"lens is what gs.fit_jacobian_lens or gs.load_jacobian_lens returns; given {short_repr(lens)}")
    transport = _of_nano(runs[0].model) if lens is None else lens
    for model in {id(run.model): run.model for run in runs}.values():
        transport.require_fit(model)
    return transport


def _of_nano(model: Model) -> JacobianLens:
    transport = load_jacobian_lens("nano", device=model.device)
    if transport.fingerprint != model.network_fingerprint:
        raise LensError(
            f"{model.name!r} has no lens inside the package: give one, lens=gs.load_jacobian_lens(file) or "
            "gs.fit_jacobian_lens(model, texts)"
        )
    return transport
