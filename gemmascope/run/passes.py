"""One pass of several runs, and its taps: EditTap applies edits, Recorder records values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gemmascope.edits.edit import BoundEdit
from gemmascope.memory.limits import explain_oom
from gemmascope.model.layout import Block, Layout
from gemmascope.model.model import Model
from gemmascope.model.tap import Chain, Tap
from gemmascope.run.finite import require_finite


class EditTap(Tap):
    """Applies each run's edits, in their order. edits[i]: those of run i of the pass.

    If an edit reads an earlier site of its layer, the value of that site is held until the edit is applied.
    """

    def __init__(self, edits: Sequence[Sequence[BoundEdit]]) -> None:
        self.at_site: dict[tuple[str, int | None], list[tuple[int, BoundEdit]]] = defaultdict(list)
        self.held: dict[tuple[str, int | None], Tensor | None] = {}
        for run, of_run in enumerate(edits):
            for edit in of_run:
                self.at_site[edit.address.site.name, edit.address.layer].append((run, edit))
                if edit.edit.reads is not None:
                    self.held[edit.edit.reads, edit.address.layer] = None

    def wants(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.at_site

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if edits := self.at_site.get((site, layer)):
            value = value.clone()
            for run, edit in edits:
                span = layout.spans[run]
                read = None if edit.edit.reads is None else self.held[edit.edit.reads, layer]
                edit.write_to(value[span], layout.starts[run], None if read is None else read[span])
        if (site, layer) in self.held:
            self.held[site, layer] = value
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        if edits := self.at_site.get((site, layer)):
            value = value.clone()
            for run, edit in edits:
                if 0 <= run - block.run < block.count:
                    edit.write_to(value[run - block.run], block.start)
        return value


class Recorder(Tap):
    """Records the values of some sites, run by run: values[run][site, layer]. A single run's values are not copied."""

    def __init__(self, sites: Collection[str], n_runs: int = 1) -> None:
        self.sites = frozenset(sites)
        self.values: list[dict[tuple[str, int | None], Tensor]] = [{} for _ in range(n_runs)]

    def wants(self, site: str, layer: int | None) -> bool:
        return site in self.sites

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site in self.sites:
            for values, span in zip(self.values, layout.spans, strict=True):
                values[site, layer] = value if len(self.values) == 1 else value[span].clone()
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        for i in range(block.count):
            self.values[block.run + i][site, layer] = value[i]
        return value

    def by_name(self) -> dict[str, Tensor]:
        """The values of the first run by the name of their site, where one layer was recorded."""
        return {name: value for (name, _), value in self.values[0].items()}


def streams(model: Model, prompts: Sequence[Tensor], edits: Sequence[Sequence[BoundEdit]]) -> list[list[Tensor]]:
    """The residual stream of every run, from one pass: n_layers + 1 tensors [pos, d_model] each.

    Entry l is what enters layer l, before an edit at its resid_pre; the last entry is the output of the last layer.
    EditError or CheckpointError for a run that holds NaN or infinity.
    """
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    layout = Layout.of_lengths([len(prompts[i]) for i in by_length], model.device)
    recorder = Recorder(("embed", "resid_post"), len(prompts))
    with torch.no_grad(), explain_oom(model):
        model.network(
            torch.cat([prompts[i] for i in by_length]), layout, Chain(EditTap([edits[i] for i in by_length]), recorder)
        )
        by_run = {i: list(values.values()) for i, values in zip(by_length, recorder.values, strict=True)}
        for i, stream in by_run.items():
            require_finite(model, prompts[i], stream, edits[i])
    return [by_run[i] for i in range(len(prompts))]
