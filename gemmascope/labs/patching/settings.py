"""Settings of a patching lab: two prompts, two answers, and the grid that is asked about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

from gemmascope.arguments import as_words, one_of, shown
from gemmascope.errors import SweepError
from gemmascope.model.model import Model
from gemmascope.sites import LAYER_SITES, find_site, parse_site_name
from gemmascope.sweeps.metrics import AnswerMetric, answer_logprob, answer_prob, logit_diff
from gemmascope.sweeps.pairs import INTO
from gemmascope.sweeps.spec import SweepSpec

METRICS: dict[str, Callable[[Any, Any], AnswerMetric]] = {
    "logit_diff": logit_diff,
    "answer_prob": lambda answer, _: answer_prob(answer),
    "answer_logprob": lambda answer, _: answer_logprob(answer),
}
LAYERS = ("all", "local", "global")
DEFAULT_AXES = {"head": ("layer", "head"), "kv_head": ("layer", "kv_head"), None: ("layer", "pos")}


@dataclass(frozen=True)
class Settings:
    """What a lab asks. by: the two axes of the grid, rows and columns. layers: "all", or those of one kind.

    The others are arguments of gs.sweep; metric is the name of one, made of answer and against.
    """

    clean: Any
    corrupt: Any
    answer: Any
    against: Any
    site: str = "resid_pre"
    by: tuple[str, ...] = ("layer", "pos")
    into: str = "corrupt"
    layers: str = "all"
    metric: str = "logit_diff"

    def changed(self, **changes: Any) -> Settings:
        """These settings with some of them changed. A site whose axes or heads are others is given its usual grid.

        SweepError for a setting that there is not, or a choice that it does not have; SiteError for an unknown site.
        """
        if unknown := set(changes) - {field.name for field in fields(self)}:
            raise SweepError(
                f"a lab has no setting {min(unknown)!r}; it has {', '.join(field.name for field in fields(self))}"
            )
        site = self._site(changes.get("site", self.site))
        by = changes.get("by")
        if by is None:  # a site with other heads is looked at head by head
            same = self.by in grids_of(site) and find_site(site).heads == find_site(self.site).heads
            by = self.by if same else DEFAULT_AXES[find_site(site).heads]
        new = replace(self, **{**changes, "site": site, "by": _axes(site, by)})
        for name, choices in {"into": INTO, "layers": LAYERS, "metric": tuple(METRICS)}.items():
            one_of(getattr(new, name), name, choices, error=SweepError)
        return new

    def swapped(self) -> Settings:
        """The same with the two answers exchanged."""
        return replace(self, answer=self.against, against=self.answer)

    def metric_of(self) -> AnswerMetric:
        return METRICS[self.metric](self.answer, self.against)

    def asked(self, model: Model) -> SweepSpec:
        """What a sweep is asked for. SweepError for a kind of layer that the model does not have."""
        kinds = model.config.kinds
        chosen = None if self.layers == "all" else [i for i, kind in enumerate(kinds) if kind == self.layers]
        if chosen == []:
            raise SweepError(f"{model.name!r} has no {self.layers} layers: take all of them")
        return SweepSpec(self.site, self.by, self.into, layer=chosen)

    def as_data(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def _site(given: Any) -> str:
        site, at = parse_site_name(given)
        if not site.in_layer or at is not None:
            raise SweepError(f"a lab's site is one of {', '.join(LAYER_SITES)}, of all layers; given {shown(given)}")
        return site.name


def grids_of(site: str) -> list[tuple[str, str]]:
    """The pairs of axes that a grid over a site can have: rows and columns."""
    axes = ["layer", *(axis for axis in ("head", "kv_head", "pos", "q_pos", "k_pos") if axis in find_site(site).axes)]
    return list(combinations(axes, 2))


def _axes(site: str, by: Any) -> tuple[str, ...]:
    heads = find_site(site).heads
    named = tuple(heads if axis == "head" and heads else axis for axis in as_words(by) or ())
    if len(set(named)) != 2 or set(named) not in map(set, grids_of(site)):
        choices = ", ".join(f"({a!r}, {b!r})" for a, b in grids_of(site))
        raise SweepError(f"a lab's grid has two axes of '{site}', rows and columns: {choices}; given by={shown(by)}")
    return named
