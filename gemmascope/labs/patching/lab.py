"""gs.patching_lab: activation patching by looking and clicking, over gs.sweep and gs.attribute."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from gemmascope.arguments import shown, whole_number
from gemmascope.errors import SweepError
from gemmascope.labs.display import Shown
from gemmascope.labs.patching.experiment import Experiment
from gemmascope.labs.patching.files import compared, save, view_of
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.state import label_of
from gemmascope.labs.static_fallback import Still
from gemmascope.legible import legibly, spelled
from gemmascope.model.model import Model
from gemmascope.views.page import View


class PatchingLab(LabSession, Shown):
    """A patching lab: the last expression of a cell shows it. Everything that it shows can be had in Python as well.

    run(what, row, column), wait(), cancel(), result; set(site="z"), swap(); code(), to_dataframe(), view(), save(path);
    experiments(), compare(i, j); close(), or `with`, frees it. When the cell that shows it is run again, its widgets are
    closed, and what it was computing ends; the lab itself goes once nothing refers to it.
    """

    def _parts(self) -> tuple[Sequence[Any], Callable[[], None]]:
        """The controls over the grid."""
        from gemmascope.labs.patching.controls import Panel
        from gemmascope.labs.patching.widget import LiveEnd

        end = LiveEnd(self, self.still)
        panel = Panel(self, end.push)
        end.settings_changed = panel.show
        return [panel.box(), end.widget], self._silent

    def _silent(self) -> None:
        self.listener = None
        self.still.end()

    def view(self) -> View:
        """The grid as it is now, as a picture that needs no kernel. SweepError where the question cannot be run."""
        self.wait_until_prepared()
        return view_of(self._experiment())

    def compare(self, index: int = 0, other: int = -1) -> tuple[View, View]:
        """Two of lab.experiments() on one scale. SweepError for one that is not there."""
        found = self.experiments()
        index, other = (whole_number(n, "an experiment", error=SweepError) for n in (index, other))
        if not all(-len(found) <= n < len(found) for n in (index, other)):
            raise SweepError(f"there are {len(found)} experiments with numbers; given {shown(index)} and {shown(other)}")
        return compared(found[index], found[other])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the lab to a file: .html (a page), .csv (a table), .py (a script), .png (a picture; needs kaleido).

        In a .csv, texts that a spreadsheet would take for a formula begin with an apostrophe (gemmascope.files.csv_tables).
        SweepError for a file that cannot be written.
        """
        self.wait_until_prepared()
        save(self, path)

    def to_dataframe(self) -> Any:
        """One row a cell: its place, its effect, and whether that is exact, estimated or not run."""
        self.wait_until_prepared()
        return self._experiment().to_dataframe()

    def code(self) -> str:
        self.wait_until_prepared()
        return super().code()

    def _ipython_display_(self) -> None:
        """The live widget, and a still of the grid for notebooks that are saved, exported or have no front end for it."""
        self.wait_until_prepared(timeout=2.0)
        self.still.show(lambda: self.widget)

    @cached_property
    def still(self) -> Still:
        """What stands in the widget's place when there is no kernel."""
        return Still(self._still_html, lambda: repr(self))

    def _still_html(self) -> str:
        found: Experiment | None = self.experiment
        return "" if found is None else view_of(found).to_html()

    @legibly
    def __repr__(self) -> str:
        s = self.settings
        asked = f"{s.site} by {', '.join(s.by)}, into the {s.into} run"
        lines = [f"PatchingLab of {spelled(self.model.name)}: {asked}{self._closed_text}"]
        lines += [f"  {remark.level}: {remark.text}" for remark in self.checks]
        if self.experiment is not None:
            lines.append(f"  {label_of(self.experiment)}; lab.run() computes every cell, lab.result holds what is exact")
        return "\n".join(lines)


def patching_lab(
    clean: Any, corrupt: Any, answer: Any, against: Any, model: Model | None = None, **settings: Any
) -> PatchingLab:
    """A patching lab about two prompts and two answers: a grid of patches, estimated, then exact where one clicks.

    clean, corrupt: two prompts of equal length. answer, against: what the metric is about, each one token (" Mary", with
    its leading space). model: None means nano. settings: site, by (two axes), into, layers ("all", "local", "global"),
    metric ("logit_diff", "answer_prob", "answer_logprob"), as they stand at first.
    What cannot be run is shown in the lab, with what to do, and raised by lab.run(). SweepError or SiteError for a setting
    that there is not. Nothing but the two prompts runs before it is asked for.
    """
    return PatchingLab(clean, corrupt, answer, against, model, **settings)
