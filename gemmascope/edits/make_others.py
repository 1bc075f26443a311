"""The public calls that cut attention edges, and that edit by a function of one's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gemmascope.arguments import short_repr
from gemmascope.edits.kinds import Custom, Knockout
from gemmascope.edits.places import Head, Pos
from gemmascope.errors import EditError


def knockout(*, layer: int, head: Head = None, q_pos: Pos = None, k_pos: Pos = None) -> Knockout:
    """Cut attention edges before the softmax: the queries no longer see the keys.

    Args:
        layer: The layer, counted from the end if negative.
        head: A query head or a list of them; None for all.
        q_pos: The query positions: a number, slice, list, or a token that occurs once; None for all.
        k_pos: The key positions that they no longer see; None for all.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.
        EditError: When the edit meets a run: a query would see no key at all, or the mask hides every named edge already.

    Examples:
        >>> t = gs.trace("Mary and John", edits=[gs.knockout(layer=3, q_pos=-1, k_pos=1)])
        >>> float(t["pattern", 3][:, -1, 1].max())
        0.0

    References:
        Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (arXiv 2304.14767).
    """
    return Knockout(layer=layer, head=head, q_pos=q_pos, k_pos=k_pos)


def edit(
    site: str,
    fn: Callable[[Tensor], Tensor | None],
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Custom:
    """Pass a site's values at some places through a function of your own.

    Args:
        site: The site to write, such as "z".
        fn: Called with the values at the named places, in the axes of the site ([pos, head, d_head] for heads); returns a
            tensor of the same shape, or None if it wrote in place. Minus infinity hides an edge, or a token at the logits.
        layer: The layer, counted from the end if negative; None for the sites outside the layers (embed, final, logits).
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        q_pos, k_pos: Query and key positions, in place of pos at scores, scores_capped and pattern; None for all.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        EditError: fn cannot be called; or, in the run, it returns another shape, NaN, or something that is no tensor.
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.

    Examples:
        >>> doubled = gs.trace("Mary and John", edits=[gs.edit("z", lambda z: 2 * z, layer=3, head=0)])
        >>> bool((doubled["z", 3][:, 0] == 2 * gs.trace("Mary and John")["z", 3][:, 0]).all())
        True
    """
    if not callable(fn):
        raise EditError(f"fn is a function of the values, such as lambda x: 2 * x; given {short_repr(fn)}")
    return Custom(site=site, fn=fn, layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)
