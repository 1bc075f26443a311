"""The calls that make edits: patch, ablate, ablate_direction, add, scale, knockout, edit.

Each checks what can be checked without a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gemmascope.arguments import is_number, shown
from gemmascope.edits.ablate_direction import AblateDirection, HasVector
from gemmascope.edits.edit import Ablate, Add, Custom, Knockout, Patch, Scale
from gemmascope.edits.places import Head, Pos
from gemmascope.edits.sources import listed_reference
from gemmascope.errors import EditError
from gemmascope.values import is_array

if TYPE_CHECKING:
    from gemmascope.run.trace import Trace


def patch(
    site: str,
    source: Trace | Tensor,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Patch:
    """Replace a site's values by those of another run, or by a tensor.

    source: a Trace, read at the same site, layer and places; or a tensor or numpy array of the shape of what it replaces,
    or of its last axes. layer: the layer, negative from the end; none for embed, final and logits. pos: a number, slice,
    list, or a token that occurs once; None for all. head: a number or list; None for all; at k, k_rot and v it counts kv
    heads. q_pos, k_pos: instead of pos, at the edge sites scores, scores_capped and pattern.
    Errors come when the edit meets a run: SiteError for a place that is not there, EditError for a source that does not fit.
    """
    return Patch(site=site, source=source, layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)


def ablate(
    site: str,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    value: float | str = 0.0,
    reference: Sequence[Trace] = (),
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Ablate:
    """Replace a site's values by a constant, or by their mean over reference traces.

    value: a number; "mean", over all positions but the first of all references (<bos> carries a huge value of its own);
    or "mean_by_pos", over the references at each position, which must have the run's length. Places as in gs.patch.
    """
    reference = listed_reference(reference)
    value = value if isinstance(value, str) else _number("value", value)
    return Ablate(site=site, layer=layer, pos=pos, head=head, value=value, reference=reference, q_pos=q_pos, k_pos=k_pos)


def ablate_direction(
    site: str, vector: Tensor | HasVector, *, layer: int | None = None, pos: Pos = None, head: Head = None
) -> AblateDirection:
    """Remove a direction from a site's values: x - (x . u) u, u being the vector over its length.

    vector: one vector of the site's last axis (d_model; d_head at a site with heads, the same for all heads named), or
    what gs.direction returns. Places as in gs.patch; for all layers write one edit for each. EditError, when it meets a
    run, for zeros, NaN or another width.
    """
    found: Any = vector if is_array(vector) else getattr(vector, "vector", vector)
    return AblateDirection(site=site, vector=found, layer=layer, pos=pos, head=head)


def add(
    site: str,
    vector: Tensor,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    scale: float = 1.0,
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Add:
    """Add scale x vector to a site's values: steering.

    vector: a tensor or numpy array of the shape of the places, or of its last axes. Places as in gs.patch.
    """
    return Add(
        site=site,
        vector=vector,
        layer=layer,
        pos=pos,
        head=head,
        scale=_number("scale", scale),
        q_pos=q_pos,
        k_pos=k_pos,
    )


def scale(
    site: str,
    factor: float,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Scale:
    """Multiply a site's values by a factor. Places as in gs.patch."""
    return Scale(
        site=site,
        factor=_number("factor", factor),
        layer=layer,
        pos=pos,
        head=head,
        q_pos=q_pos,
        k_pos=k_pos,
    )


def knockout(*, layer: int, head: Head = None, q_pos: Pos = None, k_pos: Pos = None) -> Knockout:
    """Cut attention edges before the softmax: these queries of these heads no longer see these keys. None means all.

    EditError, when it meets a run, if a query would be left without any key, or if the mask hides all the edges named.
    """
    return Knockout(layer=layer, head=head, q_pos=q_pos, k_pos=k_pos)


def edit(
    site: str,
    fn: Callable[[Tensor], Tensor],
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Custom:
    """Pass a site's values at some places through a function of one's own.

    fn: takes the values there, with the axes of the site ([pos, head, d_head] for a head's positions), and returns
    a tensor of that shape, also where it writes in place. EditError, in the run, for anything else and for NaN; minus
    infinity hides an edge at the scores and a token at the logits.
    """
    if not callable(fn):
        raise EditError(f"fn is a function of the values, such as lambda x: 2 * x; given {shown(fn)}")
    return Custom(site=site, fn=fn, layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)


def _number(name: str, given: Any) -> float:
    """A number as a float. NaN and infinity are left to the run, whose error names the whole edit."""
    if not is_number(given):
        raise EditError(f"{name} is a number; given {shown(given)}")
    try:
        return float(given)
    except OverflowError as error:  # 10**400
        raise EditError(f"{name} is a number that a float can hold; given {shown(given)}") from error
