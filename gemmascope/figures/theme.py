"""The colours of figures and what they have in common, chosen so that they can be read on light and on dark pages.

A figure does not know the page it will stand on. So its grounds are transparent, its text is of a grey that contrasts alike
with white and with black, and the colour of zero lets the page shine through. The hues are those of views.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gemmascope.legible import legible_line
from gemmascope.packages import plotly

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
    from plotly.graph_objs.layout import Template

ColourScale = list[tuple[float, str]]

# ColorBrewer's RdBu and Blues, which colour-blind readers can tell apart: red is negative, blue positive.
NEGATIVE, POSITIVE, PLAIN = "#b2182b", "#2166ac", "#2f7cc4"
NOTHING = "rgba(128,136,148,0.10)"  # zero: hardly more than the page
DIVERGING: ColourScale = [
    (0.0, NEGATIVE), (0.25, "rgba(214,84,70,0.6)"), (0.5, NOTHING), (0.75, "rgba(67,130,195,0.6)"), (1.0, POSITIVE),
]  # fmt: skip
SEQUENTIAL: ColourScale = [(0.0, NOTHING), (0.5, "rgba(67,130,195,0.6)"), (1.0, POSITIVE)]
# Opaque, for cells with text in them, whose ink plotly chooses by the colour.
UNDER_TEXT: ColourScale = [(0.0, "#f7fbff"), (0.25, "#c6dbef"), (0.5, "#6baed6"), (0.75, "#2171b5"), (1.0, "#08306b")]

TRANSPARENT = "rgba(0,0,0,0)"
INK = "#767b83"
LINE, HATCH = "rgba(118,123,131,0.25)", "rgba(118,123,131,0.35)"
FONT = "system-ui, sans-serif"
# Plotly wraps no text: characters of a line below a title, the most lines, and pixels of the margin above and of each line.
LINE_LENGTH, MOST_LINES, ABOVE, LINE_HEIGHT = 96, 6, 72, 16

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%{": "&#37;{"}


def template() -> Template:
    """The template of every figure."""
    layout = plotly().layout
    axis = {"gridcolor": LINE, "linecolor": LINE, "zerolinecolor": INK, "zerolinewidth": 1, "ticks": "", "automargin": True}
    axis["title"] = {"standoff": 12}
    bar = {"outlinewidth": 0, "thickness": 12, "ticks": ""}
    made: Template = layout.Template(
        layout={
            "font": {"family": FONT, "size": 12, "color": INK},
            "title": {
                "font": {"size": 14},
                "x": 0.02,
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 16},
            },
            "paper_bgcolor": TRANSPARENT,
            "plot_bgcolor": TRANSPARENT,
            "colorway": [PLAIN, "#d6604d", "#5b9f00", "#9b6fb5"],
            "xaxis": axis,
            "yaxis": axis,
            "coloraxis": {"colorbar": bar},
            "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
            "margin": {"t": ABOVE},
        },
        data={"heatmap": [{"colorbar": bar}], "bar": [{"marker": {"line": {"width": 0}}}]},
    )
    return made


def style_figure(figure: Figure, title: str, subtitle: str = "", **layout: object) -> None:
    """Give a figure the template, a title and further layout. title, subtitle: plain text, escaped here; empty for none.

    A subtitle of several lines, or a long one, gets more room above the figure.
    """
    settings = {"showlegend": False, **layout}
    figure.update_layout(template=template(), title_text=escape_label(title), **settings)
    if not subtitle:
        return
    lines = [part for line in subtitle.split("\n") for part in textwrap.wrap(line, LINE_LENGTH) or [""]]
    lines = lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1]} ..."]
    figure.update_layout(title_subtitle={"text": "<br>".join(map(escape_label, lines)), "font_size": 12})
    more = LINE_HEIGHT * (len(lines) - 1)
    if more:
        figure.update_layout(margin_t=(figure.layout.margin.t or ABOVE) + more)
        if figure.layout.height:
            figure.update_layout(height=figure.layout.height + more)


def escape_label(label: str) -> str:
    """A label escaped for plotly, so that a token is drawn as it is.

    In labels plotly reads a little HTML, TeX between two dollar signs when MathJax is loaded, and, in hover text, values
    after a percent sign. It does not look for any of these in HTML entities.
    """
    for char, entity in _ENTITIES.items():
        label = label.replace(char, entity)
    return legible_line(label)
