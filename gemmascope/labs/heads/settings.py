"""The settings of a head lab, and the remarks on them."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemmascope.edits.edit import Edit
from gemmascope.labs.followed import remarks_on
from gemmascope.labs.heads.desk import Channel, Desk, edits_of
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer
from gemmascope.sweeps.remarks import Remark


@dataclass(frozen=True)
class HeadSettings:
    """prompt, answer, against: as in gs.head_lab. desk: what is done to the heads. others: edits that no desk can hold."""

    prompt: Prompt
    answer: Answer | None = None
    against: Answer | None = None
    desk: Desk = field(default_factory=Desk)
    others: tuple[Edit, ...] = ()

    def factors(self, model: Model) -> dict[Channel, float]:
        return self.desk.factors(model.n_layers, model.config.n_heads)

    def edits(self, model: Model) -> list[Edit]:
        """The other edits, then the heads that are scaled."""
        return [*self.others, *edits_of(self.factors(model))]

    def remarks(self, model: Model) -> list[Remark]:
        """Errors and warnings about the prompt and the answers. SweepError if the answer is missing."""
        return remarks_on(self.prompt, self.answer, self.against, model)
