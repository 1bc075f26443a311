"""CheckResult, what gs.check returns: a verdict and figures for each step, as text, as JSON and as a page."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gemmascope.errors import FileError
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.legible import legible, legible_line, prints_legibly

if TYPE_CHECKING:
    import pandas

FORMAT = "gemmascope.check.1"
PASS, DIFFERS, SKIPPED, FAILED, INTERRUPTED, RUNNING = "pass", "differs", "skipped", "failed", "interrupted", "running"
PAGE, JSON = "check.html", "check.json"


@dataclass(frozen=True)
class Figure:
    """A number that was measured.

    Attributes:
        name: What it is.
        value: The number.
        limit: The most that it may be, or the least; None for a figure that is no test.
        unit: "" for a plain number.
        is_least: Whether the limit is the least that it may be.
    """

    name: str
    value: float
    limit: float | None = None
    unit: str = ""
    is_least: bool = False

    @property
    def is_within(self) -> bool:
        """Whether it is within its limit. NaN never is."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.is_least else self.value <= self.limit

    def to_dict(self) -> dict[str, object]:
        """The figure as JSON. A number that is not finite is given as text."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        return {
            "name": self.name, "value": value, "limit": self.limit, "is_least": self.is_least, "unit": self.unit,
            "within": self.is_within,
        }  # fmt: skip

    @property
    def limit_text(self) -> str:
        return "" if self.limit is None else f"at {'least' if self.is_least else 'most'} {self.limit:.3g}"

    def __str__(self) -> str:
        value = f"{self.name}: {self.value:.4g}{f' {self.unit}' if self.unit else ''}"
        return f"{value} ({self.limit_text})" if self.limit is not None else value


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        name: The step, such as "logits".
        verdict: "pass", "differs", "skipped", "failed", "interrupted"; "running" in a file that was written meanwhile.
        text: What was compared; or why it was skipped or failed.
        figures: The numbers.
        seconds: How long it took.
    """

    name: str
    verdict: str
    text: str
    figures: tuple[Figure, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, object]:
        """The step as JSON."""
        figures = [figure.to_dict() for figure in self.figures]
        return {
            "name": self.name, "verdict": self.verdict, "text": self.text, "seconds": round(self.seconds, 3),
            "figures": figures,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The step as text: its verdict, what it compared, and the figures that have a limit."""
        head = f"{self.verdict:>11}  {self.name} ({self.seconds:.1f} s): {self.text}"
        return [head, *(f"{'':13}{figure}" for figure in self.figures)]


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
        from gemmascope.checking.report import report

        return report(self)

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
        from gemmascope.checking.report import body

        return body(self)

    @prints_legibly
    def __repr__(self) -> str:
        lines = [legible(line) for step in self.steps for line in step.lines()]
        return "\n".join([f"Check of {legible_line(str(self.model.get('name')))}: {self.verdict}", *lines])
