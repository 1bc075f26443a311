"""Direct contributions: what each part of the stream wrote towards an answer.

The stream is a sum, and at one position of one run every norm multiplies each coordinate by a number: so the logit before
the soft cap is a sum over whatever the stream is a sum of. Post-norms are gone through with the scale they had. Source:
Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021); Wang et al., arXiv 2211.00593.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from gemmascope.analysis.metrics import Answer, answer_ids
from gemmascope.errors import SiteError
from gemmascope.model.gemma2 import Layer
from gemmascope.run.code import plain
from gemmascope.run.replay import replay
from gemmascope.run.trace import Trace
from gemmascope.run.where import find_positions
from gemmascope.tokens import shown

if TYPE_CHECKING:
    import pandas
    import xarray

BY = ("sublayer", "head", "neuron", "token")
UNIT = "logit before the soft cap"


@dataclass(frozen=True, repr=False, eq=False)
class DirectLogits:
    """What each part of the stream wrote towards an answer at a position. Made by gs.direct_logits.

    parts: what was asked for: (part) for sublayers, (layer, head), (layer, d_mlp) for neurons, (layer, head, k_pos) for
    tokens. rest: everything else that stands in the stream, (part). Together they add up to total, the answer's logit
    before the soft cap less the others'. capped: the same of the logits that the model returns.
    """

    parts: xarray.DataArray
    rest: xarray.DataArray
    total: float
    capped: float
    by: str
    about: str

    @property
    def cap_effect(self) -> float:
        """What the soft cap changes: capped - total. It belongs to no part."""
        return self.capped - self.total

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The parts, the rest's among them, that wrote most for or against the answer: (its name, what it wrote)."""
        flat = self.parts.values.reshape(-1)
        names = self.rest["part"].values.tolist()
        strongest = sorted(range(len(flat)), key=lambda i: -abs(flat[i]))[:k]
        found = [(self._name(i), float(flat[i])) for i in strongest]
        found += [(str(name), float(value)) for name, value in zip(names, self.rest.values, strict=True)]
        return sorted(found, key=lambda pair: -abs(pair[1]))[:k]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each part, with its labels; the rest's after them."""
        import pandas

        parts = self.parts.to_dataframe(name="wrote").reset_index()
        return pandas.concat([parts, self.rest.to_dataframe(name="wrote").reset_index()], ignore_index=True)

    def plot(self) -> Any:
        """A plotly figure: bars, or a heat map with blue for the answer and red against it."""
        from gemmascope.plots.direct import direct_figure

        return direct_figure(self)

    def __repr__(self) -> str:
        ends = f"{self.total:+.4g} before the soft cap, {self.capped:+.4g} after it: the cap changes {self.cap_effect:+.4g}"
        lines = [f"  {value:+.4g}  {name}" for name, value in self.top()]
        n_rest = f" and {len(self.rest)} other parts" if len(self.rest) else ""
        return "\n".join([f"{self.about}, by {self.by}: {self.parts.size}{n_rest}", ends, *lines])

    def _name(self, flat: int) -> str:
        at = [int(n) for n in torch.unravel_index(torch.tensor(flat), self.parts.shape)]
        if self.by == "sublayer":
            return str(self.parts["part"].values[at[0]])
        names = {"head": "head", "d_mlp": "neuron", "layer": "layer"}
        said = [f"{names[str(dim)]} {n}" for dim, n in zip(self.parts.dims, at, strict=True) if dim != "k_pos"]
        if self.by == "token":
            said.append(f"reading position {at[-1]} ({shown(str(self.parts['k_token'].values[at[-1]]))})")
        return " ".join(said)


def direct_logits(
    trace: Trace, answer: Answer, against: Answer | None = None, by: str = "sublayer", *, pos: int | str = -1
) -> DirectLogits:
    """What each part of the stream wrote towards an answer, before the soft cap.

    answer, against: a text that is one token, a token id, or several, whose mean is taken; against is subtracted.
    by: "sublayer" (the embedding, every attention and MLP), "head", "neuron", or "token" (what each source token gave
    through each head). pos: the position whose next token it is about. What edits wrote into the stream stands in the rest
    under their own names. Raises SiteError, PromptError for what is not there.
    """
    if not isinstance(trace, Trace):
        raise SiteError(
            f"contributions are read from a trace: gs.direct_logits(gs.trace(prompt), ...); given {type(trace).__name__}"
        )
    if by not in BY:
        raise SiteError(f"by is one of {', '.join(BY)}; given {by!r}")
    after = [e for e in trace.bound_edits if e.address.layer is None and e.address.site.name != "embed"]
    if after:
        raise SiteError(
            f"{after[0].edit!r} changes the run after the stream, where no part of it wrote: trace it without that edit"
        )
    ids, others = answer_ids(answer, trace.model), [] if against is None else answer_ids(against, trace.model)
    if set(ids) & set(others):
        raise SiteError(f"answer and against share a token: {plain(answer)!r} and {plain(against)!r}")
    positions = find_positions([pos] if hasattr(pos, "__index__") else pos, trace.model, trace.ids)
    if len(positions) != 1:
        raise SiteError(f"contributions are read at one position; given pos={pos!r}")
    reading = _Reading(trace, positions[0], _direction(trace, ids, others, positions[0]))
    return reading.result(
        by, ids, others, f"towards {plain(answer)!r}" + ("" if against is None else f" against {plain(against)!r}")
    )


def _direction(trace: Trace, ids: Sequence[int], others: Sequence[int], pos: int) -> Float[Tensor, " d_model"]:
    """What a part of the stream is multiplied with: the answer's unembedding through the last norm as it was there."""
    network = trace.model.network
    with torch.no_grad():
        rows = network.model.embed_tokens(torch.tensor([*ids, *others], device=trace.model.device)).float()
        wanted: Tensor = rows[: len(ids)].mean(0) - (rows[len(ids) :].mean(0) if others else 0.0)
        along: Tensor = wanted * network.model.norm.gain(trace.stream[-1][pos])
        return along


@dataclass
class _Reading:
    """One trace at one position, and the direction that parts are multiplied with. rest: what is in no split part."""

    trace: Trace
    pos: int
    direction: Tensor
    rest: dict[str, float] = field(default_factory=dict)
    rounding: float = 0.0

    def result(self, by: str, ids: Sequence[int], others: Sequence[int], towards: str) -> DirectLogits:
        split: Callable[[Layer, dict[str, Tensor]], Tensor] = {
            "sublayer": self._sublayers, "head": self._heads, "neuron": self._neurons, "token": self._tokens
        }[by]  # fmt: skip
        self.rest["embed"] = self._along(self.trace.stream[0])
        own = {"sublayer": (), "head": ("head_out",), "neuron": ("mlp_act", "mlp_raw"), "token": ("v", "attn_raw")}[by]
        found = []
        with torch.no_grad():
            for layer, values in replay(self.trace, ("resid_pre", "attn_out", "resid_mid", "mlp_out", *own)):
                found.append(split(layer, values))
                self._written_by_edits(layer.index, values)
        if self.trace.model.dtype != torch.float32:
            self.rest["rounding of the stream"] = self.rounding
        parts = torch.stack(found).cpu()
        total, logits = (
            self._along(self.trace.stream[-1]),
            self.trace["logits"][self.pos] if self.pos < len(self.trace) - 1 else self.trace.next_logits,
        )
        capped = float(logits[list(ids)].mean() - (logits[list(others)].mean() if others else 0.0))
        token = shown(self.trace.tokens[self.pos])
        about = f"direct logits in {self.trace.model.name}, {towards}, at position {self.pos} ({token})"
        return DirectLogits(*self._labelled(by, parts), total, capped, by, about)

    def _along(self, rows: Tensor) -> float:
        """What a value of the stream, [pos, d_model], is along the direction at the position."""
        return float(rows[self.pos].float() @ self.direction)

    def _edited(self, layer: int, *sites: str) -> list[str]:
        there = {(e.address.site.name, e.address.layer) for e in self.trace.bound_edits}
        return [site for site in sites if (site, layer) in there]

    def _written_by_edits(self, layer: int, values: dict[str, Tensor]) -> None:
        """What edits wrote to the stream itself, beside what sublayers did; without edits that is rounding."""
        entry, exit = self.trace.stream[layer], self.trace.stream[layer + 1]
        sums = {
            "resid_pre": (values["resid_pre"], (entry,)),
            "resid_mid": (values["resid_mid"], (values["resid_pre"], values["attn_out"])),
            "resid_post": (exit, (values["resid_mid"], values["mlp_out"])),
        }
        for site, (there, written) in sums.items():
            change = self._along(there) - sum(map(self._along, written))
            if self._edited(layer, site):
                self.rest[f"edit at layers.{layer}.{site}"] = change
            else:
                self.rounding += change

    def _remainder(self, layer: int, site: str, value: Tensor, split: Tensor, *sites: str) -> None:
        """What edits made of a sublayer's output beyond its split parts."""
        if edited := self._edited(layer, *sites):
            self.rest[f"edit at layers.{layer}.{edited[-1]}"] = self._along(value) - float(split.sum())
        elif self.trace.model.dtype != torch.float32:
            self.rounding += self._along(value) - float(split.sum())

    def _sublayers(self, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        return torch.tensor([self._along(values["attn_out"]), self._along(values["mlp_out"])])

    def _heads(self, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        self.rest[f"layers.{layer.index}.mlp_out"] = self._along(values["mlp_out"])
        split = values["head_out"][self.pos].float() @ self.direction
        self._remainder(layer.index, "attn_out", values["attn_out"], split, "attn_raw", "attn_out")
        return split

    def _neurons(self, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        self.rest[f"layers.{layer.index}.attn_out"] = self._along(values["attn_out"])
        gain = layer.post_feedforward_layernorm.gain(values["mlp_raw"][self.pos])
        split = values["mlp_act"][self.pos].float() * ((gain * self.direction) @ layer.mlp.down_proj.weight.float())
        self._remainder(layer.index, "mlp_out", values["mlp_out"], split, "mlp_raw", "mlp_out")
        return split

    def _tokens(self, layer: Layer, values: dict[str, Tensor]) -> Tensor:
        self.rest[f"layers.{layer.index}.mlp_out"] = self._along(values["mlp_out"])
        config = self.trace.model.config
        pattern = self.trace.edges("pattern", layer.index, q_pos=self.pos).float()
        gain = layer.post_attention_layernorm.gain(values["attn_raw"][self.pos])
        w_o = rearrange(layer.self_attn.o_proj.weight.float(), "d_model (head d) -> head d d_model", head=config.n_heads)
        reads = einsum(w_o, gain * self.direction, "head d d_model, d_model -> head d")
        v = values["v"].float().repeat_interleave(config.heads_per_kv, dim=1)
        split = pattern * einsum(v, reads, "k_pos head d, head d -> head k_pos")
        self._remainder(layer.index, "attn_out", values["attn_out"], split, "z", "head_out", "attn_raw", "attn_out")
        return split

    def _labelled(self, by: str, parts: Tensor) -> tuple[xarray.DataArray, xarray.DataArray]:
        import xarray

        numbers = range(len(parts))
        kinds = ("layer", list(self.trace.model.config.kinds))
        attrs = {"long_name": UNIT}
        if by == "sublayer":
            names = ["embed", *(f"layers.{n}.{site}" for n in numbers for site in ("attn_out", "mlp_out"))]
            values = [self.rest.pop("embed"), *parts.flatten().tolist()]
            split = xarray.DataArray(values, dims=("part",), coords={"part": names}, name="wrote", attrs=attrs)
        else:
            dims = {"head": ("layer", "head"), "neuron": ("layer", "d_mlp"), "token": ("layer", "head", "k_pos")}[by]
            coords: dict[str, Any] = {dim: range(n) for dim, n in zip(dims, parts.shape, strict=True)}
            coords["kind"] = kinds
            if by == "token":
                coords["k_token"] = ("k_pos", self.trace.tokens)
            split = xarray.DataArray(parts.numpy(), dims=dims, coords=coords, name="wrote", attrs=attrs)
        rest = xarray.DataArray(
            list(self.rest.values()), dims=("part",), coords={"part": list(self.rest)}, name="wrote", attrs=attrs
        )
        return split, rest
