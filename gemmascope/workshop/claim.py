"""A claim to judge in writing before the numbers judge it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemmascope.errors import GemmascopeError
from gemmascope.legible import prints_legibly
from gemmascope.workshop.setup import kernel
from gemmascope.workshop.widgets import show_widget

if TYPE_CHECKING:
    import ipywidgets

QUESTION = "Do you believe it? Which number would prove it wrong? Write a sentence before you go on."

# By their numbers: a notebook that is run again keeps what was written.
_CLAIMS: dict[str, Claim] = {}


class Claim:
    """A claim, and what a learner writes about it: in a box in a notebook, or with write(...) in code."""

    def __init__(self, number: str, text: str) -> None:
        self.number, self.text = number, text
        self.written = ""
        self.box: ipywidgets.Textarea | None = None  # the one that was shown last

    def write(self, text: str) -> None:
        """Say what you think of the claim; the box shows it.

        Args:
            text: Your sentence.

        Raises:
            GemmascopeError: It is empty.
        """
        if not isinstance(text, str) or not text.strip():
            raise GemmascopeError(f"claim {self.number}: write a sentence; given {text!r}")
        self.written = text.strip()
        if self.box is not None:
            self.box.value = self.written

    def verdict(self, says: str) -> str:
        """What the numbers say, below what was written; as long as nothing was written, only a request to write.

        Args:
            says: The verdict of the numbers.
        """
        if not self.written:
            return f"claim {self.number}: write what you think in the box above, then run this cell again for the verdict"
        return f"you wrote:       {self.written}\nthe numbers say: {says}"

    @prints_legibly
    def __repr__(self) -> str:
        return f"claim {self.number}: {self.text}\n{self.written or QUESTION + ' .write(...)'}"

    def _ipython_display_(self) -> None:
        if kernel() is None:
            print(repr(self))
            return
        show_widget(_box(self), repr(self))


def claim(number: str, text: str) -> Claim:
    """State a claim that a learner judges in writing before the numbers do. A claim with the same number keeps its text.

    Args:
        number: The number of the claim, such as "4".
        text: The claim.

    Returns:
        The claim, which shows a box to write in, in a notebook. Its verdict waits for what is written there.

    Raises:
        GemmascopeError: The text is empty.

    Examples:
        >>> mine = gs.workshop.claim("0.0", "2 + 2 is more than 2 x 2")
        >>> print(mine.verdict("refuted"))
        claim 0.0: write what you think in the box above, then run this cell again for the verdict
        >>> mine.write("No: both are 4")
        >>> print(mine.verdict("refuted"))
        you wrote:       No: both are 4
        the numbers say: refuted
    """
    if not isinstance(text, str) or not text.strip():
        raise GemmascopeError(f"a claim has a text; given {text!r}")
    new = Claim(number, text)
    earlier = _CLAIMS.get(number)
    if earlier is not None and earlier.text == text:
        new.written = earlier.written
    _CLAIMS[number] = new
    return new


def _box(claim: Claim) -> ipywidgets.VBox:
    import ipywidgets

    wide = ipywidgets.Layout(width="100%", max_width="720px")
    said = f"<b>Claim:</b> {html.escape(claim.text)}<br>{html.escape(QUESTION)}"
    text = ipywidgets.HTML(f'<div style="line-height:1.5">{said}</div>', layout=wide)
    box = ipywidgets.Textarea(value=claim.written, placeholder="your sentence", rows=2, layout=wide, continuous_update=True)
    box.tooltip = f"What you think of claim {claim.number}"

    def take(change: Mapping[str, str]) -> None:
        claim.written = change["new"].strip()

    box.observe(take, names="value")
    claim.box = box
    return ipywidgets.VBox([text, box])
