"""Pictures of lenses: the likeliest token of every layer and position, over a colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemmascope.arguments import one_of, true_or_false
from gemmascope.errors import SiteError
from gemmascope.figures.labelled import GLOBAL, labelled_figure, text
from gemmascope.legible import spelled
from gemmascope.tokens.tokenizer import shown

if TYPE_CHECKING:
    from gemmascope.analysis.lens import Lens

COLOURS = ("probability", "rank", "entropy")

# Tokens are written into the cells of a picture with at most so many columns, and cut to so many characters.
MOST_COLUMNS, MOST_LETTERS = 40, 9


def lens_figure(found: Lens, colour: str, of_answer: bool) -> Any:
    """A heat map with the top tokens as text. SiteError for a colour that there is not."""
    one_of(colour, "colour", COLOURS, error=SiteError)
    of_answer = true_or_false(of_answer, "of_answer", error=SiteError)
    array, unit = _drawn(found, colour, of_answer)
    if found.site == "stream":
        array = array.assign_coords(entry=_names(array))
    figure = labelled_figure(array, title=_title(found, of_answer), unit=unit, diverging=False, bound=_bound(colour))
    tokens = found.top_tokens.values[..., 0]
    if tokens.shape[1] <= MOST_COLUMNS:
        cells = [[text(spelled(shown(str(token)))[:MOST_LETTERS]) for token in row] for row in tokens]
        heat = figure.data[-1]
        heat.text, heat.texttemplate, heat.textfont = cells, "%{text}", {"size": 10}
    if found.site == "stream":
        ticks = {"tickmode": "array", "tickvals": list(range(len(found.entries))), "ticktext": _names(array)}
        figure.update_yaxes(title=f"stream ({GLOBAL} global layer)", **ticks)
    return figure


def _drawn(found: Lens, colour: str, of_answer: bool) -> tuple[Any, str]:
    if colour == "entropy":
        return found.entropy, "entropy (nats)"
    if colour == "rank" or of_answer:
        array = found.answer_rank if colour == "rank" else found.answer_prob
        return array, f"{colour} of the answer" + (" (0: the likeliest)" if colour == "rank" else "")
    return found.top_probs.isel(top=0), "probability of the token"


def _bound(colour: str) -> float | None:
    return 1.0 if colour == "probability" else None


def _names(array: Any) -> list[str]:
    """Each entry of the stream: 'embed', '3 ◆ resid_mid'."""
    entries = zip(*(array[label].values.tolist() for label in ("layer", "kind", "site")), strict=True)
    return [f"{layer} {GLOBAL if kind == 'global' else ''} {site}".replace("  ", " ") if kind else site
            for layer, kind, site in entries]  # fmt: skip


def _title(found: Lens, of_answer: bool) -> str:
    model = found.trace.model
    head = "" if found.head is None else f" of head {found.head}"
    followed = "" if not of_answer or found.answer is None else f", following {shown(model.texts(_tensor(found.answer))[0])}"
    return f"lens on {found.site}{head}, {model.name}{followed}"


def _tensor(number: int) -> Any:
    import torch

    return torch.tensor([number])
