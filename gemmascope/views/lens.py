"""gs.lens_view: what each layer would answer at every position."""

from __future__ import annotations

import numpy as np
import torch

from gemmascope.analysis.lens import COLOURS, Lens, read_lens
from gemmascope.analysis.lens_rows import EVERY, STREAM
from gemmascope.arguments import one_of, whole_number
from gemmascope.circuits.jacobian.lens import JacobianLens
from gemmascope.circuits.jacobian.reading import lens_for
from gemmascope.edits.places import Pos, find_positions
from gemmascope.errors import SiteError
from gemmascope.run.trace import Trace
from gemmascope.tokens.tokenizer import visible_text
from gemmascope.views.labels import Label, are_special, position_label, prompt_of, require_trace
from gemmascope.views.packing import PackedArray, pack, pack_probabilities
from gemmascope.views.page import View

# How many top tokens a page holds over all its cells; each takes two bytes.
MOST_TOKENS = 60_000
# How many tokens of a cell a click lists, where a page has room for them.
LISTED = 10


def lens_view(
    trace: Trace,
    *,
    answer: str | int | None = None,
    site: str = "resid_post",
    colour: str = "probability",
    top: int = 5,
    pos: Pos = None,
    head: int | None = None,
    jacobian: JacobianLens | None = None,
) -> View:
    """The lens as a grid, layer by position, with the most likely token in each cell.

    The run's own answer at each position is outlined where it first leads; a token that the layer below answers as well is
    faint. The pointer shows the `top` most likely tokens of a cell; a click lists ten of them where the page has room, and
    draws the rank of the answer from layer to layer.

    Args:
        trace: The run to read.
        answer: A token to follow, as text or id: the colour can then be its probability or its rank. None for none.
        site: What to read, as in `gs.lens`: "resid_post" by default, "stream" for the stream after every sublayer.
        colour: What the colour stands for at first: "probability" (of the answer if there is one, else of each cell's
            top token), "rank" (of the answer; 0 is the most likely token) or "entropy" (in nats).
        top: How many tokens each cell holds.
        pos: The positions to show, as in `gs.patch`. None for all, or for as many of the last ones as a page holds; the
            view then says so.
        head: The head to read at `site="head_out"`. None elsewhere.
        jacobian: A Jacobian lens to read the stream through, as in `gs.jacobian_lens`, at `site="resid_post"`. None reads
            the stream as it is.

    Returns:
        The picture, self-contained.

    Raises:
        SiteError: A site, head, position or colour does not exist, or `pos` names more positions than a page holds.
        LensError: The Jacobian lens is of another model.
        PromptError: The answer is not one token.

    Examples:
        >>> view = gs.lens_view(gs.trace("When Mary and John went to the store, John gave a drink to"), answer=" Mary")
        >>> view.title
        'Lens on resid_post in nano'
        >>> view.rows[0][:2]
        ['5 (global)', '·Mary 0.99...']
    """
    require_trace(trace, "trace")
    if one_of(colour, "colour", COLOURS, error=SiteError) == "rank" and answer is None:
        raise SiteError("colour='rank' is of an answer: rank needs answer=")
    top = whole_number(top, "top", least=1, most=trace.model.config.vocab_size, error=SiteError)
    positions, clipped = _positions(trace, pos, site, top)
    held = _tokens_held(trace, site, top, len(positions))
    reading = read_lens(trace, site, held, positions, head, answer, _transport(trace, site, jacobian), final_ranks=True)
    distinct, token_numbers = torch.unique(torch.cat([reading.ids.flatten(), reading.final_ids]), return_inverse=True)
    token_numbers, finals = token_numbers[: -len(positions)].view(reading.ids.shape), token_numbers[-len(positions) :]
    tokens, special = trace.tokens, are_special(trace.model, trace.ids.tolist())
    spec = {
        "view": "lens",
        "title": f"{reading.title[0].upper()}{reading.title[1:]} in {trace.model.name}",
        "note": _note(reading, clipped),
        "rows": [_row_label(reading, i) for i in range(len(reading.entries))],
        "columns": [position_label(n, tokens[n], special[n]) for n in positions],
        "row_axis": "layer",
        "column_axis": "position",
        "up": True,
        "tokens": trace.model.texts(distinct),
        "top": top,
        "held": held,
        "follows": None if reading.answer is None else _answer_text(reading),
        "finals": finals.tolist(),
        "leads": reading.first_leads,
        "echo": _echo(reading),
        "colours": _colours(reading, colour),
    } | prompt_of(tokens, positions)
    summary = f"After {visible_text(tokens[positions[-1]])}, at position {positions[-1]}:"
    return View(spec, _arrays(reading, token_numbers.cpu().numpy().astype(np.uint16), top), summary, _table(reading, top))


def _transport(trace: Trace, site: object, jacobian: object) -> JacobianLens | None:
    """The Jacobian lens to read through. SiteError at another site than the stream after the layers."""
    if jacobian is None:
        return None
    if site != "resid_post":
        raise SiteError(f"a Jacobian lens reads site='resid_post'; given {site!r}")
    return lens_for(trace, jacobian)


def _positions(trace: Trace, pos: Pos, site: str, top: int) -> tuple[list[int], bool]:
    """The positions to show, and whether a long prompt's first ones were left out."""
    n_entries = _n_entries(trace, site)
    most = max(1, MOST_TOKENS // (n_entries * top))
    positions = find_positions(pos, trace.model, trace.ids)
    if len(positions) <= most:
        return positions, False
    if pos is not None:
        limit = f"a lens view of {n_entries} rows and top={top} has room for {most} positions"
        raise SiteError(f"{limit}; given {len(positions)}")
    return positions[-most:], True


def _n_entries(trace: Trace, site: str) -> int:
    return 2 * trace.model.n_layers + 1 if isinstance(site, str) and site == "stream" else trace.model.n_layers


def _tokens_held(trace: Trace, site: str, top: int, n_positions: int) -> int:
    """How many tokens of a cell the page holds: LISTED where it has room for them, and never fewer than top."""
    room = MOST_TOKENS // (_n_entries(trace, site) * n_positions)
    return max(top, min(LISTED, room, trace.model.config.vocab_size))


def _arrays(
    reading: Lens, token_numbers: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], top: int
) -> dict[str, PackedArray]:
    """The arrays of the view. token_numbers [entry, pos, held]: each cell's tokens, as indices of the spec's tokens."""
    probs = reading.probs.float().cpu().numpy()
    assert reading.final_ranks is not None
    arrays = {
        "ids": pack(token_numbers[..., :top]),
        "probs": pack_probabilities(probs[..., :top]),
        "more_ids": pack(token_numbers[..., top:]),
        "more_probs": pack_probabilities(probs[..., top:]),
        "final_rank": pack(reading.final_ranks.cpu().numpy().astype(np.float32)),
        "top": pack_probabilities(reading.probs[..., 0].float().cpu().numpy()),
        "entropy": pack(reading.entropies.float().cpu().numpy()),
    }
    if reading.followed:
        _, prob, rank = reading.followed
        arrays["prob"] = pack_probabilities(prob.float().cpu().numpy())
        arrays["rank"] = pack(rank.cpu().numpy().astype(np.float32))
    return arrays


def _colours(reading: Lens, first: str) -> list[dict[str, object]]:
    """What the colour can stand for, the user's choice first."""
    nats = {"kind": "sequential", "low": 0.0, "high": float(reading.entropies.max()) or 1.0}
    colours: list[dict[str, object]] = [
        _probability_colour("probability of the top token", "top"),
        {"name": "entropy", "array": "entropy", "unit": "nats", "scale": nats},
    ]
    if reading.followed:
        worst = max(1.0, float(reading.followed[2].max()))
        # Logarithmic, and rank 0, the best, in the strongest colour.
        ranks = {"kind": "sequential", "low": 0.0, "high": worst, "log": True, "reverse": True}
        colours = [
            _probability_colour("probability of the answer", "prob"),
            {"name": "rank of the answer (0: the likeliest)", "array": "rank", "unit": "rank", "scale": ranks},
            *colours,
        ]
    start = next(i for i, colour in enumerate(colours) if str(colour["name"]).startswith(first))
    return [colours[start], *(colour for i, colour in enumerate(colours) if i != start)]


def _probability_colour(name: str, array: str) -> dict[str, object]:
    scale = {"kind": "sequential", "low": 0.0, "high": 1.0}
    return {"name": name, "array": array, "unit": "probability", "decimals": 4, "scale": scale}


def _row_label(reading: Lens, i: int) -> Label:
    site, layer = reading.entries[i]
    if layer is None:
        return {"label": site, "kind": None}
    kind = reading.trace.model.config.kinds[layer]
    label = f"{layer} {site}" if reading.site == "stream" else str(layer)
    return {"label": label, "kind": kind, "hint": f"{label} ({kind})"}


def _table(reading: Lens, top: int) -> list[list[str]]:
    """What each layer would answer after the last position, layer 0 at the bottom: the table in the picture's place."""
    rows = []
    for i in range(len(reading.entries)):
        texts, probs = reading.trace.model.texts(reading.ids[i, -1, :top]), reading.probs[i, -1, :top]
        tops = [f"{visible_text(text)} {float(prob):.4f}" for text, prob in zip(texts, probs, strict=True)]
        rank = [f"rank of the answer {int(reading.followed[2][i, -1])}"] if reading.followed else []
        rows.append([_row_label(reading, i).get("hint", reading.entries[i][0]), *tops, *rank])
    return rows[::-1]


def _echo(reading: Lens) -> str:
    """Why early layers answer with the token that they stand on; empty where they do not."""
    own = reading.trace.ids[list(reading.positions)].to(reading.ids.device)
    shares = (reading.ids[..., 0] == own).float().mean(-1).tolist()
    n = next((i for i, share in enumerate(shares) if share <= 0.5), len(shares))
    if n == 0 or reading.site not in (*STREAM, EVERY):
        return ""
    first, last = (_row_label(reading, i)["label"] for i in (0, n - 1))
    if reading.site == EVERY:
        rows = f"Up to {last} the stream" if n > 1 else f"At {first} the stream"
    else:
        rows = f"Layer {first}" if n == 1 else f"Layers {first} to {last}"
    return (
        f"{rows} mostly {'reads' if n == 1 or reading.site == EVERY else 'read'} as the token itself: "
        "the unembedding is the embedding's transpose, and the token's embedding is still the largest part of the stream."
    )


def _note(reading: Lens, clipped: bool) -> str:
    follows = "" if reading.answer is None else f", and how {visible_text(_answer_text(reading))} fares as the next one"
    read = "" if reading.transport is None else ", read through the mean Jacobian from the layer to the last one"
    note = f"The likeliest next token at each place{read}{follows}."
    if clipped:
        first, last = reading.positions[0], reading.positions[-1]
        note += f" For the size of the page positions {first} to {last} are shown: pos= chooses others."
    return note


def _answer_text(reading: Lens) -> str:
    return reading.trace.model.texts(torch.tensor([reading.answer]))[0]
