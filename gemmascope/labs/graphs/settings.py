"""The settings of a graph lab: values, which are never changed, so that they can be undone and reopened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gemmascope.arguments import as_list, finite_number, is_whole, one_of, short_repr
from gemmascope.circuits.graph.bases.sources import BASES
from gemmascope.circuits.graph.nodes import FEATURE
from gemmascope.circuits.graph.result import AttributionGraph
from gemmascope.circuits.graph.truth.opened import HOLDS
from gemmascope.edits.call_text import plain
from gemmascope.errors import GraphError, PromptError
from gemmascope.model.model import Model, Prompt
from gemmascope.run.metric import Answer, answer_ids
from gemmascope.sweeps.metadata import words_of
from gemmascope.sweeps.metrics import AnswerMetric, logit_diff
from gemmascope.values import moved

NAMES = ("prompt", "targets", "answer", "against", "basis", "hold")
# What a run with changed nodes may hold: what graph.intervene may, or all that the graph holds, against its edges alone.
EVERYTHING = "everything"
LAB_HOLDS = (*HOLDS, EVERYTHING)


@dataclass(frozen=True)
class GraphSettings:
    """As in gs.graph_lab.

    changes: what nodes and groups are multiplied by, by id or name, without those that are as they were. groups, labels: as
    graph.supernodes and graph.labels.
    """

    prompt: Prompt
    targets: object = None
    basis: str = BASES[0]
    hold: str = HOLDS[0]
    changes: tuple[tuple[str, float], ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for settings that have the same graph."""
        targets = self.targets
        as_key = repr(targets) if isinstance(targets, (str, AnswerMetric)) or is_whole(targets) or targets is None else None
        return repr(plain(self.prompt)), id(targets) if as_key is None else as_key, self.basis

    @property
    def answer(self) -> Answer | None:
        """The token that is explained; None for the likeliest tokens, and for other targets."""
        return self.pair[0]

    @property
    def against(self) -> Answer | None:
        """The token that the answer is held against; None for none."""
        return self.pair[1]

    @property
    def pair(self) -> tuple[Answer | None, Answer | None]:
        """The targets as an answer and the one it is held against; (None, None) for the likeliest tokens, and for others."""
        targets = self.targets
        if isinstance(targets, AnswerMetric) and targets.name == "logit_diff" and targets.pos is None:
            answer, against = targets.answers
            return answer, against
        if isinstance(targets, str):
            return targets, None
        return (int(targets), None) if is_whole(targets) else (None, None)

    def changed(self, given: Mapping[str, object], model: Model) -> GraphSettings:
        """With other settings. Another prompt has no groups and no changes: its nodes are others.

        Raises:
            GraphError: There is no such setting, or it has no such value.
            PromptError: An answer is no token.
        """
        if unknown := sorted(set(given) - set(NAMES)):
            raise GraphError(f"a graph lab has no {unknown[0]!r}; it has {', '.join(NAMES)}")
        made: dict[str, Any] = dict(given)
        if "answer" in made or "against" in made:
            if "targets" in made:
                raise GraphError("targets= says what answer= and against= would: give the one or the others")
            now = dict(zip(("answer", "against"), self.pair, strict=True))
            made["targets"] = _targets_of(made.pop("answer", now["answer"]), made.pop("against", now["against"]), model)
        if "basis" in made:
            made["basis"] = one_of(made["basis"], "basis", BASES, error=GraphError)
        if "hold" in made:
            made["hold"] = one_of(made["hold"], "hold", LAB_HOLDS, error=GraphError)
        other = replace(self, **made)
        if other.key[0] != self.key[0] or other.basis != self.basis:
            return replace(other, changes=(), groups=(), labels=())
        return other

    def scaled(self, name: str, by: object) -> GraphSettings:
        """With another factor for a node or group; None, and 1, leave it as it was."""
        factor = 1.0 if by is None else finite_number(by, "by", error=GraphError)
        kept = tuple((one, value) for one, value in self.changes if one != name)
        return replace(self, changes=kept if factor == 1 else (*kept, (name, factor)))

    def named(
        self, groups: Mapping[str, Sequence[str]], labels: Mapping[str, str], graph: AttributionGraph
    ) -> GraphSettings:
        """With other groups and labels. GraphError for a name or a node that cannot be. Changes of what is gone go too."""
        made = tuple((name, tuple(dict.fromkeys(ids))) for name, ids in groups.items() if ids)
        for name, ids in made:
            if not name or name in graph.ids:
                raise GraphError(f"a group's name is a text that is no node's id; given {short_repr(name)}")
            if other := [one for one in ids if int(graph.decoded[0][graph.index(one)]) != FEATURE]:
                raise GraphError(f"only features and neurons are grouped; {other[0]!r} is none")
        for node, text in labels.items():
            graph.index(node)
            if not isinstance(text, str):
                raise GraphError(f"a label is a text; given {short_repr(text)}")
        names = {name for name, _ in made}
        changes = tuple((name, by) for name, by in self.changes if name in names or name in graph.ids)
        return replace(self, groups=made, labels=tuple((a, b) for a, b in labels.items() if b), changes=changes)


def with_group(
    groups: Sequence[tuple[str, Sequence[str]]], name: object, nodes: object, graph: AttributionGraph
) -> dict[str, Sequence[str]]:
    """Groups with another one. nodes: as in graph.group. GraphError for what is no name, or no node."""
    if not isinstance(name, str):
        raise GraphError(f"a group's name is a text that is no node's id; given {short_repr(name)}")
    listed = nodes if isinstance(nodes, str) else as_list(nodes, "nodes", error=GraphError)
    return {**dict(groups), name: [graph.ids[i] for i in graph.indices(listed)] if listed else []}


def _targets_of(answer: Answer | None, against: Answer | None, model: Model) -> object:
    if answer is None and against is not None:
        raise GraphError(f"against={short_repr(against)} is what an answer is held against: give the answer, too")
    for one in (answer, against):
        if one is not None:
            answer_ids(one, model)
    return answer if against is None or answer is None else logit_diff(answer, against)


def settings_of(graph: AttributionGraph, targets: object) -> GraphSettings:
    """A graph's own settings, with its groups and labels. targets: None for what it explains."""
    explained = _explained(graph) if targets is None else targets
    groups = tuple((name, tuple(ids)) for name, ids in graph.supernodes.items())
    labels = tuple(graph.labels.items())
    return GraphSettings(_prompt_of(graph), explained, graph.about.basis, groups=groups, labels=labels)


def _prompt_of(graph: AttributionGraph) -> Prompt:
    """The prompt as the text that has its token ids, or where there is none, the ids."""
    model, ids = graph._live()[0].trace.model, list(graph.about.ids)
    if not isinstance(model, Model) or not model.has_tokenizer:
        return ids
    text = words_of(model, torch.tensor(ids))
    try:
        return text if model.ids(text).tolist() == ids else ids
    except PromptError:
        return ids


def _explained(graph: AttributionGraph) -> object:
    """What a graph explains, as targets of another: tokens, or directions of `final` where it is no token."""
    run, _ = graph._live()
    base = run.trace.residuals[-1][graph.logits.pos]
    gain = run.trace.model.network.model.norm.gain(base)
    vectors = (graph.logits.vectors / moved(gain, graph.logits.vectors.device)).nan_to_num()
    made = [
        (one.label, vector) if one.token is None else one.token for one, vector in zip(graph.outputs, vectors, strict=True)
    ]
    return made[0] if len(made) == 1 else made
