"""The public calls that make edits. Each checks what can be checked without a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gemmascope.arguments import is_number, short_repr
from gemmascope.edits.conditional import Condition, under_condition
from gemmascope.edits.edit import Edit
from gemmascope.edits.kinds import Ablate, AblateDirection, Add, HasVector, Patch, Scale
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
    when: Condition | None = None,
) -> Edit:
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
        when: A condition, gs.feature_on(...) or gs.probe_above(...), or a function of the rows at the site that returns a
            bool for each position: the edit is made where it holds. None: at all named places.

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
    made = Patch(site=site, source=source, layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)
    return under_condition(made, when)


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
    when: Condition | None = None,
) -> Edit:
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
        when: A condition, gs.feature_on(...) or gs.probe_above(...), or a function of the rows at the site that returns a
            bool for each position: the edit is made where it holds. None: at all named places.

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
    made = Ablate(site=site, layer=layer, pos=pos, head=head, value=value, reference=reference, q_pos=q_pos, k_pos=k_pos)
    return under_condition(made, when)


def ablate_direction(
    site: str,
    vector: Tensor | HasVector,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    when: Condition | None = None,
) -> Edit:
    """Remove a direction from a site's values: x - (x . u) u, with the unit vector u.

    Args:
        site: The site to write, such as "resid_post".
        vector: A vector along the site's last axis, [d_model], or [d_head] at a site with heads, where every named head uses
            it; or what gs.direction returns. Its length does not matter.
        layer: The layer, counted from the end if negative; write one edit per layer to cover several.
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        when: A condition, gs.feature_on(...) or gs.probe_above(...), or a function of the rows at the site that returns a
            bool for each position: the edit is made where it holds. None: at all named places.

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
    made = AblateDirection(site=site, vector=values, layer=layer, pos=pos, head=head)  # type: ignore[arg-type]
    return under_condition(made, when)


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
    when: Condition | None = None,
) -> Edit:
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
        when: A condition, gs.feature_on(...) or gs.probe_above(...), or a function of the rows at the site that returns a
            bool for each position: the edit is made where it holds. None: at all named places.

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
    made = Add(
        site=site, vector=vector, layer=layer, pos=pos, head=head, scale=_number("scale", scale), q_pos=q_pos, k_pos=k_pos
    )
    return under_condition(made, when)


def scale(
    site: str,
    factor: float,
    *,
    layer: int | None = None,
    pos: Pos = None,
    head: Head = None,
    q_pos: Pos = None,
    k_pos: Pos = None,
    when: Condition | None = None,
) -> Edit:
    """Multiply a site's values by a factor.

    Args:
        site: The site to write, such as "attn_out".
        factor: What the values are multiplied by; 0 removes them, 1 changes nothing.
        layer: The layer, counted from the end if negative; None for the sites outside the layers (embed, final, logits).
        pos: Positions: a number (negative from the end), a slice, a list, or a token that occurs once; None for all.
        head: A head or a list of heads; None for all. At k, k_raw, k_rot and v it counts kv heads.
        q_pos, k_pos: Query and key positions, in place of pos at scores, scores_capped and pattern; None for all.
        when: A condition, gs.feature_on(...) or gs.probe_above(...), or a function of the rows at the site that returns a
            bool for each position: the edit is made where it holds. None: at all named places.

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
    made = Scale(site=site, factor=_number("factor", factor), layer=layer, pos=pos, head=head, q_pos=q_pos, k_pos=k_pos)
    return under_condition(made, when)


def _number(name: str, value: object) -> float:
    """A number as a float. NaN and infinity are left to the run, whose error names the whole edit."""
    if not is_number(value):
        raise EditError(f"{name} is a number; given {short_repr(value)}")
    try:
        return float(value)
    except OverflowError as error:  # 10**400
        raise EditError(f"{name} is a number that a float can hold; given {short_repr(value)}") from error
