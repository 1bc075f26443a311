"""The public calls that make edits. Each checks what can be checked without a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gemmascope.arguments import is_number, short_repr
from gemmascope.edits.kinds import Ablate, AblateDirection, Add, Custom, HasVector, Knockout, Patch, Scale
from gemmascope.edits.places import Head, Pos
from gemmascope.edits.sources import ReadableRun, listed_reference
from gemmascope.errors import EditError
from gemmascope.values import is_array


def patch(
    site: str,
    source: ReadableRun | Tensor,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Patch:
    """Replace a site's values by those of another run, or by a tensor.

    Args:
        site: The site to write, such as "resid_post"; gs.SITES lists them.
        source: A Trace, read at the same positions, counted in the run that is edited (pos=-1 is its last position, whatever
            the source's length). With pos=None the lengths must be equal; for another position of the source give a tensor,
            t['z', 2][3]. A tensor or array has the axes of the selected values; leading axes may be left out, and are then
            repeated.
        layer: The layer, counted from the end if negative; None for the sites outside the layers (embed, final, logits).
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        q_pos, k_pos: Query and key positions, in place of pos at scores, scores_capped and pattern; None for all.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.
        EditError: When the edit meets a run: the source does not fit.

    Examples:
        Patching the last position's stream carries the other run's answer over.

        >>> clean = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> corrupt = gs.trace("When Mary and John went to the store, Mary gave a drink to")
        >>> patched = gs.trace(clean.ids, edits=[gs.patch("resid_post", corrupt, layer=4, pos=-1)])
        >>> clean.top(1)[0][0], patched.top(1)[0][0]
        (' Mary', ' John')

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262).
    """
    return Patch(site=site, source=source, layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)


def ablate(
    site: str,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    value: float | str = 0.0,
    reference: Sequence[ReadableRun] = (),
    q_pos: Pos = None,
    k_pos: Pos = None,
) -> Ablate:
    """Replace a site's values by a constant, or by their mean over reference traces.

    Args:
        site: The site to write, such as "z".
        layer: The layer, counted from the end if negative; None for the sites outside the layers (embed, final, logits).
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        value: A number; "mean", over all positions of all references but the first (`<bos>` carries huge values); or
            "mean_by_pos", over the references at each position, which then have the run's length. Default 0.0.
        reference: The traces to take the mean over; empty for a number.
        q_pos, k_pos: Query and key positions, in place of pos at scores, scores_capped and pattern; None for all.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        EditError: value is neither a number nor the name of a mean, or reference is not a list of traces.
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.

    Examples:
        Without the attention of layer 2, nano names the giver.

        >>> prompt = "When Mary and John went to the store, John gave a drink to"
        >>> gs.trace(prompt, edits=[gs.ablate("attn_out", layer=2)]).top(1)[0][0]
        ' John'
    """
    reference = listed_reference(reference)
    value = value if isinstance(value, str) else _number("value", value)
    return Ablate(site=site, layer=layer, pos=pos, head=head, value=value, reference=reference, q_pos=q_pos, k_pos=k_pos)


def ablate_direction(
    site: str, vector: Tensor | HasVector, *, layer: int | None = None, pos: Pos = None, head: Head = None
) -> AblateDirection:
    """Remove a direction from a site's values: x - (x . u) u, with the unit vector u.

    Args:
        site: The site to write, such as "resid_post".
        vector: A vector along the site's last axis, [d_model], or [d_head] at a site with heads, where every named head uses
            it; or what gs.direction returns. Its length does not matter.
        layer: The layer, counted from the end if negative; write one edit per layer to cover several.
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.
        EditError: When the edit meets a run: the vector is zero, holds NaN, or has another width.

    Examples:
        >>> clean = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> u = clean["resid_post", 4][-1]
        >>> removed = gs.trace(clean.ids, edits=[gs.ablate_direction("resid_post", u, layer=4, pos=-1)])
        >>> bool((removed["resid_post", 4][-1] @ u).abs() < 1e-2)
        True

    References:
        Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (arXiv 2406.11717).
    """
    values = vector if is_array(vector) else getattr(vector, "vector", vector)
    return AblateDirection(site=site, vector=values, layer=layer, pos=pos, head=head)  # type: ignore[arg-type]


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

    Args:
        site: The site to write, such as "resid_post".
        vector: A tensor or array with the axes of the selected values, such as [pos, d_model]; leading axes may be left out,
            and are then repeated, as for [d_model].
        layer: The layer, counted from the end if negative; None for the sites outside the layers (embed, final, logits).
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        scale: What the vector is multiplied by. Default 1.0.
        q_pos, k_pos: Query and key positions, in place of pos at scores, scores_capped and pattern; None for all.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        EditError: scale is no number; or, when the edit meets a run, the vector does not fit.
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.

    Examples:
        >>> clean = gs.trace("When Mary and John went to the store, John gave a drink to")
        >>> corrupt = gs.trace("When Mary and John went to the store, Mary gave a drink to")
        >>> towards = corrupt["resid_post", 4][-1] - clean["resid_post", 4][-1]
        >>> gs.trace(clean.ids, edits=[gs.add("resid_post", towards, layer=4, pos=-1)]).top(1)[0][0]
        ' John'

    References:
        Turner et al., "Steering Language Models With Activation Engineering" (arXiv 2308.10248).
    """
    return Add(
        site=site, vector=vector, layer=layer, pos=pos, head=head, scale=_number("scale", scale), q_pos=q_pos, k_pos=k_pos
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
    """Multiply a site's values by a factor.

    Args:
        site: The site to write, such as "attn_out".
        factor: What the values are multiplied by; 0 removes them, 1 changes nothing.
        layer: The layer, counted from the end if negative; None for the sites outside the layers (embed, final, logits).
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        q_pos, k_pos: Query and key positions, in place of pos at scores, scores_capped and pattern; None for all.

    Returns:
        The edit, for edits= of gs.trace, gs.generate and gs.sweep.

    Raises:
        EditError: factor is not a finite number.
        SiteError: When the edit meets a run: a site, layer, position or head does not exist.

    Examples:
        >>> halved = gs.trace("Mary and John", edits=[gs.scale("attn_out", 0.5, layer=3)])
        >>> bool((halved["attn_out", 3] == 0.5 * gs.trace("Mary and John")["attn_out", 3]).all())
        True
    """
    return Scale(site=site, factor=_number("factor", factor), layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)


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


def _number(name: str, value: object) -> float:
    """A number as a float. NaN and infinity are left to the run, whose error names the whole edit."""
    if not is_number(value):
        raise EditError(f"{name} is a number; given {short_repr(value)}")
    try:
        return float(value)
    except OverflowError as error:  # 10**400
        raise EditError(f"{name} is a number that a float can hold; given {short_repr(value)}") from error
