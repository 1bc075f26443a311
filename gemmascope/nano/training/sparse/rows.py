"""Rows for training a dictionary: what it reads and what it is to write, at positions of nano's corpus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor

from gemmascope.model.layout import Layout
from gemmascope.model.maths import rms_scale
from gemmascope.model.model import Model
from gemmascope.model.tap import Tap
from gemmascope.nano.training.corpus import texts
from gemmascope.nano.training.sparse.recipe import Recipe
from gemmascope.sae.catalogue import TRANSCODER
from gemmascope.sae.weights import NORM_EPS

# Texts of one pass.
TEXTS = 400


class _Recorder(Tap):
    """Keeps the values of two sites of a layer."""

    def __init__(self, layer: int, sites: tuple[str, ...]) -> None:
        self.layer, self.sites, self.values = layer, sites, dict[str, Tensor]()

    def reads(self, site: str, layer: int | None) -> bool:
        return layer == self.layer and site in self.sites

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if self.reads(site, layer):
            self.values[site] = value
        return value


def pass_rows(model: Model, recipe: Recipe, prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What a dictionary reads and what it is to write, at every position but `<bos>`, [row, d_in] and [row, d_out].

    A transcoder reads the stream before the MLP divided by its root mean square. Layers above the recipe's are not run.
    """
    sites = ("resid_mid", "mlp_out") if recipe.site == TRANSCODER else (recipe.site,)
    layout, tap = Layout.of_lengths([len(ids) for ids in prompts], model.device), _Recorder(recipe.layer, sites)
    with torch.no_grad(), closing(model.layers()) as layers:
        x = model.network.embed(torch.cat(prompts), layout)
        for one in layers:
            x = one(x, layout, tap.at(one.index, layout))
            if one.index == recipe.layer:
                break
    after_bos = layout.positions > 0
    read, written = (tap.values[site].flatten(1)[after_bos] for site in (sites[0], sites[-1]))
    return (read * rms_scale(read, NORM_EPS) if recipe.site == TRANSCODER else read), written


def corpus_rows(model: Model, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless rows of the corpus, some hundred texts at a time, in half precision."""
    source = texts(recipe.corpus)
    while True:
        prompts = sorted((model.ids(text) for text in islice(source, TEXTS)), key=len)
        read, written = pass_rows(model, recipe, prompts)
        yield read.half(), written.half()


def collect(model: Model, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """As many rows as a recipe takes, in half precision. The two are one tensor where a dictionary writes what it reads."""
    parts: list[tuple[Tensor, Tensor]] = []
    for part in corpus_rows(model, recipe):
        parts.append(part)
        if sum(len(read) for read, _ in parts) >= recipe.rows:
            break
    read = torch.cat([read for read, _ in parts])[: recipe.rows]
    return read, torch.cat([written for _, written in parts])[: recipe.rows] if recipe.site == TRANSCODER else read
