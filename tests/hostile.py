"""A model whose name, tokens and labels are unsafe to display, and every kind of result that shows them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from checkpoints import checkpoint, model_of
from random_dictionaries import dictionary

import gemmascope as gs
from gemmascope.evaluation.result import Measure
from gemmascope.model.model import Model
from gemmascope.sae.weights import Tie, TrainedFor
from gemmascope.tokens.tokenizer import Tokenizer

NAME = "evil\x1b]0;owned\x07\x1b[31m\u202eelbat\u2066<b>$x$ $y$ %{z}\r\nforged: 1\x9b31m\x7f\u200f\u2028"
PIECES = (
    "\x1b[2J", "\x07", "\u202erev", "$a$ ", "<img src=x>", "\r", "\n", "\x9b1m", "\u2067iso", "\u061c", "\u200b", "\x7f",
    "&amp;", "%{x}", "\u2029", "\x00", "\ufeff", "\U000e0041", "\u200e$",
)  # fmt: skip

# Control, direction and invisible characters. Line ends and tabs are allowed: they lay a text out.
UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


class Backend:
    """A tokenizer whose only tokens are PIECES."""

    bos, size = 2, 61

    def piece(self, token_id: int) -> str:
        return f"{PIECES[token_id % len(PIECES)]}{token_id}"

    def encode(self, text: str) -> list[int]:
        return next(([i] for i in range(self.size) if self.piece(i) == text), [5, 6, 9])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(self.piece, ids))

    def is_special(self, token_id: int) -> bool:
        return token_id == self.bos


IDS, OTHER = [2, 5, 9, 0, 7, 13], [2, 6, 9, 0, 7, 13]
ANSWER, AGAINST = Backend().piece(3), Backend().piece(22)
METRIC = gs.logit_diff(ANSWER, AGAINST)


@cache
def model() -> Model:
    plain_model = model_of(checkpoint("lg"))
    return Model(plain_model.network, Tokenizer(Backend(), 2), NAME)


@cache
def run() -> gs.Trace:
    return gs.trace(IDS, model=model(), edits=[gs.add("resid_post", torch.ones(32), layer=0)])


@cache
def swept() -> gs.SweepResult:
    return gs.sweep(IDS, OTHER, gs.logit_diff(ANSWER, AGAINST), site="resid_pre", model=model(), progress=False)


@cache
def sae() -> gs.Dictionary:
    tie = {n: Tie(NAME, 0.5, 0.5, 0.5) for n in range(40)}
    return dictionary(32, "resid_post", 0, call=f"gs.load_sae({NAME!r})", trained_for=TrainedFor(NAME), concepts=tie)


@cache
def direction() -> gs.Direction:
    positive, negative = [[2, n, 9] for n in range(5, 13)], [[2, n, 30] for n in range(5, 13)]
    return gs.direction(positive, negative, layer=0, site="resid_post", model=model())


@cache
def steered() -> gs.StrengthSweep:
    return gs.strength_sweep(IDS, direction(), gs.answer_prob(ANSWER), strengths=[-1, 0, 1], model=model(), progress=False)


@cache
def feature_sweep() -> gs.FeatureSweep:
    return gs.feature_sweep(sae(), IDS, gs.answer_prob(ANSWER), features=[1, 2, 3], by=("feature", "pos"), model=model())


@cache
def graph() -> gs.AttributionGraph:
    given: dict[str, Any] = {"basis": "neuron", "targets": ANSWER, "max_nodes": 20, "progress": False}
    found = gs.attribution_graph(IDS, model=model(), **given).prune(nodes=0.95)
    features = list(found.nodes.query("kind == 'feature'")["id"])
    found.group("</script><img src=x onerror=alert(1)>\u202e", features[:2])
    found.label(features[0], "<b>bold</b>\u202e")
    return found


@cache
def edges() -> gs.EdgeScores:
    return gs.edge_scores(IDS, OTHER, METRIC, model=model(), progress=False)


@cache
def jacobian() -> gs.JacobianLens:
    return gs.fit_jacobian_lens(model(), [IDS, OTHER], skip_first=1, progress=False)


def evaluation() -> gs.Evaluation:
    task = "</script><img src=x onerror=alert(1)>\u202e\n$x$"
    return gs.Evaluation(
        model().name, (repr(gs.scale("z", 0.5, layer=0, pos=task)),), (Measure(task, "acc", 0.5, 0.1, 4),), {}
    )


def graph_lab() -> gs.GraphLab:
    lab = gs.graph_lab(graph=graph(), max_new_tokens=2)
    lab.scale("</script><img src=x onerror=alert(1)>\u202e", 0.0)
    return lab.wait()


@cache
def store() -> gs.Store:
    return gs.harvest(model(), [IDS, OTHER], "resid_post", out=Path(tempfile.mkdtemp()) / "acts", progress=False)


@cache
def trained() -> gs.TrainedSAE:
    asked: dict[str, Any] = {"architecture": "topk", "features": 8, "l0": 2, "steps": 2, "batch_size": 4, "progress": False}
    out = Path(tempfile.mkdtemp())
    return gs.train_sae(store(), "resid_post", 1, out=out, held_out=0.5, model=model(), **asked)


@cache
def probes() -> gs.ProbeScores:
    labels = [NAME, "plain", None, NAME, "plain", NAME][: store().n_rows // 2] * 2
    return gs.probe(store(), labels, folds=2, progress=False)


@cache
def examples() -> gs.TopExamples:
    return gs.top_examples([IDS, OTHER], ["head", sae()], model=model(), k=3, progress=False)


SHOWN: dict[str, Callable[[], Any]] = {
    "workers": lambda: gs.ray(NAME, init={NAME: 1}),
    "Model": model,
    "Trace": run,
    "SweepResult": swept,
    "SweepResult of an estimate": lambda: gs.attribute(IDS, OTHER, gs.logit_diff(ANSWER, AGAINST), site="z", model=model()),
    "Lens": lambda: gs.lens(run(), answer=ANSWER),
    "Lens of the stream": lambda: gs.lens(run(), "stream"),
    "DirectLogits": lambda: gs.direct_logits(run(), ANSWER, AGAINST),
    "DirectLogits by token": lambda: gs.direct_logits(run(), ANSWER, by="token"),
    "HeadScores": lambda: gs.head_scores(model(), "previous_token"),
    "AttentionSummary": lambda: gs.attention_summary(run()),
    "Composition": lambda: gs.composition(model()),
    "Comparison": lambda: gs.compare(model(), model(), [IDS, OTHER]),
    "Generation": lambda: gs.generate(IDS, model=model(), max_new_tokens=3),
    "Dictionary": sae,
    "Features": lambda: sae().encode(run()),
    "FeatureSweep": feature_sweep,
    "Direction": direction,
    "StrengthSweep": steered,
    "metric": lambda: gs.logit_diff(ANSWER, AGAINST),
    "edit": lambda: gs.splice(sae(), {1: 2.0}),
    "AttributionGraph": graph,
    "GraphCheck": lambda: graph().check(2),
    "EdgeScores": edges,
    "Faithfulness": lambda: gs.faithfulness(edges(), IDS, OTHER, METRIC, sizes=[0.1, 1.0], model=model()),
    "JacobianLens": jacobian,
    "Lens of a JacobianLens": lambda: gs.jacobian_lens(run(), jacobian(), answer=ANSWER),
    "Store": store,
    "TrainedSAE": trained,
    "ProbeScores": probes,
    "FittedProbe": lambda: probes().at("resid_post", 1),
    "DictionaryMeasures": lambda: trained().measures,
    "TopExamples": examples,
    "UnitExamples": lambda: examples().each[-1],
    "feature page": lambda: gs.feature_page(sae(), int(examples().each[-1].units[0]), examples(), model=model()),
    "head page": lambda: gs.head_page(0, 1, examples(), model=model()),
    "Evaluation": evaluation,
    "attention view": lambda: gs.attention_view(run()),
    "lens view": lambda: gs.lens_view(run(), answer=ANSWER),
    "stream view": lambda: gs.stream_view(run(), answer=ANSWER, against=AGAINST),
    "sweep view": lambda: gs.sweep_view(swept()),
    "graph view": lambda: gs.graph_view(graph(), heads=3),
    "sae view": lambda: gs.sae_view(sae().encode(run())),
    "patching lab": lambda: ready(gs.patching_lab(IDS, OTHER, ANSWER, AGAINST, model=model())),
    "head lab": lambda: ready(gs.head_lab(IDS, ANSWER, AGAINST, model=model(), max_new_tokens=2)),
    "steer lab": lambda: ready(gs.steer_lab(IDS, direction(), model=model(), max_new_tokens=2)),
    "graph lab": graph_lab,
}


def ready(lab: Any) -> Any:
    lab.wait()
    return lab
