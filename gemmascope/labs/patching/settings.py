"""Settings of a patching lab: two prompts, two answers, and the grid of patches."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

from gemmascope.arguments import as_words, one_of, short_repr
from gemmascope.errors import SweepError
from gemmascope.model.model import Model, Prompt
from gemmascope.prompts import agreement, closing, facts, greater_than, induction, ioi, pronouns, recall
from gemmascope.prompts.pairs import Pair
from gemmascope.run.metric import Answer
from gemmascope.run.metric_names import METRICS
from gemmascope.sites import LAYER_SITES, find_site, parse_site_name
from gemmascope.sweeps.metrics import AnswerMetric, named_metric
from gemmascope.sweeps.pairs import INTO
from gemmascope.sweeps.spec import SweepSpec

# A lab estimates a grid before it runs it, by gradients.
METRIC_LABELS = {name: metric.label for name, metric in METRICS.items() if metric.has_gradient}
LAYERS = ("all", "local", "global")
FAMILIES = {
    family.__name__: family
    for family in (agreement, closing, facts, greater_than, induction, ioi, pronouns, recall)
}  # fmt: skip
# How a sentence names a site; the others by their own names.
SITE_WORDS = {
    "resid_pre": "the residual stream", "resid_mid": "the stream after attention",
    "resid_post": "the stream after the layer",
    "attn_out": "attention's output", "mlp_out": "the MLP's output", "z": "what heads read", "head_out": "what heads add",
    "pattern": "attention patterns", "q": "queries", "k": "keys", "v": "values",
}  # fmt: skip
DEFAULT_AXES = {"head": ("layer", "head"), "kv_head": ("layer", "kv_head"), None: ("layer", "pos")}


@dataclass(frozen=True)
class Settings:
    """What a lab computes. by: the two axes of the grid, rows and columns. layers: "all", or those of one kind.

    The others are arguments of gs.sweep; metric names one of METRIC_LABELS, applied to answer and against.
    """

    clean: Prompt
    corrupt: Prompt
    answer: Answer
    against: Answer
    site: str = "resid_pre"
    by: tuple[str, ...] = ("layer", "pos")
    into: str = "corrupt"
    layers: str = "all"
    metric: str = "logit_diff"

    def changed(self, **changes: Any) -> Settings:
        """These settings with some of them changed. A site with other axes or heads gets its default grid.

        SweepError for an unknown setting or choice; SiteError for an unknown site.
        """
        if unknown := set(changes) - {field.name for field in fields(self)}:
            raise SweepError(
                f"a lab has no setting {min(unknown)!r}; it has {', '.join(field.name for field in fields(self))}"
            )
        site = self._site(changes.get("site", self.site))
        by = changes.get("by")
        if by is None:
            is_same_grid = self.by in grids_of(site) and find_site(site).heads == find_site(self.site).heads
            by = self.by if is_same_grid else DEFAULT_AXES[find_site(site).heads]
        new = replace(self, **{**changes, "site": site, "by": _axes(site, by)})
        for name, choices in {"into": INTO, "layers": LAYERS, "metric": METRIC_LABELS}.items():
            one_of(getattr(new, name), name, choices, error=SweepError)
        return new

    def metric_of(self) -> AnswerMetric:
        return named_metric(self.metric, self.answer, self.against)

    def spec(self, model: Model) -> SweepSpec:
        """The sweep that these settings describe. SweepError for a kind of layer that the model does not have."""
        layers = None if self.layers == "all" else [i for i, kind in enumerate(model.config.kinds) if kind == self.layers]
        if layers == []:
            raise SweepError(f"{model.name!r} has no {self.layers} layers: take all of them")
        return SweepSpec(self.site, self.by, self.into, layer=layers)

    @staticmethod
    def _site(name: object) -> str:
        site, layer = parse_site_name(name)
        if not site.in_layer or layer is not None:
            raise SweepError(f"a lab's site is one of {', '.join(LAYER_SITES)}, of all layers; given {short_repr(name)}")
        return site.name


def grids_of(site: str) -> list[tuple[str, str]]:
    """The pairs of axes that a grid over a site can have: rows and columns."""
    axes = ["layer", *(axis for axis in ("head", "kv_head", "pos", "q_pos", "k_pos") if axis in find_site(site).axes)]
    return list(combinations(axes, 2))


def _axes(site: str, by: object) -> tuple[str, ...]:
    heads = find_site(site).heads
    axes = tuple(heads if axis == "head" and heads else axis for axis in as_words(by) or ())
    if len(set(axes)) != 2 or set(axes) not in map(set, grids_of(site)):
        choices = ", ".join(f"({a!r}, {b!r})" for a, b in grids_of(site))
        raise SweepError(f"a lab's grid has two axes of '{site}', rows and columns: {choices}; given by={short_repr(by)}")
    return axes


def pair_of_family(family: str, number: int, model: Model) -> Pair | None:
    """The pair of that number, from 0, among those of a family that fit the model's tokenizer; None if there are fewer."""
    if not model.has_tokenizer:
        return None
    pairs = FAMILIES[family](number + 1, seed=0, tokenizer=model.tokenizer)
    return pairs[number] if number < len(pairs) else None
