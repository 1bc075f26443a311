"""Direction, the result of gs.direction: a vector to steer with, a probe, and where each prompt lies along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gemmascope.arguments import whole_text
from gemmascope.edits.call_text import load_text, plain, prompt_text
from gemmascope.edits.edit import Edit
from gemmascope.edits.make import ablate_direction, add
from gemmascope.edits.places import Pos
from gemmascope.legible import legible_line, prints_legibly
from gemmascope.model.model import Model
from gemmascope.sites import Address
from gemmascope.steering.probe import HeldOut, Probe
from gemmascope.sweeps.metadata import prompts_line
from gemmascope.values import in_float64, labelled

if TYPE_CHECKING:
    import pandas
    import xarray
    from plotly.graph_objects import Figure

CLASSES = ("positive", "negative")


@dataclass(frozen=True)
class Provenance:
    """Where a direction comes from, as Python: loading, the lines that load its model, and call, the call that makes it."""

    loading: str
    call: str

    @classmethod
    def of(
        cls,
        model: Model,
        positive: object,
        negative: object,
        address: Address,
        head: int | None,
        pos: Pos,
        seed: int,
    ) -> Provenance:
        """positive, negative: the prompts of the classes, as they were given; the others as in gs.direction."""
        places = f"site={address.site.name!r}, layer={address.layer}, pos={plain(pos)!r}"
        more = ("" if head is None else f", head={head}") + (f", seed={whole_text(seed)}" if seed else "")
        prompts = f"{prompt_text(positive)}, {prompt_text(negative)}"
        return cls(load_text(model), f"gs.direction({prompts}, {places}{more}, model=model)")


@dataclass(frozen=True, repr=False, eq=False)
class Direction:
    """A direction at a site of a layer, found from two classes of prompts. Made by gs.direction.

    d is d_model, or d_head at a site with heads.

    Attributes:
        vector: The mean over the positive prompts less the mean over the negative ones, [d], float32.
        site: The site that was read.
        layer: Its layer.
        head: Its head; None at a site without heads.
        pos: The positions that were read, as they were given.
        means: The means of the positive and of the negative prompts, [2, d].
        probe: The weights of a linear probe, [d]: the log-odds of the positive class are x . probe + bias.
        bias: The probe's bias.
        accuracy: The share of held-out cases that are classified correctly; NaN if a class has fewer than two prompts.
        n_held_out: How many cases were held out, each once.
        n_folds: Over how many folds.
        stream_norm: The mean length of the values that were read, to compare norm with.
        projections: (x - midpoint of the means) . unit of each prompt, [prompt]: above 0 on the positive side. These are
            the prompts that made the vector; log_odds says how well a direction does on others.
        log_odds: Log-odds of the positive class, [prompt], from a probe that was fitted without that prompt.
        model: The model's name.
        provenance: The model and the call that made the direction, as Python; code() is the script of both.

    Examples:
        >>> direction = gs.direction(["Mary gave", "Mary went"], ["John gave", "John went"], layer=2)
        >>> direction.vector.shape
        torch.Size([128])
        >>> direction.accuracy
        1.0
        >>> text = gs.generate("Mary gave", edits=[direction.add(scale=-2.0)], max_new_tokens=4).text
    """

    vector: Float[Tensor, " d"]
    site: str
    layer: int
    head: int | None
    pos: Pos
    means: Float[Tensor, "2 d"]
    probe: Float[Tensor, " d"]
    bias: float
    accuracy: float
    n_held_out: int
    n_folds: int
    stream_norm: float
    projections: xarray.DataArray
    log_odds: xarray.DataArray
    model: str
    provenance: Provenance

    @classmethod
    def of(
        cls,
        *,
        model: Model,
        address: Address,
        head: int | None,
        pos: Pos,
        prompts: Sequence[Tensor],
        positive: Bool[Tensor, " case"],
        values: Float[Tensor, "case d"],
        probe: Probe,
        held_out: HeldOut | None,
        provenance: Provenance,
    ) -> Direction:
        """The direction from the values that were read.

        Args:
            model: The model that was run.
            address: The site and layer.
            head: The head; None at a site without heads.
            pos: The positions that were read, as they were given.
            prompts: The token ids of each prompt.
            positive: Which prompts are of the positive class, [case].
            values: What was read from each prompt, [case, d], float64 on the CPU.
            probe: The probe of all cases.
            held_out: Its cross-validation; None if a class has fewer than two prompts.
            provenance: The call that makes it.
        """
        assert address.layer is not None
        means = torch.stack([values[positive].mean(0), values[~positive].mean(0)])
        vector = means[0] - means[1]
        along = (values - means.mean(0)) @ (vector / vector.norm())
        log_odds = held_out.log_odds if held_out else torch.full((len(values),), nan, dtype=torch.float64)
        coords = _prompt_coords(model, prompts, positive)
        return cls(
            vector=vector.to(model.device, torch.float32),
            site=address.site.name,
            layer=address.layer,
            head=head,
            pos=pos,
            means=means.to(model.device, torch.float32),
            probe=probe.weight.to(model.device, torch.float32),
            bias=probe.bias,
            accuracy=nan if held_out is None else float(held_out.right(positive).cpu().double().mean()),
            n_held_out=0 if held_out is None else len(values),
            n_folds=0 if held_out is None else held_out.n_folds,
            stream_norm=float(values.norm(dim=1).mean()),
            projections=labelled(along, coords, ("prompt",), "projection", "projection on the direction, from the midpoint"),
            log_odds=labelled(log_odds, coords, ("prompt",), "log_odds", "log-odds of positive, held out"),
            model=model.name,
            provenance=provenance,
        )

    @property
    def norm(self) -> float:
        """The length of the vector, which is the distance between the means."""
        return float(in_float64(self.vector).norm())

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The vector divided by its length, [d], float32."""
        unit: Tensor = in_float64(self.vector) / in_float64(self.vector).norm()
        return unit.float()

    def add(self, scale: float = 1.0, pos: Pos = None) -> Edit:
        """The edit that adds scale x vector at the site and layer of the direction: gs.add.

        Args:
            scale: What the vector is multiplied by.
            pos: The positions to edit, as in gs.patch; None means all.
        """
        return add(self.site, self.vector, layer=self.layer, head=self.head, pos=pos, scale=scale)

    def ablate(self, pos: Pos = None, *, layer: int | None = None) -> Edit:
        """The edit that removes the direction: gs.ablate_direction.

        Args:
            pos: The positions to edit, as in gs.patch; None means all.
            layer: The layer to edit; None means the layer of the direction.
        """
        layer = self.layer if layer is None else layer
        return ablate_direction(self.site, self.vector, layer=layer, head=self.head, pos=pos)

    def code(self) -> str:
        """The Python that makes the direction again.

        Returns:
            A script that makes `direction`.
        """
        return f"import gemmascope as gs\n\n{self.provenance.loading}direction = {self.provenance.call}\n"

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each prompt: its class, text, projection and held-out log-odds."""
        frame = self.projections.to_dataframe().reset_index()
        frame["log_odds"] = self.log_odds.values
        return frame

    def plot(self) -> Figure:
        """A plotly figure of every prompt's projection, by class. Crosses are prompts that the held-out probe gets wrong."""
        from gemmascope.figures.steering import direction_figure

        wrong = "; crosses: on the wrong side when held out" if self.n_folds and self.accuracy < 1 else ""
        return direction_figure(
            self.projections,
            self.log_odds,
            title=f"Direction at {self.where_text()}",
            subtitle="\n".join([f"{self.accuracy_text()}{wrong}", *map(self._prompts_text, CLASSES)]),
        )

    def _prompts_text(self, name: str) -> str:
        """How many prompts a class has, and the first."""
        texts = self.projections["text"].values[self.projections["class"].values == name]
        return prompts_line([str(text).removeprefix("<bos>") for text in texts], f"{name} prompt")

    def accuracy_text(self) -> str:
        """The held-out accuracy as text, or why there is none."""
        counts = [int((self.projections["class"] == name).sum()) for name in CLASSES]
        if not self.n_folds:
            return "held-out accuracy: none, which needs two different prompts a class at least"
        larger_share = max(counts) / sum(counts)
        right = round(self.accuracy * self.n_held_out)
        return (
            f"held-out accuracy {self.accuracy:.3g} ({right} of {self.n_held_out} prompts, {self.n_folds} folds; "
            f"the larger class alone would give {larger_share:.3g})"
        )

    def where_text(self) -> str:
        """The site, layer, head and positions, and the model, as text."""
        head = "" if self.head is None else f", head {self.head}"
        pos = "all positions but the first" if self.pos is None else f"pos {plain(self.pos)!r}"
        return f"{self.site} of layer {self.layer}{head}, {pos}, {legible_line(self.model)}"

    @prints_legibly
    def __repr__(self) -> str:
        n_positive, n_negative = (int((self.projections["class"] == name).sum()) for name in CLASSES)
        cosine = float(torch.cosine_similarity(in_float64(self.vector), in_float64(self.probe), dim=0))
        return (
            f"direction at {self.where_text()}: {n_positive} positive and {n_negative} negative prompts\n"
            f"norm {self.norm:.4g}; of the values {self.stream_norm:.4g} on average; cosine with the probe {cosine:.3f}\n"
            f"probe: {self.accuracy_text()}"
        )


def _prompt_coords(model: Model, prompts: Sequence[Tensor], positive: Tensor) -> dict[str, object]:
    separator = "" if model.has_tokenizer else " "
    return {
        "prompt": range(len(prompts)),
        "class": ("prompt", [CLASSES[0] if p else CLASSES[1] for p in positive.tolist()]),
        # Objects, because numpy's own strings lose a NUL at the end, and a token may be one.
        "text": ("prompt", np.array([separator.join(model.texts(ids)) for ids in prompts], dtype=object)),
    }
