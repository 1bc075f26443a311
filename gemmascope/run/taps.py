"""The taps of a pass of several runs: EditTap applies edits, Recorder records values, KeysTap keys and values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import torch
from einops import rearrange
from torch import Tensor

from gemmascope.edits.batch import RunWrite, replaces, require_one_basis, write_edits
from gemmascope.edits.edit import BoundEdit
from gemmascope.model.gemma2 import Layer
from gemmascope.model.layout import Block, KeyPool, Layout, PrefixKV
from gemmascope.model.tap import Tap
from gemmascope.sites import EDGE_SITES, SiteKey


class EditTap(Tap):
    """Applies each run's edits, in their order. edits[i]: those of run i of the pass.

    If an edit reads an earlier site of its layer, the value of that site is held until the edit is applied.
    """

    def __init__(self, edits: Sequence[Sequence[BoundEdit]]) -> None:
        self.at_site: dict[SiteKey, list[tuple[int, BoundEdit]]] = defaultdict(list)
        self.values_read: dict[SiteKey, Tensor | None] = {}
        for run, run_edits in enumerate(edits):
            require_one_basis(run_edits)
            for edit in run_edits:
                self.at_site[edit.address.key].append((run, edit))
                if edit.edit.reads is not None:
                    self.values_read[edit.edit.reads, edit.address.layer] = None

    def wants(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.at_site

    def reads(self, site: str, layer: int | None) -> bool:
        return (site, layer) in self.at_site or (site, layer) in self.values_read

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if edits := self.at_site.get((site, layer)):
            value = value.clone(memory_format=torch.contiguous_format)
            n_edits = Counter(run for run, _ in edits)
            together: list[RunWrite] = []
            for run, edit in edits:
                span = layout.spans[run]
                if n_edits[run] == 1 and replaces(edit):
                    together.append(RunWrite(edit, span.start, layout.starts[run], span.stop - span.start))
                    continue
                read = None if edit.edit.reads is None else self.values_read[edit.edit.reads, layer]
                edit.write_to(value[span], layout.starts[run], None if read is None else read[span])
            if together:
                write_edits(value, together)
        if (site, layer) in self.values_read:
            self.values_read[site, layer] = value
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        if edits := self.at_site.get((site, layer)):
            value = value.clone()
            for run, edit in edits:
                if 0 <= run - block.run < block.count:
                    edit.write_to(value[run - block.run], block.start)
        return value


class SitesTap(Tap):
    """Reads some sites, at every layer that it is put on."""

    def __init__(self, sites: Collection[str]) -> None:
        self.sites = frozenset(sites)

    def wants(self, site: str, layer: int | None) -> bool:
        return site in self.sites

    def reads(self, site: str, layer: int | None) -> bool:
        return site in self.sites


class Recorder(SitesTap):
    """Records the values of some sites, run by run: values[run][site, layer]. A single run's values are not copied."""

    def __init__(self, sites: Collection[str], n_runs: int = 1) -> None:
        super().__init__(sites)
        self.values: list[dict[SiteKey, Tensor]] = [{} for _ in range(n_runs)]

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


class LayerRecorder(Recorder):
    """Records sites of one layer of one run, without changing how the layer computes: a layer whose scores are wanted
    builds them whole, and what comes after attention would then round otherwise.

    So the pattern is taken as attention computed it, and other edge sites (or a pattern that a kernel did not make) are
    computed beside the layer, from the rotated queries and keys. An edit at an edge site has the layer build them whole in
    any case.
    """

    def __init__(self, sites: Collection[str], *, edits_edges: bool) -> None:
        self.requested = tuple(sites)
        self.beside = () if edits_edges else tuple(site for site in sites if site in EDGE_SITES)
        rotated = ("q_rot", "k_rot") if self.beside else ()
        super().__init__([*(site for site in sites if site not in self.beside), *rotated])

    def takes_pattern(self, layer: int) -> bool:
        return "pattern" in self.beside

    def take_pattern(self, layer: int, value: Tensor, block: Block) -> None:
        self.values[0]["pattern", layer] = value[0]

    def of(self, layer: Layer) -> dict[str, Tensor]:
        """The values of the requested sites, after the layer ran."""
        values = self.by_name()
        attend = layer.self_attn.attend
        beside = (site for site in self.beside if site not in values)
        values |= {site: attend.edges(site, values["q_rot"], values["k_rot"]) for site in beside}
        return {site: values[site] for site in self.requested}


class KeysTap(Tap):
    """Holds the keys and values of all rows of a pass at one layer."""

    k: Tensor
    v: Tensor

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if site == "k_rot":
            self.k = value
        elif site == "v":
            self.v = value
        return value

    def prefixes(self, spans: Sequence[slice]) -> list[PrefixKV]:
        """Those of some runs, by their rows."""
        pool = KeyPool(*(rearrange(x, "row kv_head d_head -> kv_head row d_head") for x in (self.k, self.v)))
        if self.k.device.type != "cpu":  # a kernel reads all of them where they are
            return [PrefixKV.in_pool(pool, span) for span in spans]
        return [PrefixKV(pool.k[:, span].contiguous(), pool.v[:, span].contiguous()) for span in spans]
