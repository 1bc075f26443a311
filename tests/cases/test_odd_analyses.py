"""Odd arguments of the analyses, dictionaries, loading, views, labs and results give a package error or a right answer.

As in test_odd_arguments.py; of the odd values a sample for each call, always the same one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from odd import D, bare_errors, some_of

import gemmascope as gs

P = "When Mary and John went to the store, John gave a drink to"
Q = P.replace("John gave", "Mary gave")
DIFF = gs.logit_diff(" Mary", " John")
N_SAMPLED = 3


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd value may be the name of a file, so tests run in their own folder; no hub is contacted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMMASCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@cache
def trace() -> gs.Trace:
    run: gs.Trace = gs.trace(P)
    return run


@cache
def written() -> Any:
    return gs.direct_logits(trace(), " Mary")


@cache
def a_lens() -> Any:
    return gs.lens(trace())


@cache
def a_score() -> Any:
    return gs.head_scores(n=1)


@cache
def a_summary() -> Any:
    return gs.attention_summary(trace())


@cache
def a_composition() -> Any:
    return gs.composition(senders=[0, 1], receivers=[2])


@cache
def a_comparison() -> Any:
    return gs.compare(None, None, ["Mary went"])


@cache
def steering() -> Any:
    return gs.direction([P], [Q], layer=1, pos=10)


@cache
def some_features() -> Any:
    return gs.load_sae().encode(trace())


@cache
def a_feature_sweep() -> Any:
    return gs.feature_sweep(gs.load_sae(), P, DIFF, pos=-1)


@cache
def a_sweep() -> Any:
    return gs.sweep(P, Q, DIFF, site="z", by=("layer", "head"), pos=-1, progress=False)


@cache
def a_lab() -> Any:
    return gs.patching_lab(P, Q, " Mary", " John")


@cache
def a_head_lab() -> Any:
    return gs.head_lab(P, max_new_tokens=1)


@cache
def a_steer_lab() -> Any:
    return steered_by_ones(layer=1)


@cache
def a_graph_lab() -> Any:
    return gs.graph_lab(P, basis="neuron", max_nodes=2, max_new_tokens=1).wait()


def a_neuron() -> Any:
    """The id of a neuron of a_graph_lab()."""
    return a_graph_lab()._graph_now().nodes.query("kind == 'feature'")["id"].iloc[0]


def a_cell(**options: Any) -> Any:
    """A sweep of one cell, of z."""
    return gs.sweep(P, Q, DIFF, site="z", by=("layer",), layer=5, pos=-1, **options)


def of_stream(corrupt: Any, metric: Any, **options: Any) -> Any:
    """A sweep of one cell, of the stream."""
    return gs.sweep(P, corrupt, metric, site="resid_pre", by=("layer",), layer=5, pos=-1, progress=False, **options)


def measured_by(metric: Any) -> Any:
    return gs.sweep(P, Q, metric, site="z", by=("layer",), layer=5, progress=False)


def strengths_of(vector: Any, metric: Any, **options: Any) -> Any:
    return gs.strength_sweep([P], vector, metric, progress=False, **options)


def steered_by_ones(**options: Any) -> Any:
    return gs.steer_lab(P, torch.ones(D), site="resid_post", max_new_tokens=1, **options)


def a_saved_trace() -> str:
    trace().save("a trace")
    return "a trace"


def harvested(**arguments: Any) -> Any:
    given = {"texts": [P], "sites": ("z", 1), "out": tempfile.mkdtemp(dir="."), **arguments}
    return gs.harvest(None, **given, progress=False)


def top(**arguments: Any) -> Any:
    given = {"texts": [P], "units": ("head", 1), "k": 1, "sample": 1, "around": 2, **arguments}
    return gs.top_examples(**given, progress=False)


def closed(lab: Any) -> None:
    lab.close()


def run(edit: Any) -> None:
    assert torch.isfinite(gs.trace(P, edits=[edit]).next_logits).all()


CALLS: dict[str, Callable[[Any], Any]] = {
    # sweeps
    "sweep clean": lambda x: gs.sweep(x, Q, DIFF, site="resid_pre", by=("layer",), pos=-1, progress=False),
    "sweep corrupt": lambda x: gs.sweep(P, x, DIFF, site="resid_pre", by=("layer",), pos=-1, progress=False),
    "sweep metric": lambda x: of_stream(Q, x),
    "sweep site": lambda x: gs.sweep(P, Q, DIFF, site=x, by=("layer",), layer=5, pos=-1, progress=False),
    "sweep by": lambda x: gs.sweep(P, Q, DIFF, site="resid_pre", by=x, layer=5, pos=-1, progress=False),
    "sweep into": lambda x: of_stream(Q, DIFF, into=x),
    "sweep ablate": lambda x: of_stream(None, DIFF, ablate=x),
    "sweep reference": lambda x: of_stream(None, DIFF, ablate="mean", reference=x),
    "sweep layer": lambda x: gs.sweep(P, Q, DIFF, site="z", by=("layer",), layer=x, pos=-1, progress=False),
    "sweep pos": lambda x: gs.sweep(P, Q, DIFF, site="z", by=("layer",), layer=5, pos=x, progress=False),
    "sweep head": lambda x: gs.sweep(P, Q, DIFF, site="z", by=("head",), layer=5, pos=-1, head=x, progress=False),
    "sweep q_pos": lambda x: gs.sweep(P, Q, DIFF, site="scores", by=("layer",), layer=5, q_pos=x, progress=False),
    "sweep window": lambda x: a_cell(window=x, progress=False),
    "sweep edits": lambda x: a_cell(edits=x, progress=False),
    "sweep model": lambda x: a_cell(model=x, progress=False),
    "sweep memory": lambda x: a_cell(memory=x, progress=False),
    "sweep out": lambda x: a_cell(out=x, progress=False),
    "path sender": lambda x: gs.path_sweep(P, Q, DIFF, sender=x, layer=[5], pos=-1, progress=False),
    "path receiver": lambda x: gs.path_sweep(P, Q, DIFF, receiver=x, layer=[0], progress=False),
    "path by": lambda x: gs.path_sweep(P, Q, DIFF, by=x, layer=[5], progress=False),
    "path layer": lambda x: gs.path_sweep(P, Q, DIFF, layer=x, head=0, progress=False),
    "path head": lambda x: gs.path_sweep(P, Q, DIFF, layer=[5], head=x, progress=False),
    "path pos": lambda x: gs.path_sweep(P, Q, DIFF, layer=[5], pos=x, progress=False),
    "path mlps": lambda x: gs.path_sweep(P, Q, DIFF, layer=[5], mlps=x, progress=False),
    "path memory": lambda x: gs.path_sweep(P, Q, DIFF, layer=[5], memory=x, progress=False),
    "attribute site": lambda x: gs.attribute(P, Q, DIFF, site=x, by=("layer",), layer=5),
    "attribute by": lambda x: gs.attribute(P, Q, DIFF, site="z", by=x, layer=5),
    "attribute steps": lambda x: gs.attribute(P, Q, DIFF, site="z", by=("layer",), layer=5, steps=x),
    "attribute layer": lambda x: gs.attribute(P, Q, DIFF, site="z", by=("layer",), layer=x),
    "attribute ablate": lambda x: gs.attribute(P, None, DIFF, site="z", by=("layer",), layer=5, ablate=x),
    "attribute metric": lambda x: gs.attribute(P, Q, x, site="z", by=("layer",), layer=5),
    "attribute edits": lambda x: gs.attribute(P, Q, DIFF, site="z", by=("layer",), layer=5, edits=x),
    # reading
    "direct_logits trace": lambda x: gs.direct_logits(x, " Mary"),
    "direct_logits answer": lambda x: gs.direct_logits(trace(), x),
    "direct_logits against": lambda x: gs.direct_logits(trace(), " Mary", against=x),
    "direct_logits by": lambda x: gs.direct_logits(trace(), " Mary", by=x),
    "direct_logits pos": lambda x: gs.direct_logits(trace(), " Mary", pos=x),
    "DirectLogits.top": lambda x: written().top(x),
    "gs.lens trace": lambda x: gs.lens(x),
    "gs.lens site": lambda x: gs.lens(trace(), x),
    "gs.lens top": lambda x: gs.lens(trace(), top=x),
    "gs.lens pos": lambda x: gs.lens(trace(), pos=x),
    "gs.lens head": lambda x: gs.lens(trace(), "head_out", pos=-1, head=x),
    "gs.lens answer": lambda x: gs.lens(trace(), pos=-1, answer=x),
    "Lens.follow": lambda x: a_lens().follow(x),
    "Lens.logits": lambda x: a_lens().logits(x),
    "Lens.plot": lambda x: a_lens().plot(x),
    "Lens.plot of_answer": lambda x: a_lens().plot(of_answer=x),
    "head_scores model": lambda x: gs.head_scores(x, n=1),
    "head_scores kind": lambda x: gs.head_scores(kind=x, n=1),
    "head_scores prompts": lambda x: gs.head_scores(prompts=x),
    "head_scores n": lambda x: gs.head_scores(n=x),
    "head_scores length": lambda x: gs.head_scores(n=1, length=x),
    "head_scores seed": lambda x: gs.head_scores(n=1, seed=x),
    "HeadScores.best": lambda x: a_score().best(x),
    "attention_summary": lambda x: gs.attention_summary(x),
    "AttentionSummary.plot": lambda x: a_summary().plot(x),
    "composition model": lambda x: gs.composition(x, senders=0, receivers=1),
    "composition kind": lambda x: gs.composition(kind=x, senders=0, receivers=1),
    "composition senders": lambda x: gs.composition(senders=x, receivers=3),
    "composition receivers": lambda x: gs.composition(senders=0, receivers=x),
    "Composition.best": lambda x: a_composition().best(x),
    "compare model": lambda x: gs.compare(None, x, [P]),
    "compare prompts": lambda x: gs.compare(None, None, x),
    "compare pairs": lambda x: gs.compare(None, None, [P], pairs=x),
    "compare top": lambda x: gs.compare(None, None, ["Mary went"], top=x),
    "Comparison.to_dataframe": lambda x: a_comparison().to_dataframe(x),
    "direction positive": lambda x: gs.direction(x, [P], layer=1),
    "direction negative": lambda x: gs.direction([P], x, layer=1),
    "direction site": lambda x: gs.direction([P], [Q], site=x, layer=1),
    "direction layer": lambda x: gs.direction([P], [Q], layer=x, pos=10),
    "direction pos": lambda x: gs.direction([P], [Q], layer=1, pos=x),
    "direction head": lambda x: gs.direction([P], [Q], site="z", layer=1, pos=10, head=x),
    "direction seed": lambda x: gs.direction([P], [Q], layer=1, pos=10, seed=x),
    "Direction.add scale": lambda x: run(steering().add(x)),
    "Direction.add pos": lambda x: run(steering().add(1.0, pos=x)),
    "Direction.ablate pos": lambda x: run(steering().ablate(x)),
    "Direction.ablate layer": lambda x: run(steering().ablate(layer=x)),
    "strength_sweep prompts": lambda x: gs.strength_sweep(x, steering(), DIFF, strengths=[0.0], progress=False),
    "strength_sweep vector": lambda x: strengths_of(x, DIFF, strengths=[0.0], site="resid_post", layer=1),
    "strength_sweep metric": lambda x: strengths_of(steering(), x, strengths=[0.0]),
    "strength_sweep strengths": lambda x: strengths_of(steering(), DIFF, strengths=x),
    "strength_sweep strength": lambda x: strengths_of(steering(), DIFF, strengths=[0.0, x]),
    "strength_sweep layer": lambda x: strengths_of(torch.ones(D), DIFF, strengths=[0.0], site="resid_post", layer=x),
    "strength_sweep site": lambda x: strengths_of(torch.ones(D), DIFF, strengths=[0.0], site=x, layer=1),
    "strength_sweep pos": lambda x: strengths_of(steering(), DIFF, strengths=[0.0], pos=x),
    "strength_sweep texts": lambda x: strengths_of(steering(), DIFF, strengths=[0.0], texts=x),
    "strength_sweep memory": lambda x: strengths_of(steering(), DIFF, strengths=[0.0], memory=x),
    # dictionaries
    "load_sae source": lambda x: gs.load_sae(x),
    "load_sae layer": lambda x: gs.load_sae("nano", layer=x),
    "load_sae width": lambda x: gs.load_sae("nano", width=x),
    "load_sae l0": lambda x: gs.load_sae("nano", l0=x),
    "load_sae site": lambda x: gs.load_sae("nano", site=x),
    "load_sae model": lambda x: gs.load_sae("nano", model=x),
    "load_sae device": lambda x: gs.load_sae("nano", device=x),
    "load_sae revision": lambda x: gs.load_sae("nano", revision=x),
    "encode": lambda x: gs.load_sae().encode(x),
    "decode": lambda x: gs.load_sae().decode(x),
    "activations": lambda x: gs.load_sae().activations(x),
    "activations features": lambda x: gs.load_sae().activations(torch.zeros(2, D), x),
    "loss_recovered": lambda x: gs.load_sae().loss_recovered(x),
    "Features.top": lambda x: some_features().top(x),
    "Features.top pos": lambda x: some_features().top(2, pos=x),
    "Features.plot": lambda x: some_features().plot(x),
    "Features.plot most": lambda x: some_features().plot(most=x),
    "Features.strongest": lambda x: some_features().strongest(x),
    "feature_sweep sae": lambda x: gs.feature_sweep(x, P, DIFF),
    "feature_sweep prompt": lambda x: gs.feature_sweep(gs.load_sae(), x, DIFF, features=[3]),
    "feature_sweep metric": lambda x: gs.feature_sweep(gs.load_sae(), P, x, features=[3]),
    "feature_sweep features": lambda x: gs.feature_sweep(gs.load_sae(), P, DIFF, features=x, pos=-1),
    "feature_sweep value": lambda x: gs.feature_sweep(gs.load_sae(), P, DIFF, features=[3], value=x),
    "feature_sweep by": lambda x: gs.feature_sweep(gs.load_sae(), P, DIFF, features=[3], by=x),
    "feature_sweep pos": lambda x: gs.feature_sweep(gs.load_sae(), P, DIFF, features=[3], pos=x),
    "feature_sweep edits": lambda x: gs.feature_sweep(gs.load_sae(), P, DIFF, features=[3], edits=x),
    "feature_sweep memory": lambda x: gs.feature_sweep(gs.load_sae(), P, DIFF, features=[3], memory=x),
    "FeatureSweep.top": lambda x: a_feature_sweep().top(x),
    "FeatureSweep.plot": lambda x: a_feature_sweep().plot(most=x),
    # metrics
    "logit_diff answer": lambda x: gs.attribute(P, Q, gs.logit_diff(x, " Mary"), site="z", by=("layer",), layer=5),
    "logit_diff against": lambda x: measured_by(gs.logit_diff(" Mary", x)),
    "answer_prob": lambda x: measured_by(gs.answer_prob(x)),
    "answer_logprob": lambda x: measured_by(gs.answer_logprob(x)),
    "rank": lambda x: measured_by(gs.rank(x)),
    "kl_from": lambda x: measured_by(gs.kl_from(x)),
    # loading
    "load source": lambda x: gs.load(x),
    "load device": lambda x: gs.load("nano", device=x),
    "load dtype": lambda x: gs.load("nano", dtype=x),
    "load weights": lambda x: gs.load("nano", weights=x),
    "load memory": lambda x: gs.load("nano", memory=x),
    "load cache": lambda x: gs.load("nano", cache=x),
    "load tokenizer": lambda x: gs.load("nano", tokenizer=x),
    "load check": lambda x: gs.load("nano", check=x),
    "load revision": lambda x: gs.load("nano", revision=x),
    "plan source": lambda x: gs.plan(x),
    "plan weights": lambda x: gs.plan("2b", weights=x),
    "plan context": lambda x: gs.plan("2b", context=x),
    "plan memory": lambda x: gs.plan("2b", memory=x),
    "plan rows": lambda x: gs.plan("2b", rows=x),
    "plan device": lambda x: gs.plan("2b", device=x),
    "plan dtype": lambda x: gs.plan("2b", dtype=x),
    "plan fits": lambda x: gs.plan("2b").fits(x),
    "quantize source": lambda x: gs.quantize(x, "int8 of odd"),
    "quantize target": lambda x: gs.quantize("nano", x),
    "open_trace": lambda x: gs.open_trace(x),
    "open_trace model": lambda x: gs.open_trace(a_saved_trace(), model=x),
    "open_sweep": lambda x: gs.open_sweep(x),
    "harvest texts": lambda x: harvested(texts=x),
    "harvest sites": lambda x: harvested(sites=x),
    "harvest layers": lambda x: harvested(layers=x),
    "harvest out": lambda x: harvested(out=x),
    "harvest dtype": lambda x: harvested(dtype=x),
    "harvest max_tokens": lambda x: harvested(max_tokens=x),
    "harvest field": lambda x: harvested(field=x),
    "harvest outliers": lambda x: harvested(outliers=x),
    "harvest rows_per_shard": lambda x: harvested(rows_per_shard=x),
    "harvest memory": lambda x: harvested(memory=x),
    "open_store": lambda x: gs.open_store(x),
    "open_store model": lambda x: gs.open_store(harvested().path, model=x),
    "Store[]": lambda x: harvested()[x],
    "Store.read rows": lambda x: harvested().read("z", 1, x),
    "Store.rows text": lambda x: harvested().rows(text=x),
    "Store.rows pos": lambda x: harvested().rows(text=0, pos=x),
    "Store.ids": lambda x: harvested().ids(x),
    "Store.scan": lambda x: list(harvested().scan("z", 1, rows=x)),
    "Store.batches site": lambda x: next(harvested().batches(x, 1)),
    "Store.batches batch_size": lambda x: next(harvested().batches("z", 1, x)),
    "Store.batches seed": lambda x: next(harvested().batches("z", 1, seed=x)),
    "Store.batches epochs": lambda x: next(harvested().batches("z", 1, epochs=x)),
    "Store.batches start": lambda x: next(harvested().batches("z", 1, start=x), None),
    "Store.batches buffer": lambda x: next(harvested().batches("z", 1, buffer=x)),
    "top_examples texts": lambda x: top(texts=x),
    "top_examples units": lambda x: top(units=x),
    "top_examples layers": lambda x: top(units="head", layers=x),
    "top_examples numbers": lambda x: top(units=("head", 1, x)),
    "top_examples vectors": lambda x: top(units=("resid_post", 1, x)),
    "top_examples k": lambda x: top(k=x),
    "top_examples sample": lambda x: top(sample=x),
    "top_examples around": lambda x: top(around=x),
    "top_examples seed": lambda x: top(seed=x),
    "top_examples memory": lambda x: top(memory=x),
    "TopExamples[]": lambda x: top()[x],
    "TopExamples.top": lambda x: top().top(x),
    "TopExamples.top k": lambda x: top().top(0, x),
    "TopExamples.sample": lambda x: top().sample(0, x),
    "TopExamples.save": lambda x: top().save(x),
    "open_examples": lambda x: gs.open_examples(x),
    "trace.save": lambda x: trace().save(x),
    "sweep.save": lambda x: a_sweep().save(x),
    "SweepResult.plot": lambda x: a_sweep().plot(normalized=x),
    # factors
    "ov": lambda x: gs.load().layer(1).ov(x),
    "qk": lambda x: gs.load().layer(1).qk(x),
    "qk distance": lambda x: gs.load().layer(1).qk(1, distance=x),
    "ov gains": lambda x: gs.load().layer(1).ov(1, gains=x),
    "read_out model": lambda x: gs.load().layer(1).ov(1).read_out(x),
    "read_out k": lambda x: gs.load().layer(1).ov(1).read_out(gs.load(), k=x),
    "read_out n": lambda x: gs.load().layer(1).ov(1).read_out(gs.load(), n=x),
    # views
    "attention_view trace": lambda x: gs.attention_view(x),
    "attention_view compare": lambda x: gs.attention_view(trace(), compare=x, layers=[0]),
    "attention_view layer": lambda x: gs.attention_view(trace(), layer=x, layers=[0, 1]),
    "attention_view head": lambda x: gs.attention_view(trace(), head=x, layers=[0, 1]),
    "attention_view layers": lambda x: gs.attention_view(trace(), layers=x),
    "attention_view heads": lambda x: gs.attention_view(trace(), layers=[0], heads=x),
    "attention_view bos": lambda x: gs.attention_view(trace(), layers=[0], bos=x),
    "lens_view trace": lambda x: gs.lens_view(x),
    "lens_view answer": lambda x: gs.lens_view(trace(), answer=x),
    "lens_view site": lambda x: gs.lens_view(trace(), site=x),
    "lens_view colour": lambda x: gs.lens_view(trace(), colour=x),
    "lens_view top": lambda x: gs.lens_view(trace(), top=x),
    "lens_view pos": lambda x: gs.lens_view(trace(), pos=x),
    "lens_view head": lambda x: gs.lens_view(trace(), site="head_out", head=x),
    "stream_view trace": lambda x: gs.stream_view(x),
    "stream_view pos": lambda x: gs.stream_view(trace(), pos=x),
    "stream_view answer": lambda x: gs.stream_view(trace(), answer=x),
    "stream_view against": lambda x: gs.stream_view(trace(), answer=" Mary", against=x),
    "sae_view": lambda x: gs.sae_view(x),
    "sae_view most": lambda x: gs.sae_view(some_features(), most=x),
    "sweep_view": lambda x: gs.sweep_view(x),
    "plan_view models": lambda x: gs.plan_view(x),
    "plan_view contexts": lambda x: gs.plan_view(["2b"], x),
    "View.save": lambda x: gs.sweep_view(a_sweep()).save(x),
    # labs
    "patching_lab clean": lambda x: closed(gs.patching_lab(x, Q, " Mary", " John")),
    "patching_lab answer": lambda x: closed(gs.patching_lab(P, Q, x, " John")),
    "patching_lab model": lambda x: closed(gs.patching_lab(P, Q, " Mary", " John", model=x)),
    "patching_lab site": lambda x: closed(gs.patching_lab(P, Q, " Mary", " John", site=x)),
    "patching_lab by": lambda x: closed(gs.patching_lab(P, Q, " Mary", " John", by=x)),
    "patching_lab metric": lambda x: closed(gs.patching_lab(P, Q, " Mary", " John", metric=x)),
    "patching_lab run": lambda x: a_lab().run(x),
    "patching_lab run row": lambda x: a_lab().run("row", x),
    "patching_lab run cell": lambda x: a_lab().run("cell", 5, x),
    "patching_lab run rectangle": lambda x: a_lab().run("rectangle", x, (14, 14)),
    "patching_lab compare": lambda x: a_lab().compare(x),
    "patching_lab set": lambda x: a_lab().set(site=x),
    "patching_lab save": lambda x: a_lab().save(x),
    "head_lab prompt": lambda x: closed(gs.head_lab(x, max_new_tokens=1)),
    "head_lab answer": lambda x: closed(gs.head_lab(P, x, max_new_tokens=1)),
    "head_lab against": lambda x: closed(gs.head_lab(P, " Mary", x, max_new_tokens=1)),
    "head_lab model": lambda x: closed(gs.head_lab(P, model=x, max_new_tokens=1)),
    "head_lab max_new_tokens": lambda x: closed(gs.head_lab(P, max_new_tokens=x)),
    "head_lab scale layer": lambda x: a_head_lab().scale(x, 1, 0.5),
    "head_lab scale head": lambda x: a_head_lab().scale(1, x, 0.5),
    "head_lab scale by": lambda x: a_head_lab().scale(1, 1, x),
    "head_lab set": lambda x: a_head_lab().set(prompt=x),
    "steer_lab vector": lambda x: closed(gs.steer_lab(P, x, site="resid_post", layer=1, max_new_tokens=1)),
    "steer_lab strengths": lambda x: closed(steered_by_ones(layer=1, strengths=x)),
    "steer_lab strengths end": lambda x: closed(steered_by_ones(layer=1, strengths=(-1, x))),
    "steer_lab layer": lambda x: closed(steered_by_ones(layer=x)),
    "steer_lab pos": lambda x: closed(steered_by_ones(layer=1, pos=x)),
    "steer_lab head": lambda x: closed(gs.steer_lab(P, torch.ones(32), site="z", layer=1, head=x, max_new_tokens=1)),
    "steer_lab set strength": lambda x: a_steer_lab().set(strength=x),
    "graph_lab prompt": lambda x: closed(gs.graph_lab(x, basis="neuron", max_nodes=2, max_new_tokens=1)),
    "graph_lab model": lambda x: closed(gs.graph_lab(P, model=x, basis="neuron", max_nodes=2)),
    "graph_lab basis": lambda x: closed(gs.graph_lab(P, basis=x, max_nodes=2)),
    "graph_lab graph": lambda x: closed(gs.graph_lab(graph=x)),
    "graph_lab max_nodes": lambda x: closed(gs.graph_lab(P, basis="neuron", max_nodes=x, keep=x, most=x)),
    "graph_lab set": lambda x: a_graph_lab().set(hold=x),
    "graph_lab scale": lambda x: a_graph_lab().scale(x, 0.0),
    "graph_lab scale by": lambda x: a_graph_lab().scale(a_neuron(), x),
    "graph_lab group": lambda x: a_graph_lab().group("group", x),
    "graph_lab group name": lambda x: a_graph_lab().group(x, [a_neuron()]),
    "graph_lab label": lambda x: a_graph_lab().label(a_neuron(), x),
    "graph_lab reopen": lambda x: a_graph_lab().reopen(x),
    "graph_lab save": lambda x: a_graph_lab().save(x),
    # prompts
    "prompts n": lambda x: gs.prompts.ioi(x),
    "prompts seed": lambda x: gs.prompts.ioi(2, seed=x),
    "prompts tokenizer": lambda x: gs.prompts.ioi(2, tokenizer=x),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_an_odd_argument_gives_a_right_answer_or_our_own_error(call: str) -> None:
    assert not bare_errors(CALLS[call], some_of(call, N_SAMPLED))


# A whole number that is right, and what is done with it.
WHOLE: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "window": (2, lambda n: a_cell(window=n, progress=False).values),
    "steps": (2, lambda n: gs.attribute(P, Q, DIFF, site="z", by=("layer",), layer=5, steps=n).values),
    "senders": (1, lambda n: gs.composition(senders=n, receivers=2).scores.values),
    "Composition.best": (2, lambda n: a_composition().best(n)),
    "HeadScores.best": (2, lambda n: a_score().best(n)),
    "DirectLogits.top": (2, lambda n: written().top(n)),
    "Features.top": (2, lambda n: some_features().top(n)),
    "FeatureSweep.top": (2, lambda n: a_feature_sweep().top(n)),
    "direct_logits pos": (3, lambda n: gs.direct_logits(trace(), " Mary", pos=n).parts.values),
    "head_scores n": (2, lambda n: gs.head_scores(n=n).scores.values),
    "head_scores length": (4, lambda n: gs.head_scores(n=1, length=n).scores.values),
    "ov": (1, lambda n: gs.load().layer(1).ov(n).left.numpy()),
    "qk distance": (2, lambda n: gs.load().layer(1).qk(1, distance=n).right.numpy()),
    "plan context": (200, lambda n: gs.plan("2b", context=n).context),
    "plan rows": (200, lambda n: gs.plan("2b", rows=n).rows),
    "plan memory": (2**34, lambda n: gs.plan("2b", memory=n).memory),
    "lens_view top": (3, lambda n: gs.lens_view(trace(), top=n).spec["top"]),
    "sae_view most": (3, lambda n: len(gs.sae_view(some_features(), most=n).spec["rows"])),
    "attention_view layer": (1, lambda n: gs.attention_view(trace(), layer=n, layers=[0, 1]).spec["layer"]),
    "run of a lab": (1, lambda n: a_lab().run("row", n).values),
    "prompts": (2, lambda n: list(gs.prompts.ioi(n))),
    "prompts seed": (2, lambda n: list(gs.prompts.ioi(2, seed=n))),
    "load_sae layer": (gs.load_sae().layer or 0, lambda n: (gs.load_sae(layer=n).layer, gs.load_sae(layer=n).call)),
}  # fmt: skip


@pytest.mark.parametrize("call", WHOLE)
def test_a_whole_number_of_numpy_or_torch_is_one_of_python(call: str) -> None:
    number, do = WHOLE[call]
    expected = do(number)
    for kind in (np.uint64, np.array, torch.tensor):
        np.testing.assert_equal(do(kind(number)), expected)


@pytest.mark.parametrize("odd", [True, np.True_, 2.0, "2", None.__class__, torch.tensor(True)], ids=repr)
@pytest.mark.parametrize("call", WHOLE)
def test_true_and_fractions_are_no_whole_numbers(call: str, odd: Any) -> None:
    with pytest.raises(gs.GemmascopeError):
        WHOLE[call][1](odd)


def endless() -> Any:
    while True:
        yield P


@pytest.mark.parametrize(
    "call",
    [lambda: gs.trace(endless()), lambda: gs.generate(endless()), lambda: gs.trace(P, edits=endless()),
     lambda: gs.ablate("z", layer=1, value="mean", reference=endless()),
     lambda: gs.trace(P, edits=[gs.ablate("z", layer=1, pos=(0 for _ in endless()))]),
     lambda: gs.sweep(P, Q, DIFF, site="z", layer=(0 for _ in endless()), progress=False),
     lambda: gs.sweep(endless(), Q, DIFF, site="z", progress=False),
     lambda: gs.sweep(P, Q, DIFF, site="z", by=endless(), progress=False),
     lambda: strengths_of(steering(), DIFF, strengths=(1.0 for _ in endless())),
     lambda: gs.feature_sweep(gs.load_sae(), P, DIFF, features=(1 for _ in endless())),
     lambda: gs.logit_diff(endless(), " John").bind(gs.load()), lambda: gs.plan_view(endless())],
)  # fmt: skip
def test_a_generator_without_an_end_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(gs.GemmascopeError):
        call()
