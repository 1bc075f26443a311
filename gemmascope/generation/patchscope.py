"""gs.patchscope: what a vector of one run says in another prompt: one line over edits in generation."""

from __future__ import annotations

from collections.abc import Sequence

from gemmascope.arguments import as_list, is_list
from gemmascope.edits.make import patch
from gemmascope.edits.places import find_position
from gemmascope.edits.sources import not_a_trace
from gemmascope.errors import SiteError
from gemmascope.generation.generate import generate
from gemmascope.generation.result import Generation
from gemmascope.model.model import Model, Prompt
from gemmascope.model.modes import computes
from gemmascope.run.trace import Trace
from gemmascope.sites import find, find_layer


@computes
def patchscope(
    trace: Trace,
    site: str = "resid_post",
    *,
    layer: int | Sequence[int],
    pos: int | str = -1,
    into: Prompt,
    into_layer: int | None = None,
    into_pos: int | str = -1,
    max_new_tokens: int = 8,
    model: Model | None = None,
) -> Generation | list[Generation]:
    """Put a run's value at one position into another prompt, and let the model continue that prompt.

    Args:
        trace: The run that the value is read from.
        site: The site to read and to write, such as "resid_post".
        layer: The layer to read; a list of layers gives a continuation for each.
        pos: The position to read: a number, or a token that occurs once.
        into: The prompt to write into, such as "cat -> cat; hello -> hello; ?".
        into_layer: The layer to write. None: the layer that is read.
        into_pos: The position to write: a number, counted in `into`, or a token that occurs once. Default: its last.
        max_new_tokens: How many tokens to generate at most.
        model: The model that continues. None: the trace's own; one of other sizes is an error.

    Returns:
        A Generation, as from gs.generate; for a list of layers a list of them.

    Raises:
        SiteError: trace is no trace, or a site, layer or position does not exist.
        EditError: The value does not fit the model that continues.
        PromptError: The prompt cannot be read.

    Examples:
        >>> t = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> read = gs.patchscope(t, layer=4, into="When Anna and Tom went to the park, Tom gave a ball to", max_new_tokens=1)
        >>> read.text
        ' Mary'

    References:
        Ghandeharioun et al., "Patchscopes: a unifying framework for inspecting hidden representations" (arXiv 2401.06102).
    """
    if not isinstance(trace, Trace):
        raise SiteError(f"a patchscope reads a trace, gs.trace(prompt); given {not_a_trace(trace)}")
    if is_list(layer) and getattr(layer, "ndim", 1) > 0:  # an array or tensor of no axis is a number
        return [
            patchscope(  # type: ignore[misc]
                trace, site, layer=one, pos=pos, into=into, into_layer=into_layer, into_pos=into_pos,
                max_new_tokens=max_new_tokens, model=model,
            )
            for one in [find_layer(each, trace.model.n_layers) for each in as_list(layer, "layer", error=SiteError)]
        ]  # fmt: skip
    model = trace.model if model is None else model
    address = find(site, trace.model.n_layers, layer)  # type: ignore[arg-type]
    if address.site.is_edges or address.is_after_layers:
        raise SiteError(f"a patchscope reads a row of a site with positions in the layers; '{address}' has none")
    row = find_position(pos, trace.model, trace.ids, "a patchscope reads one position")
    ids = model.ids(into)
    at = find_position(into_pos, model, ids, "a patchscope writes one position")
    to_layer = address.layer if into_layer is None else into_layer
    write = patch(address.site.name, trace[address.key][row], layer=to_layer, pos=at)
    result: Generation = generate(ids, model=model, edits=[write], max_new_tokens=max_new_tokens)
    return result
