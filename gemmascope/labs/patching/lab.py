"""gs.patching_lab: activation patching by looking and clicking, over gs.sweep and gs.attribute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmascope.arguments import short_repr, true_or_false, whole_number
from gemmascope.errors import GemmascopeError, LabError, SweepError
from gemmascope.files.paths import user_path
from gemmascope.files.writing import require_writable
from gemmascope.labs.base import LabBase
from gemmascope.labs.heads.lab import HeadLab
from gemmascope.labs.patching.files import file_of, save
from gemmascope.labs.patching.menus import late_handlers_of, reader_of
from gemmascope.labs.patching.picture import compared_views, label_of, view_of
from gemmascope.labs.patching.question import key_of
from gemmascope.labs.patching.saved import SavedSession, parse_session, read_session, restore, settings_of
from gemmascope.labs.patching.session import LabSession
from gemmascope.labs.patching.state import snapshot_of
from gemmascope.labs.worker import Job
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.views.page import View

if TYPE_CHECKING:
    import pandas

    from gemmascope.labs.widget import Handlers, Message, Trait


class PatchingLab(LabSession, LabBase):
    """A patching lab: the last expression of a cell shows it. Everything that it shows can be had in Python as well.

    run(what, row, column), wait(), cancel(), result; set(site="z"), swap(), swap_token(position, clean=...),
    next_pair(family), undo(); code(), to_dataframe(), view(), save(path), open(path); experiments(), reopen(i),
    compare(i, j); head_lab(layer, head); close(), or `with`, frees it.

    starts_at_once: whether a lab that is shown computes a small grid without being asked. session: the file in which it
    keeps its runs; None for none.
    """

    MODULE = "patching_lab.js"
    starts_at_once = True
    session: Path | None = None
    _head_lab: HeadLab | None = None

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
        """Write the lab to a file: .html (a page), .csv (a table), .py (a script), .png (a picture; needs kaleido), or
        .json: all its runs with their cells, for gs.open_patching_lab or lab.open.

        In a .csv, texts that a spreadsheet would take for a formula begin with an apostrophe (gemmascope.files.csv_tables).
        SweepError for a file that cannot be written.
        """
        self.wait_until_prepared()
        save(self, path)

    def open(self, path: str | os.PathLike[str]) -> None:
        """Take in the runs of a lab that was saved as .json, and show the one that was shown. LabError for a file that
        cannot be read, or that another model wrote.
        """
        self._worker.require_open()
        self.take_session(read_session(path), path)

    def take_session(self, content: SavedSession, source: object) -> None:
        """As open, for a file's content. source: where it comes from, for the errors."""
        restored = {key_of(one.settings): one for one in restore(self, content, source)}
        shown = settings_of(content, source)
        kept = restored.get(key_of(shown))
        self.show_kept(shown if kept is None else kept.settings)

    def keep_in(self, path: str | os.PathLike[str]) -> None:
        """From now on keep the runs in a file, so that nothing is lost with the kernel. What it holds already is taken in.

        LabError for a file that is none of this model's labs, SweepError for one that cannot be written.
        """
        file = user_path(path, error=SweepError, what="a lab")
        if file.exists():
            restore(self, read_session(file), file)
            self.show_kept(self.settings)
        else:
            require_writable(file, error=SweepError)
        self.session = file

    def head_lab(self, layer: int, head: int) -> HeadLab:
        """A lab on the heads of the run that is patched, with this head ablated."""
        s = self.settings
        opened = HeadLab(getattr(s, s.into), s.answer, s.against, model=self.model)
        opened.scale(layer, head, 0.0)
        return opened

    def show_head_lab(self, layer: int, head: int) -> None:
        """Show that lab below this one, in place of an earlier one."""
        opened, earlier = self.head_lab(layer, head), self._head_lab
        self._head_lab = opened
        if self._box is not None:
            own = [part for part in self._box.children if earlier is None or part is not earlier.widget]
            self._box.children = (*own, opened.widget)
        if earlier is not None:
            earlier.close()

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
        return {
            "click": lambda m: self.click(m["row"], m["column"]),
            "run": lambda m: self.start(m["what"], m.get("row"), m.get("column")),
            "set": lambda m: self._typed(m["name"], reader_of(self, m["name"], m["text"])),
            "swap": lambda _: self.swap(),
            "swap_token": lambda m: self.swap_token(m["position"], clean=m.get("clean"), corrupt=m.get("corrupt")),
            "undo": lambda _: self.undo(),
            "next_pair": lambda m: self.next_pair(m.get("family")),
            "reopen": lambda m: self.reopen(m["index"] or 0),
            "compare": lambda m: self.lay_beside(m.get("index")),
            "open": lambda m: self.take_session(parse_session(m["text"], m["name"]), m["name"]),
            "head_lab": lambda m: self.show_head_lab(m["layer"], m["head"]),
            "file": self._send_file,
        }

    def _send_file(self, message: Message) -> dict[str, object]:
        name, text = file_of(self, message["what"])
        return {"type": "file", "name": name, "text": text}

    def _late_handlers(self) -> Handlers:
        return late_handlers_of(self)

    def _on_shown(self) -> None:
        if self.starts_at_once:
            self.compute_at_once()

    def _ended(self, job: Job) -> None:
        super()._ended(job)
        if self.session is not None and not job.outlasts and not self.is_closed:
            try:
                save(self, self.session)
            except GemmascopeError as error:
                self.show_error(error)

    def _end(self) -> None:
        super()._end()
        if self._head_lab is not None:
            self._head_lab.close()

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
    the likeliest answers before and after, and where the last token looks. A grid that takes a moment is computed as soon as
    the lab is shown; of a larger one only the two prompts run before anything is clicked.
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
            `at_once` (True): whether the lab, once it is shown, computes a grid without being asked if that takes a moment.
            `session` (None): a .json file in which the lab keeps its runs; what it holds already is there at once.

    Returns:
        The lab. `run(what, row, column)` computes a part of the grid in Python: "all", "estimate", "cell", "row", "column"
        or "rectangle"; `result` is a `SweepResult` of the exact cells [pair, *by], float64, NaN where nothing ran.
        `set(...)` changes settings, `save(path)` writes a page, table, script or picture, `close()` frees the lab.

    Raises:
        SweepError: There is no such setting, or a setting has no such value; the session file cannot be written.
        LabError: The session file is no patching lab, or of another model.
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
    starts_at_once, session = settings.pop("at_once", True), settings.pop("session", None)
    lab = PatchingLab(clean, corrupt, answer, against, model, **settings)
    lab.starts_at_once = true_or_false(starts_at_once, "at_once", error=SweepError)
    if session is not None:
        lab.keep_in(session)
    return lab


def open_patching_lab(path: str | os.PathLike[str], *, model: Model | None = None) -> PatchingLab:
    """Open a patching lab that was saved as .json, with all its runs and their cells. No cell runs again.

    Args:
        path: The file that `lab.save("....json")` wrote, "~" being the home folder. It holds numbers and texts only.
        model: The model that it was saved with; None means nano.

    Returns:
        The lab, as `gs.patching_lab` returns it.

    Raises:
        LabError: The file cannot be read, is damaged, or was saved with another model (the error names both).

    Examples:
        >>> clean = "When Mary and John went to the store, John gave a drink to"
        >>> corrupt = "When Mary and John went to the store, Mary gave a drink to"
        >>> with gs.patching_lab(clean, corrupt, " Mary", " John") as lab:
        ...     result = lab.run("row", 2)
        ...     lab.save("mary.json")
        >>> with gs.open_patching_lab("mary.json") as opened:
        ...     opened.result.effect.sel(layer=2, pos=10).item() > 20
        True
    """
    content = read_session(path)
    lab = PatchingLab(**vars(settings_of(content, path)), model=model)
    try:
        lab.take_session(content, path)
    except LabError:
        lab.close()
        raise
    return lab
