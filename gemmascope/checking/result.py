"""CheckResult, what gs.check returns: a verdict and figures for each step, as text, as JSON and as a page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.checking.report import body, report
from gemmascope.checking.step import DIFFERS, FAILED, INTERRUPTED, PASS, RUNNING, SKIPPED, StepResult
from gemmascope.errors import FileError
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.legible import legible, legible_line, prints_legibly

if TYPE_CHECKING:
    import pandas

FORMAT = "gemmascope.check.1"
PAGE, JSON = "check.html", "check.json"


@dataclass(frozen=True, repr=False)
class CheckResult:
    """Whether a model computes here what it should. Made by gs.check.

    Attributes:
        model: The model: its source, name, family, size, number of layers and parameters, dtype, weights and fingerprint.
        environment: Versions of Python and the libraries, the system and the device.
        steps: What came of each step, in their order.

    Examples:
        >>> result = gs.check("nano", steps=["logits"], show=False)
        >>> result.passed, result["logits"].verdict
        (True, 'pass')
    """

    model: Mapping[str, object]
    environment: Mapping[str, object]
    steps: tuple[StepResult, ...] = field(default_factory=tuple)

    @property
    def verdict(self) -> str:
        """The worst of the steps' verdicts: "differs", "failed", "interrupted", else "pass"; "skipped" if all were."""
        verdicts = {step.verdict for step in self.steps}
        order = (DIFFERS, FAILED, INTERRUPTED, RUNNING, PASS)
        return next((verdict for verdict in order if verdict in verdicts), SKIPPED)

    @property
    def passed(self) -> bool:
        """Whether every step that ran passed, and at least one did."""
        return self.verdict == PASS

    def __getitem__(self, name: str) -> StepResult:
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"there is no step {name!r}; there are {', '.join(step.name for step in self.steps)}")

    def to_dict(self) -> dict[str, object]:
        """The result as JSON."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "model": dict(self.model),
            "environment": dict(self.environment),
            "steps": [step.to_dict() for step in self.steps],
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each figure: step, verdict, figure, value, limit, unit, within."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "step": step.name, "verdict": step.verdict, "figure": one.name, "value": one.value, "limit": one.limit,
                    "unit": one.unit, "within": one.is_within,
                }
                for step in self.steps
                for one in step.figures
            ]
        )  # fmt: skip

    def to_html(self) -> str:
        """The result as a self-contained page."""
        return report(self.verdict, self.model, self.environment, self.steps)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write check.html and check.json to a folder, which is made if need be.

        Args:
            folder: The folder. Files of these names in it are replaced.

        Raises:
            FileError: They cannot be written.
        """
        path = user_path(folder, error=FileError, what="a folder")
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"the folder {path} cannot be made: {error.strerror}") from error
        write_file(Path(path) / PAGE, self.to_html())
        write_file(Path(path) / JSON, json.dumps(self.to_dict(), indent=1, allow_nan=False))

    def _repr_html_(self) -> str:
        return body(self.verdict, self.model, self.environment, self.steps)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [legible(line) for step in self.steps for line in step.lines()]
        return "\n".join([f"Check of {legible_line(str(self.model.get('name')))}: {self.verdict}", *lines])
