"""Every public function on nano, on a device beside the CPU: how far apart the numbers are, and what fails.

A result is compared by its numbers alone: tensors, labelled arrays, token ids. Views and labs are made and their text is
compared, without a browser. Each case has its own name, and a case that fails does not stop the next.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
LONG = "Mary went to the store. " * 9
WOMEN, MEN = ["Mary was", "Anna was"], ["John was", "Peter was"]
GRIDS = {
    "resid_pre": ("layer", "pos"), "resid_mid": ("layer", "pos"), "attn_out": ("layer", "pos"),
    "mlp_out": ("layer", "pos"), "mlp_act": ("layer", "pos"), "z": ("layer", "head"), "q": ("layer", "head"),
    "k": ("layer", "head"), "v": ("layer", "head"), "pattern": ("layer", "head"), "scores": ("layer", "head"),
}  # fmt: skip
KINDS = ("induction", "previous_token", "duplicate_token", "sink", "local_reach", "copying")
ALLOWED = 1e-4  # of the largest number, float32 on both


def numbers(found: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All numbers of a result, in one row."""
    if isinstance(found, torch.Tensor):
        return found.detach().double().cpu().numpy().ravel()
    if isinstance(found, Mapping):
        found = list(found.values())
    if hasattr(found, "data_vars"):
        found = [found[name] for name in found.data_vars if found[name].dtype.kind in "fiub"]
    if isinstance(found, (list, tuple)):
        return np.concatenate([np.zeros(0), *(numbers(one) for one in found)])
    return np.asarray(found, dtype=np.float64).ravel()


def cases(gs: Any, model: Any, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each public function by a name. gs: the package, or what stands before it and watches."""
    metric, quiet = gs.logit_diff(" Mary", " John"), {"model": model, "progress": False}
    trace = gs.trace(CLEAN, model=model)
    yield from _reading(gs, model, trace, folder)
    yield from _edits(gs, model, trace)
    for site, by in GRIDS.items():
        yield f"sweep of {site}", lambda site=site, by=by: gs.sweep(CLEAN, CORRUPT, metric, site=site, by=by, **quiet).values
    others = {
        "rank": gs.rank(" Mary"),
        "probability": gs.answer_prob(" Mary"),
        "log probability": gs.answer_logprob(" Mary"),
    }
    for name, other in {**others, "KL divergence": gs.kl_from(trace)}.items():
        yield (
            f"sweep measured by {name}",
            lambda other=other: gs.sweep(CLEAN, CORRUPT, other, site="resid_pre", **quiet).values,
        )
    heads: dict[str, Any] = {"site": "z", "by": ("layer", "head"), **quiet}
    references = [trace, gs.trace(CORRUPT, model=model)]
    yield "ablation by the mean", lambda: gs.sweep(CLEAN, None, metric, ablate="mean", reference=references, **heads).values
    both = [metric, gs.logit_diff(" John", " Mary")]
    yield "sweep of two pairs", lambda: gs.sweep([CLEAN, CORRUPT], [CORRUPT, CLEAN], both, **heads).values

    def journal() -> Any:
        gs.sweep(CLEAN, CORRUPT, metric, out=folder / "sweep.jsonl", layer=[1, 2], **heads)
        return gs.open_sweep(folder / "sweep.jsonl").values

    yield "sweep kept in a file", journal
    yield "path_sweep", lambda: gs.path_sweep(CLEAN, CORRUPT, metric, sender="z", receiver=("q", 3), **quiet).values
    asked: Any = {"metric": metric, "model": model}
    yield "attribute", lambda: gs.attribute(CLEAN, CORRUPT, site="z", by=("layer", "head"), **asked).values
    yield "attribute in steps", lambda: gs.attribute(CLEAN, CORRUPT, site="resid_pre", steps=4, **asked).values
    for method in ("eap", "eap-ig", "relp", "exact"):
        yield (
            f"edge_scores, {method}",
            lambda method=method: gs.edge_scores(CLEAN, CORRUPT, method=method, progress=False, **asked).values,
        )
    edges = gs.edge_scores(CLEAN, CORRUPT, **asked)
    yield "faithfulness", lambda: gs.faithfulness(edges, CLEAN, CORRUPT, **asked).values
    yield "attribute by RelP", lambda: gs.attribute(CLEAN, CORRUPT, site="mlp_out", method="relp", **asked).values
    yield "patchscope", lambda: gs.patchscope(trace, layer=4, into=CORRUPT, max_new_tokens=2).logprobs
    sae = gs.load_sae(layer=3, model=model)
    conditions = [gs.feature_on(sae, 3), gs.probe_above(trace[sae.read_from, 3][3], 1.0)]
    yield (
        "edits with a condition",
        lambda: [
            gs.trace(CLEAN, model=model, edits=[gs.scale(sae.read_from, 0.5, layer=3, when=one)]).logits
            for one in conditions
        ],
    )
    yield "grad", lambda: [trace.grad(metric, address) for address in (("pattern", 3), ("resid_pre", 0))]
    yield from _metrics(gs, model, trace, metric)
    yield from _generation(gs, model)
    yield from _steering_and_dictionaries(gs, model, trace, metric)
    yield from _more_dictionaries(gs, model, trace, folder)
    yield from _views_and_labs(gs, model, trace, metric)


def _metrics(gs: Any, model: Any, trace: Any, metric: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    quiet: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "model": model, "progress": False}

    def entropy(logits: Any) -> Any:
        p = logits.softmax(-1)
        return -(p * p.log()).sum(-1).mean(-1)

    for name, other in {"loss": gs.loss(), "entropy": gs.metric(entropy, pos=[1, 3, -1])}.items():
        yield f"sweep measured by {name}", lambda other=other: gs.sweep(CLEAN, CORRUPT, other, **quiet).values
    yield "attention_attribution", lambda: gs.attention_attribution(trace, metric)
    yield "head_paths", lambda: gs.head_paths(CLEAN, CORRUPT, metric, model=model)
    neurons = {"basis": "neuron", "max_nodes": 40, "keep": 10**6, "progress": False}
    yield "attribution_graph", lambda: gs.attribution_graph(CLEAN, model=model, targets=metric, **neurons).rows.total
    yield "graph.check", lambda: gs.attribution_graph(CLEAN, model=model, targets=metric, **neurons).check(3).nodes["true"]
    yield "name_copying", lambda: gs.name_copying([CLEAN, CORRUPT], [" Mary", " John"], model=model).scores
    both = gs.trace([CLEAN, CORRUPT], model=model)
    yield "stack", lambda: gs.stack(both, "pattern")


def _reading(gs: Any, model: Any, trace: Any, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, site in gs.SITES.items():
        yield f"site {name}", lambda name=name, site=site: trace[name, 2] if site.in_layer else trace[name]
    yield "trace of a long prompt", lambda: gs.trace(LONG, model=model).logits
    yield "trace of two prompts", lambda: [t.logits for t in gs.trace([CLEAN, LONG], model=model)]

    def saved() -> Any:
        trace.save(folder / "mary.trace")
        return gs.open_trace(folder / "mary.trace", model=model).logits

    yield "open_trace", saved

    def harvested(opened: bool) -> Any:
        out = folder / f"store {opened}"
        store = gs.harvest(
            model, [CLEAN, LONG], ["z", "resid_post"], layers=[1, 4], out=out, dtype="float32", progress=False
        )
        return (gs.open_store(out) if opened else store).read("z", 4, slice(None))

    yield "harvest", lambda: harvested(False)
    yield "open_store", lambda: harvested(True)

    def probed() -> Any:
        store = gs.harvest(
            model, [CLEAN, LONG], "resid_post", layers=4, out=folder / "probed", dtype="float32", progress=False
        )
        return gs.probe(store, [" to" in token for token in store.tokens], progress=False).at("resid_post", 4).weight

    yield "probe", probed

    def trained() -> Any:
        rows = gs.trace(LONG, model=model)["resid_post", 4].cpu()
        asked: Any = {"features": 32, "l0": 4, "steps": 3, "batch_size": 16, "architecture": "topk", "progress": False}
        return gs.train_sae(rows, "resid_post", 4, out=folder / "trained", device=model.device, **asked).history

    yield "train_sae", trained

    def edited_from_a_file() -> Any:
        gs.save_edits([gs.ablate("z", layer=2, head=3), gs.scale("mlp_out", 0.5, layer=4)], folder / "edits.json")
        return gs.trace(CLEAN, model=model, edits=gs.open_edits(folder / "edits.json")).logits

    yield "edits from a file", edited_from_a_file

    def examples(opened: bool) -> Any:
        found = gs.top_examples([CLEAN, LONG], "head", model=model, layers=[1, 4], progress=False)
        found.save(folder / "top.safetensors")
        return (gs.open_examples(folder / "top.safetensors") if opened else found)["head", 4].data["top_value"].values[:, :2]

    yield "top_examples", lambda: examples(False)
    yield "open_examples", lambda: examples(True)

    def unit_pages(kind: str) -> Any:
        sae = gs.load_sae()
        found = gs.top_examples(
            [CLEAN, LONG], [(sae, [987, 3]), "head", ("neuron", 3, [7])], model=model, layers=3, progress=False
        )
        if kind == "feature":
            return gs.feature_page(sae, 987, found, model=model).spec["histogram"]["counts"]
        if kind == "head":
            return gs.head_page(3, 1, found, model=model).spec["sections"][0]["rows"][0]["values"]
        if kind == "neuron":
            return gs.neuron_page(3, 7, found, model=model).spec["histogram"]["counts"]
        if kind == "json":
            return gs.feature_json(sae, 987, found, model=model)["act_max"]
        return len(gs.save_pages(found, folder / "pages", saes=sae, model=model, progress=False).spec["units"])

    yield "feature_page", lambda: unit_pages("feature")
    yield "head_page", lambda: unit_pages("head")
    yield "neuron_page", lambda: unit_pages("neuron")
    yield "feature_json", lambda: unit_pages("json")
    yield "save_pages", lambda: unit_pages("all")

    def graph_saved() -> Any:
        graph = gs.attribution_graph(CLEAN, model=model, basis="neuron", max_nodes=20, keep=10**6, progress=False)
        graph.save(folder / "mary.graph")
        graph.to_neuronpedia(folder / "mary.json")
        opened = gs.open_graph(folder / "mary.graph", model=model)
        return opened.rows.total, gs.open_neuronpedia(folder / "mary.json").weights

    yield "open_graph", lambda: graph_saved()[0]
    yield "open_neuronpedia", lambda: graph_saved()[1]
    yield (
        "lens",
        lambda: (lambda found: [found.top_probs, found.entropy, found.answer_logit])(gs.lens(trace, answer=" Mary")),
    )
    yield "jacobian_lens", lambda: gs.jacobian_lens(trace, answer=" Mary").answer_logit
    yield "load_jacobian_lens", lambda: gs.load_jacobian_lens("nano", device=model.device).direction(7, 2, model=model)
    yield "fit_jacobian_lens", lambda: gs.fit_jacobian_lens(model, [CLEAN], skip_first=4, progress=False).matrices[0]
    for by in ("sublayer", "head", "neuron", "token"):
        yield f"direct_logits by {by}", lambda by=by: gs.direct_logits(trace, " Mary", against=" John", by=by).parts
    for kind in KINDS:
        yield f"head_scores of {kind}", lambda kind=kind: gs.head_scores(model, kind).scores
    yield "attention_summary", lambda: gs.attention_summary(trace).by_query
    for kind in ("q", "k", "v"):
        yield f"composition by {kind}", lambda kind=kind: gs.composition(model, kind).scores
    yield "factors of a head", lambda: [getattr(model.layer(2).ov(1), side) for side in ("left", "right")]

    def compared() -> Any:
        found = gs.compare(model, model, [CLEAN, CORRUPT])
        return [found.kl, found.cosine]

    yield "compare", compared

    def planned() -> Any:
        found = gs.plan("2b", device="cpu", memory="16GB")
        return [len(found.kept), len(found.streamed)]

    yield "plan", planned

    def quantized() -> Any:
        gs.quantize("nano", folder / "int8")
        return gs.trace(CLEAN, model=gs.load(folder / "int8", device=model.device, dtype="float32")).logits

    yield "quantize", quantized


def _edits(gs: Any, model: Any, trace: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    vector = torch.linspace(-1, 1, model.config.d_model)
    corrupt = gs.trace(CORRUPT, model=model)
    made: dict[str, Callable[[], Any]] = {
        "ablate": lambda: gs.ablate("z", layer=2, head=1),
        "ablate by the mean": lambda: gs.ablate("z", layer=2, head=1, value="mean", reference=[trace]),
        "ablate_direction": lambda: gs.ablate_direction("resid_post", vector, layer=2),
        "add": lambda: gs.add("resid_post", vector, layer=2, pos=-1, scale=2.0),
        "knockout": lambda: gs.knockout(layer=2, q_pos=-1, k_pos=3),
        "patch": lambda: gs.patch("resid_pre", corrupt, layer=2, pos=9),
        "scale": lambda: gs.scale("mlp_out", 0.5, layer=1),
        "edit": lambda: gs.edit("resid_post", lambda x: 2 * x, layer=2),
        "edit that gives a CPU tensor": lambda: gs.edit("resid_post", lambda x: 2 * x.cpu(), layer=2),
    }
    for name, make in made.items():
        yield name, lambda make=make: gs.trace(CLEAN, model=model, edits=[make()]).logits


def _generation(gs: Any, model: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    def ids(prompt: Any, n: int, **more: Any) -> Any:
        return lambda: gs.generate(prompt, model=model, max_new_tokens=n, **more).ids

    yield "generate", ids(CLEAN, 12)
    yield "generate, sampled", ids(CLEAN, 12, temperature=1.0, seed=3)
    yield "generate, a long text with an edit", ids(LONG, 30, edits=[gs.ablate("z", layer=1, head=0)])
    several = [CLEAN, LONG, CORRUPT]
    yield "generate, several prompts", lambda: [g.ids for g in gs.generate(several, model=model, max_new_tokens=12)]
    yield "trace of a generation", lambda: gs.generate(CLEAN, model=model, max_new_tokens=4).trace()["pattern", 3]


def _steering_and_dictionaries(gs: Any, model: Any, trace: Any, metric: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    def direction() -> Any:
        return gs.direction(WOMEN, MEN, layer=2, model=model)

    yield "direction", lambda: direction().vector

    def strengths() -> Any:
        found = gs.strength_sweep(
            ["Mary was"], direction(), gs.logit_diff(" she", " he"), strengths=[-2.0, 0.0, 2.0], model=model, progress=False
        )
        return [found.metric, found.perplexity, found.kl]

    yield "strength_sweep", strengths
    sae = gs.load_sae("nano", device=model.device)
    yield "load_sae", lambda: [sae.encode(trace).value, sae.encode(trace).reconstruction]
    yield "splice", lambda: gs.trace(CLEAN, model=model, edits=[gs.splice(sae, {987: 0.0})]).logits
    yield "feature_sweep", lambda: gs.feature_sweep(sae, CLEAN, metric, model=model).effect


def _more_dictionaries(gs: Any, model: Any, trace: Any, folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "feature_logits", lambda: gs.feature_logits(gs.load_sae("nano", device=model.device), 987, model=model).logits
    yield "saes", lambda: gs.saes("2b").layer.dropna().astype(int).tolist()

    def across_layers() -> Any:
        d, n = model.config.d_model, model.n_layers
        for layer in range(n):
            encoder = {"W_enc": torch.eye(d), "b_enc": torch.zeros(d), "b_dec": torch.zeros(d)}
            save_file({f"{name}_{layer}": array for name, array in encoder.items()}, folder / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": torch.ones(d, n - layer, d)}, folder / f"W_dec_{layer}.safetensors")
        hooks = "feature_input_hook: hook_resid_mid, feature_output_hook: hook_mlp_out"
        (folder / "config.yaml").write_text(f"{{{hooks}, model_name: nano}}", encoding="utf-8")
        return gs.load_cross_layer(folder, model=model).encode(trace).reconstruction

    yield "load_cross_layer", across_layers


def _views_and_labs(gs: Any, model: Any, trace: Any, metric: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    heads: dict[str, Any] = {"site": "z", "by": ("layer", "head"), "model": model, "progress": False}
    neurons: dict[str, Any] = {"basis": "neuron", "max_nodes": 20, "progress": False}
    views: dict[str, Callable[[], Any]] = {
        "attention_view": lambda: gs.attention_view(trace),
        "lens_view": lambda: gs.lens_view(trace),
        "stream_view": lambda: gs.stream_view(trace),
        "sweep_view": lambda: gs.sweep_view(gs.sweep(CLEAN, CORRUPT, metric, **heads)),
        "graph_view": lambda: gs.graph_view(gs.attribution_graph(CLEAN, model=model, **neurons).prune(), heads=5),
        "sae_view": lambda: gs.sae_view(gs.load_sae("nano", device=model.device).encode(trace)),
        "plan_view": lambda: gs.plan_view(contexts=(256, 1024)),
    }
    for name, view in views.items():
        yield name, lambda view=view: [len(view().title), len(view().rows)]

    def patching() -> Any:
        with gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", model=model) as lab:
            return lab.run().values

    yield "patching_lab", patching

    def opened() -> Any:
        with tempfile.TemporaryDirectory() as folder, gs.patching_lab(CLEAN, CORRUPT, " Mary", " John", model=model) as lab:
            lab.run("row", 2)
            lab.save(Path(folder) / "lab.json")
            with gs.open_patching_lab(Path(folder) / "lab.json", model=model) as again:
                again.wait()
                return again.result.values

    yield "open_patching_lab", opened

    def head_lab() -> Any:
        with gs.head_lab(CLEAN, " Mary", " John", model=model, max_new_tokens=2) as lab:
            lab.scale(2, 3, 0.0)
            return lab.moved()[1:]

    yield "head_lab", head_lab

    def steering() -> Any:
        with gs.steer_lab(CLEAN, gs.direction(WOMEN, MEN, layer=2, model=model), max_new_tokens=2, model=model) as lab:
            lab.set(strength=2.0)
            lab.wait()
            return len(lab.text)

    yield "steer_lab", steering

    def graphs() -> Any:
        with gs.graph_lab(CLEAN, model=model, basis="neuron", targets=gs.logit_diff(" Mary", " John"), max_nodes=20) as lab:
            lab.scale(lab.graph.nodes.query("kind == 'feature'").nlargest(1, "influence")["id"].item(), 0.0)
            assert lab.result is not None
            return lab.result.nodes["true"]

    yield "graph_lab", graphs


@dataclass(frozen=True)
class Compared:
    """A case on the device beside the CPU. apart: of the largest number, None where one of them failed."""

    name: str
    count: int
    apart: float | None
    error: str | None

    @property
    def ok(self) -> bool:
        return self.apart is not None and self.apart <= ALLOWED


def compare(gs: Any, device: torch.device) -> Iterator[Compared]:
    """Every case on the CPU and on the device, in float32."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        one, other = (gs.load("nano", device=place, dtype="float32") for place in ("cpu", device))
        for (name, on_cpu), (_, on_device) in zip(cases(gs, one, Path(first)), cases(gs, other, Path(second)), strict=True):
            yield _compared(name, on_cpu, on_device)


def _compared(name: str, on_cpu: Callable[[], Any], on_device: Callable[[], Any]) -> Compared:
    wanted, got = _numbers(on_cpu), _numbers(on_device)
    for where, found in (("CPU", wanted), ("device", got)):
        if isinstance(found, str):
            return Compared(name, 0, None, f"{where}: {found}")
    if wanted.shape != got.shape or not wanted.size:
        return Compared(name, wanted.size, None, f"{wanted.shape} numbers on the CPU, {got.shape} on the device")
    return Compared(name, wanted.size, distance(got, wanted), None)


def _numbers(run: Callable[[], Any]) -> Any:
    """The numbers, or what went wrong."""
    try:
        return numbers(run())
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({at.filename}:{at.lineno})"


def distance(got: Any, wanted: Any) -> float:
    """The largest difference of the finite numbers, beside the largest of them; infinite where others differ at all."""
    finite = np.isfinite(wanted)
    if not np.array_equal(got[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(got[finite] - wanted[finite]).max() / max(np.abs(wanted[finite]).max(), 1e-9))


def summary(found: Sequence[Compared]) -> dict[str, Any]:
    return {
        "cases": len(found), "numbers": sum(one.count for one in found),
        "worst": max((one.apart for one in found if one.apart is not None), default=None),
        "failed": {one.name: one.error or f"apart by {one.apart:.1e}" for one in found if not one.ok},
    }  # fmt: skip
