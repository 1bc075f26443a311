"""What comes of a step of a check: a verdict and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

PASS, DIFFERS, SKIPPED, FAILED, INTERRUPTED, RUNNING = "pass", "differs", "skipped", "failed", "interrupted", "running"


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
