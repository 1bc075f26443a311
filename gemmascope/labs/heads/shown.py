"""ShownHeads: the pictures on a head lab's page, and the steps that make them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from gemmascope.labs.before_after import BeforeAfter
from gemmascope.labs.followed import Followed
from gemmascope.labs.heads.channels import Channels
from gemmascope.labs.heads.desk import Channel
from gemmascope.labs.heads.detail import HeadPattern, Runs, TwoLenses
from gemmascope.run.trace import Trace
from gemmascope.values import Array

# A run and the ids of its answers: what the pictures of the unchanged heads depend on.
_Key = tuple[Trace, tuple[int, ...], tuple[int, ...]]


class ShownHeads:
    """The heads of a run without and with the changes. number: counts the pictures, of which the lab shows the latest."""

    def __init__(self) -> None:
        self.number = 0
        self.before: Channels | None = None
        self.after: Channels | None = None
        self.lenses: TwoLenses | None = None
        self.pattern: HeadPattern | None = None
        self._of: _Key | None = None

    def steps(self, run: BeforeAfter, followed: Followed, channel: Channel) -> Generator[None]:
        """Make the pictures of a run, the selected head's first, which is what is looked at."""
        assert run.before is not None
        assert run.after is not None
        runs = run.before, run.after
        self.look(runs, channel)
        yield
        before, after = self._channels(runs, followed.answer, followed.against)
        lenses = TwoLenses.of(runs, followed.answer[0])
        self.before, self.after, self.lenses = before, after, lenses
        self.number += 1
        yield

    def look(self, runs: Runs, channel: Channel) -> None:
        self.pattern = HeadPattern.of(runs, *channel)

    def _channels(self, runs: Runs, answer: Sequence[int], against: Sequence[int]) -> tuple[Channels, Channels]:
        """The heads in both runs; those of the unchanged one are made once."""
        key = runs[0], tuple(answer), tuple(against)
        before = self.before
        if before is None or self._of is None or self._of[0] is not key[0] or self._of[1:] != key[1:]:
            before = Channels.of(runs[0], answer, against)
            self._of = key
        return before, before if runs[1] is runs[0] else Channels.of(runs[1], answer, against)

    def as_data(self) -> dict[str, object]:
        """As a trait of the page: the heads as arrays [layer, head, ...] of bytes, and the lenses."""
        if self.before is None or self.after is None or self.lenses is None:
            return {"number": self.number}
        pictures = [_as_bytes(one.pictures) for one in (self.before, self.after)]
        written = [_as_bytes(one.written) for one in (self.before, self.after)]
        size = 0 if self.after.pictures is None else self.after.pictures.shape[-1]
        return {
            "number": self.number, "size": size, "pictures_before": pictures[0], "pictures_after": pictures[1],
            "written_before": written[0], "written_after": written[1], "lens": self.lenses.as_data(),
        }  # fmt: skip


def _as_bytes(array: Array | None) -> bytes:
    return b"" if array is None else array.tobytes()
