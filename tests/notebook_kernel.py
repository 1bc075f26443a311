"""One Jupyter kernel for the notebooks that a test file runs, one after the other."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import NotebookNode

# Before each notebook: its folder, no widget of the last one, no name but IPython's own.
RESET = "import os, ipywidgets\nos.chdir({folder!r})\nipywidgets.Widget.close_all()\n%reset -f"


class Kernel:
    """One kernel for all notebooks: starting it, and importing torch in it, takes longer than most notebooks do."""

    def __init__(self) -> None:
        from nbclient import NotebookClient

        self.client = NotebookClient(nbformat.v4.new_notebook(), timeout=120, allow_errors=True)

    def run(self, cells: list[NotebookNode], folder: Path) -> dict[int, str]:
        """Run cells in a folder. Returns the errors by cell. A cell that takes two minutes fails."""
        assert self._execute([nbformat.v4.new_code_cell(RESET.format(folder=str(folder)))]) == {}
        return self._execute(cells)

    def _execute(self, cells: list[NotebookNode]) -> dict[int, str]:
        self.client.nb.cells = cells
        self.client.reset_execution_trackers()
        errors = {}
        for i, cell in enumerate(cells):
            self.client.execute_cell(cell, i)
            found = [output for output in cell.get("outputs", []) if output.output_type == "error"]
            if found:
                errors[i] = f"{found[0].ename}: {found[0].evalue}"
        return errors
