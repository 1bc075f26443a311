"""gs.patching_lab: activation patching by looking and clicking, over gs.sweep and gs.attribute."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gemmascope.arguments import short_repr, whole_number
from gemmascope.errors import SweepError
from gemmascope.labs.base import LabBase
from gemmascope.labs.patching.files import save
from gemmascope.labs.patching.picture import compared_views, label_of, view_of
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.state import handlers_of, snapshot_of
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.views.page import View

if TYPE_CHECKING:
    import pandas

    from gemmascope.labs.fields import Fields
    from gemmascope.labs.widget import Handlers, Trait


class PatchingLab(LabSession, LabBase):
    """A patching lab: the last expression of a cell shows it. Everything that it shows can be had in Python as well.

    run(what, row, column), wait(), cancel(), result; set(site="z"), swap(); code(), to_dataframe(), view(), save(path);
    experiments(), compare(i, j); close(), or `with`, frees it.
    """

    MODULE = "patching_lab.js"

    def view(self) -> View:
        """The grid as it is now, as a picture that needs no kernel. SweepError if the settings cannot be run."""
        self.wait_until_prepared()
        return view_of(self._prepared())

    def compare(self, index: int = 0, other: int = -1) -> tuple[View, View]:
        """Two of lab.experiments() on one scale. SweepError for a number that has none."""
        experiments = self.experiments()
        index, other = (whole_number(n, "an experiment", error=SweepError) for n in (index, other))
        if not all(-len(experiments) <= n < len(experiments) for n in (index, other)):
            raise SweepError(
                f"there are {len(experiments)} experiments with numbers; given {short_repr(index)} and {short_repr(other)}"
            )
        return compared_views(experiments[index], experiments[other])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the lab to a file: .html (a page), .csv (a table), .py (a script), .png (a picture; needs kaleido).

        In a .csv, texts that a spreadsheet would take for a formula begin with an apostrophe (gemmascope.files.csv_tables).
        SweepError for a file that cannot be written.
        """
        self.wait_until_prepared()
        save(self, path)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a cell: its place, its effect, and whether that is exact, estimated or not run."""
        self.wait_until_prepared()
        return self._prepared().to_dataframe()

    def code(self) -> str:
        self.wait_until_prepared()
        return super().code()

    def _snapshot(self) -> dict[str, Trait]:
        return snapshot_of(self)

    def _handlers(self) -> Handlers:
        return handlers_of(self)

    def _fields(self) -> Fields:
        from gemmascope.labs.patching.controls import fields_of

        return fields_of(self, self._typed)

    def _fallback_html(self) -> str:
        return "" if self.experiment is None else view_of(self.experiment).to_html()

    @prints_legibly
    def __repr__(self) -> str:
        s = self.settings
        grid = f"{s.site} by {', '.join(s.by)}, into the {s.into} run"
        lines = [f"PatchingLab of {legible_line(self.model.name)}: {grid}{self._closed_text}"]
        lines += [f"  {remark.level}: {remark.text}" for remark in self.checks]
        if self.experiment is not None:
            lines.append(f"  {label_of(self.experiment)}; lab.run() computes every cell, lab.result holds what is exact")
        return "\n".join(lines)


def patching_lab(
    clean: Prompt, corrupt: Prompt, answer: Answer, against: Answer, model: Model | None = None, **settings: Any
) -> PatchingLab:
    """Open a live lab for activation patching: a grid of patches, estimated, then exact where one clicks.

    In a notebook the last expression of a cell shows the lab. A click on a cell runs its patch and shows its exact effect,
    the likeliest answers before and after, and a head's pattern. Only the two prompts run before anything is clicked.
    Settings that cannot be run are shown in the lab with what to do about them, and raised by `lab.run()`.

    Args:
        clean: The prompt with the right answer: text (`<bos>` is put in front), token ids, or chat messages.
        corrupt: A prompt of as many tokens that leads to another answer.
        answer: The clean prompt's answer: one token, as text (" Mary", with its leading space) or as an id.
        against: The corrupted prompt's answer, whose logit is subtracted.
        model: The model to run; None means nano.
        **settings: The lab's first settings. `site` ("resid_pre"): where to patch. `by`: the grid's two axes, rows and
            columns; ("layer", "pos"), or the site's heads by layer. `into` ("corrupt"): the run that is patched, or "clean".
            `layers` ("all"): or "local", "global". `metric` ("logit_diff"): or "answer_prob", "answer_logprob".

    Returns:
        The lab. `run(what, row, column)` computes a part of the grid in Python: "all", "estimate", "cell", "row", "column"
        or "rectangle"; `result` is a `SweepResult` of the exact cells [pair, *by], float64, NaN where nothing ran.
        `set(...)` changes settings, `save(path)` writes a page, table, script or picture, `close()` frees the lab.

    Raises:
        SweepError: There is no such setting, or a setting has no such value.
        SiteError: There is no such site.

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> with gs.patching_lab(clean, corrupt, " Mary", " John") as lab:
        ...     result = lab.run("cell", 0, 10)
        >>> result.effect.sel(layer=0, pos=10).item() > 10
        True

    References:
        Vig et al. 2020, "Causal Mediation Analysis for Interpreting Neural NLP", arXiv:2004.12265.
        Heimersheim and Nanda 2024, "How to use and interpret activation patching", arXiv:2404.15255.
    """
    return PatchingLab(clean, corrupt, answer, against, model, **settings)
