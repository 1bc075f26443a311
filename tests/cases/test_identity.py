"""A fingerprint sees every bit of the weights, the configuration, the dtype and the tokenizer, whatever changed them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, prompt
from torch import Tensor, nn

import gemmascope as gs
from gemmascope.checkpoints.source import NANO
from gemmascope.errors import (
    BudgetError,
    CheckpointError,
    DeviceError,
    DictionaryError,
    GemmascopeWarning,
    SweepError,
    TraceError,
)
from gemmascope.model import digests
from gemmascope.model.digests import TensorDigest, tensor_digest

IDS = prompt(9)
DTYPES = [torch.float32, torch.bfloat16]


def swap_rows(w: Tensor) -> None:
    w[[1, 2]] = w[[2, 1]]


def swap_values(w: Tensor) -> None:
    w[3, 0], w[3, 1] = w[3, 1].clone(), w[3, 0].clone()


def zero_signs(w: Tensor) -> None:
    """Two zeros, four or eight bytes apart, change their sign: no number changes."""
    w[0, :8] = 0.0
    w[0, 2] = w[0, 6] = -0.0


CHANGES: dict[str, tuple[str, Callable[[Tensor], None]]] = {
    "one neuron": ("model.layers.1.mlp.down_proj.weight", lambda w: w[:, 5].zero_()),
    "one number": ("model.layers.0.self_attn.k_proj.weight", lambda w: w[7, 3].mul_(1.01)),
    "one embedding row": ("model.embed_tokens.weight", lambda w: w[17].mul_(2)),
    "two swapped rows": ("model.layers.1.mlp.up_proj.weight", swap_rows),
    "two swapped values": ("model.layers.1.self_attn.o_proj.weight", swap_values),
    "one gain": ("model.layers.0.post_attention_layernorm.weight", lambda w: w[3].add_(0.5)),
    "the last norm": ("model.norm.weight", lambda w: w[31].add_(0.5)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("through", ["in place", ".data"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_in_place_changes_the_fingerprint(what: str, through: str, dtype: torch.dtype) -> None:
    source = checkpoint("lg").to(dtype)
    model, same = gs.load(source), gs.load(checkpoint("lg").to(dtype))
    before = model.fingerprint
    name, change = CHANGES[what]
    weight = source.get_parameter(name)
    with torch.no_grad():
        change(weight.data if through == ".data" else weight)
    assert before == same.fingerprint != model.fingerprint
    assert model.fingerprint == gs.load(source).fingerprint


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_negative_zeros_change_the_digest(dtype: torch.dtype) -> None:
    for places in [(2,), (2, 6), (1, 3), (0, 4), (0, 4, 8, 12)]:
        zeros, with_negative_zeros = torch.zeros(2, 8, dtype=dtype), torch.zeros(2, 8, dtype=dtype)
        with_negative_zeros.view(-1)[list(places)] = -0.0
        assert torch.equal(zeros, with_negative_zeros)
        assert tensor_digest(zeros) != tensor_digest(with_negative_zeros), places


def test_the_digest_of_bits_is_the_same_by_parts_and_by_either_product(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.Generator().manual_seed(0)
    values = torch.randint(-(2**31), 2**31, (3, 70001), generator=drawn).to(torch.int32)
    extremes = torch.full((2**15,), -128, dtype=torch.int8)
    expected = [tensor_digest(values), tensor_digest(extremes)]
    in_parts = TensorDigest(f"{values.dtype} {tuple(values.shape)}")
    for part in values.view(-1).split(9973):
        in_parts.add(part)
    monkeypatch.setattr(digests, "_multiplies_bytes", lambda device: False)
    assert expected == [in_parts.hexdigest(), tensor_digest(extremes)] == [tensor_digest(values), tensor_digest(extremes)]
    assert tensor_digest(values.T) != expected[0] != tensor_digest(values.view(70001, 3))


def test_every_bit_of_a_tensor_changes_the_digest() -> None:
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    flat, digests = values.view(-1).view(torch.int32), {tensor_digest(values)}
    for place in range(0, len(flat), 97):
        for bit in range(32):
            flat[place] ^= -(2**31) if bit == 31 else 2**bit
            digests.add(tensor_digest(values))
            flat[place] ^= -(2**31) if bit == 31 else 2**bit
    assert len(digests) == 1 + 32 * len(range(0, len(flat), 97))


CONFIG = {"sliding_window": 5, "final_logit_softcapping": None, "attn_logit_softcapping": 20.0, "query_pre_attn_scalar": 7,
          "rms_norm_eps": 1e-5, "eos_token_id": [1, 9], "max_position_embeddings": 128}  # fmt: skip


@pytest.mark.parametrize("field", CONFIG)
def test_a_field_of_the_configuration_changes_the_fingerprint(field: str, tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    before = gs.load(tmp_path).fingerprint
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**about, field: CONFIG[field]}))
    assert gs.load(tmp_path).fingerprint != before


@pytest.mark.nano
def test_the_dtype_and_the_tokenizer_change_the_fingerprint(tmp_path: Path) -> None:
    shutil.copytree(NANO, tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    model, half = gs.load(tmp_path / "m"), gs.load(tmp_path / "m", dtype="bfloat16")
    about = json.loads(path.read_text())
    about["model"]["merges"].pop()
    path.write_text(json.dumps(about))
    fewer_merges = gs.load(tmp_path / "m")
    path.unlink()
    without = gs.load(tmp_path / "m")
    fingerprints = [one.fingerprint for one in (gs.load(), model, half, fewer_merges, without)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4
    assert model.network_fingerprint == without.network_fingerprint


@pytest.mark.parametrize("kind", ["source", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resident_and_streamed_weights_have_one_fingerprint(kind: str, dtype: str, tmp_path: Path) -> None:
    checkpoint("lgl").save_pretrained(tmp_path / "source", max_shard_size="20KB")
    gs.quantize(tmp_path / "source", tmp_path / "int8")
    resident = gs.load(tmp_path / kind, dtype=dtype)
    with pytest.raises(BudgetError) as error:
        gs.load(tmp_path / kind, dtype=dtype, memory=1)
    least = int("".join(c for c in str(error.value).split("needs ")[1].split(" ")[0] if c.isdigit()))
    streamed = gs.load(tmp_path / kind, dtype=dtype, memory=least)
    assert not streamed.network.layer_source.kept  # type: ignore[union-attr]
    assert streamed.fingerprint == resident.fingerprint


def test_a_file_is_refused_by_a_model_whose_weights_changed_in_place(tmp_path: Path) -> None:
    source = checkpoint("lg")
    model = gs.load(source)
    options: dict[str, Any] = {"site": "z", "model": model, "progress": False}
    before = gs.sweep(IDS, IDS[::-1], first_logit, out=tmp_path / "s", **options)
    gs.trace(IDS, model=model).save(tmp_path / "t")
    source.model.layers[1].mlp.gate_proj.weight.data.mul_(1.5)
    with pytest.raises(SweepError, match="fingerprint"):
        gs.sweep(IDS, IDS[::-1], first_logit, out=tmp_path / "s", **options)
    with pytest.raises(TraceError, match="other weights"):
        gs.open_trace(tmp_path / "t", model=model)
    assert not (gs.sweep(IDS, IDS[::-1], first_logit, **options).values == before.values).all()


def first_logit(logits: Tensor) -> Tensor:
    return logits[:, 5]


def test_a_trace_whose_weights_changed_is_not_saved(tmp_path: Path) -> None:
    source = checkpoint("lg")
    trace = gs.trace(IDS, model=gs.load(source))
    source.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.raises(TraceError, match="weights"):
        trace.save(tmp_path / "t")
    assert not list(tmp_path.iterdir())


# What is read from a trace after its weights changed, and whether the changed part is what it needs.
READS: dict[str, Callable[[gs.Trace], Any]] = {
    "t['z', 1]": lambda t: t["z", 1],
    "t['pattern', 1]": lambda t: t["pattern", 1],
    "t.edges": lambda t: t.edges("scores", 1, head=0),
    "t.grad": lambda t: t.grad(first_logit, ("resid_pre", 0)),
    "stream_view": lambda t: gs.stream_view(t),
}
ENDS: dict[str, Callable[[gs.Trace], Any]] = {
    "t.logits": lambda t: t.logits,
    "t.next_logits": lambda t: t.next_logits,
    "t.top": lambda t: t.top(2),
    "t.lens()": lambda t: t.lens(),
    "t['final']": lambda t: t["final"],
    "t.grad": lambda t: t.grad(first_logit, ("resid_pre", 0)),
    "kl_from": lambda t: gs.kl_from(t).bind(t.model),
    "gs.direct_logits": lambda t: gs.direct_logits(t, 3),
}


def write_data(weight: nn.Parameter) -> None:
    weight.data.view(-1)[3] += 1


def write_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(3)


@pytest.mark.parametrize("write", [write_data, write_in_place])
@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize(
    ("part", "read"), [("layer", r) for r in READS] + [("norm", r) for r in ENDS] + [("embed", "t.top")]
)
def test_the_first_read_that_needs_weights_that_changed_is_an_error(
    part: str, read: str, owned: bool, write: Callable[[nn.Parameter], None], tmp_path: Path
) -> None:
    source: Any = checkpoint("lg")
    if owned:
        source.save_pretrained(tmp_path)
        source = tmp_path
    model = gs.load(source)
    trace, post = gs.trace(IDS, model=model), None
    network = model.network.model
    post = trace["resid_post", 1]
    write({"layer": network.layers[1].mlp.down_proj, "norm": network.norm, "embed": network.embed_tokens}[part].weight)  # type: ignore[index, union-attr, arg-type]
    with pytest.raises(TraceError, match=r"changed since this run.*gs\.trace\(t\.ids"):
        (READS if part == "layer" else ENDS)[read](trace)
    assert torch.equal(trace["resid_post", 1], post)  # what it kept
    assert "changed since this run" in repr(trace) or part == "layer"
    again = gs.trace(IDS, model=model)
    (READS if part == "layer" else ENDS)[read](again)


def test_results_already_read_do_not_change_with_the_weights() -> None:
    source = checkpoint("lg")
    trace = gs.trace(IDS, model=gs.load(source))
    before, logits = trace.top(3), trace.logits
    source.model.norm.weight.data.add_(1)
    assert trace.top(3) == before
    assert torch.equal(trace.logits, logits)


def test_a_layer_whose_weights_did_not_change_is_still_read() -> None:
    source = checkpoint("lgl")
    trace = gs.trace(IDS, model=gs.load(source))
    fresh = gs.trace(IDS, model=gs.load(checkpoint("lgl")))
    source.model.layers[2].mlp.gate_proj.weight.data.mul_(3)
    assert torch.equal(trace["z", 1], fresh["z", 1])


# Changes to a shared model by its owner, and the error at the next run.
def replace_parameter(m: Any) -> None:
    m.model.layers[1].mlp.up_proj.weight = nn.Parameter(m.model.layers[1].mlp.up_proj.weight * 2)


def patch_forward(m: Any) -> None:
    mlp, old = m.model.layers[0].mlp, m.model.layers[0].mlp.forward
    mlp.forward = lambda x: 2 * old(x)


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def inject(m: Any) -> None:
    """Wraps the weight in a module of another class, as adapters do."""
    old = m.model.layers[0].self_attn.q_proj
    new = Twice(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    m.model.layers[0].self_attn.q_proj = new


def other_activation(m: Any) -> None:
    m.model.layers[1].mlp.act_fn = nn.ReLU()


def set_field(name: str, value: Any) -> Callable[[Any], None]:
    return lambda m: setattr(m.config, name, value)


def load_assigned(m: Any) -> None:
    m.load_state_dict({name: value.clone() for name, value in m.state_dict().items()}, assign=True)


def swap_layers(m: Any) -> None:
    m.model.layers = nn.ModuleList([m.model.layers[1], m.model.layers[0]])


LATER: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "half": (lambda m: m.half(), DeviceError, "float16"),
    "double": (lambda m: m.double(), CheckpointError, "float64"),
    "half a layer": (lambda m: m.model.layers[0].half(), DeviceError, "float16"),
    "parameter replaced": (replace_parameter, CheckpointError, "another tensor now"),
    "state dict assigned": (load_assigned, CheckpointError, "another tensor now"),
    "embedding resized": (lambda m: m.resize_token_embeddings(70, mean_resizing=False), CheckpointError, "vocab_size"),
    "forward patched": (patch_forward, CheckpointError, "forward of its own"),
    "module injected": (inject, CheckpointError, "Twice"),
    "activation replaced": (other_activation, CheckpointError, "ReLU"),
    "layers swapped": (swap_layers, CheckpointError, "transformers model"),
    "window edited": (set_field("sliding_window", 7), CheckpointError, "window"),
    "cap edited": (set_field("final_logit_softcapping", None), CheckpointError, "final_cap"),
    "end tokens edited": (lambda m: setattr(m.generation_config, "eos_token_id", [1, 7]), CheckpointError, "eos_ids"),
    "scaling edited": (lambda m: setattr(m.model.layers[1].self_attn, "scaling", 1.0), CheckpointError, "scaling"),
    "epsilon edited": (lambda m: setattr(m.model.layers[1].input_layernorm, "eps", 0.1), CheckpointError, "eps"),
}


@pytest.mark.parametrize("what", LATER)
def test_the_next_run_of_a_shared_model_that_was_changed_is_an_error(what: str) -> None:
    change, error, message = LATER[what]
    source = checkpoint("lg")
    model = gs.load(source)
    trace = gs.trace(IDS, model=model)
    change(source)
    with pytest.raises(error, match=message):
        gs.trace(IDS, model=model)
    with pytest.raises(error, match=message):
        trace["z", 0]
    with pytest.raises(error, match=message):
        gs.generate(IDS, model=model, max_new_tokens=1)


@pytest.mark.parametrize("what", ["half", "half a layer", "double", "forward patched", "module injected",
                                  "activation replaced", "layers swapped", "scaling edited", "epsilon edited"])  # fmt: skip
def test_a_model_that_was_changed_before_loading_is_refused(what: str) -> None:
    change, error, _ = LATER[what]
    source = checkpoint("lg")
    change(source)
    with pytest.raises(error):
        gs.load(source)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_refused_at_loading_and_warned_about_later(register: str) -> None:
    source = checkpoint("lg")
    model, layer = gs.load(source), source.model.layers[1]
    handle = getattr(layer, register)(lambda *args: None)
    with pytest.warns(GemmascopeWarning, match=r"'model\.layers\.1'.*forward hook"):
        gs.trace(IDS, model=model)
    gs.trace(IDS, model=model)  # once
    with pytest.raises(CheckpointError, match="forward hook"):
        gs.load(source)
    handle.remove()
    gs.trace(IDS, model=gs.load(source))


def test_hooks_that_transformers_leaves_on_a_model_are_accepted() -> None:
    source = checkpoint("lg")
    source(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)  # hooks of its own stay on
    model = gs.load(source)
    source.train().eval().requires_grad_(False)
    logits = source(torch.tensor([IDS])).logits[0]
    assert torch.allclose(gs.trace(IDS, model=model).logits, logits, atol=1e-4)


def test_training_goes_on_in_a_shared_model() -> None:
    source = checkpoint("lg")
    model = gs.load(source)
    old = gs.trace(IDS, model=model)
    step = torch.optim.SGD(source.parameters(), lr=0.1)
    source(torch.tensor([IDS])).logits[..., 3].sum().backward()
    step.step()
    now = gs.trace(IDS, model=model)
    assert torch.allclose(now["resid_mid", 1] + now["mlp_out", 1], now["resid_post", 1])
    with pytest.raises(TraceError, match="changed"):
        old["z", 1]


def test_a_dictionarys_fingerprint_is_of_every_number() -> None:
    d = gs.load_sae()
    before = d.fingerprint
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        array = getattr(d, name).clone()
        array[..., 7] += 0.5
        assert dataclasses.replace(d, **{name: array}).fingerprint != before, name
    d.W_dec[100, 1] += 1
    assert d.fingerprint != before


@pytest.mark.parametrize("n_prompts", [1, 3])
def test_a_run_uses_the_weights_as_they_are_when_it_starts(n_prompts: int, tmp_path: Path) -> None:
    """One number of each tensor is written through .data, which a sample of the numbers does not notice."""
    checkpoint("lg").save_pretrained(tmp_path)
    model = gs.load(tmp_path)
    gs.trace(IDS, model=model)
    for weight in model.network.parameters():
        weight.data.view(-1)[5] += 0.5
    fresh = checkpoint("lg")
    for weight in fresh.parameters():
        weight.data.view(-1)[5] += 0.5
    prompts = [IDS, IDS[:5], IDS[::-1]][:n_prompts]
    expected = gs.trace(prompts, model=gs.load(fresh))
    read, unread = gs.trace(prompts, model=model), gs.trace(prompts, model=model)
    for trace, other, right in zip(read, unread, expected, strict=True):
        for key in (("z", 0), ("pattern", 1), "logits"):
            assert torch.allclose(trace[key], right[key], atol=1e-5)
        model.network.model.layers[1].mlp.down_proj.weight.data.view(-1)[7] += 1.0
        with pytest.raises(TraceError, match="changed since this run"):
            gs.trace(IDS, model=model, edits=[]) and other["z", 1]
        assert torch.allclose(trace["z", 1], right["z", 1], atol=1e-5)  # kept from when the pattern was read
        model.network.model.layers[1].mlp.down_proj.weight.data.view(-1)[7] -= 1.0


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.k_proj.weight"])
def test_a_changed_row_or_column_is_noticed_before_a_run(name: str, tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path)
    model = gs.load(tmp_path)
    weight = model.network.get_parameter(name)
    for axis in (0, 1):
        for place in range(weight.shape[axis]):
            before = model.weights.looks()
            weight.data.select(axis, place).mul_(1.25)
            assert model.weights.looks() != before, (axis, place)


def test_writing_to_the_stream_changes_no_trace() -> None:
    trace = gs.trace(IDS, model=gs.load(checkpoint("lg")))
    before, logits = trace["resid_post", 0], trace.logits
    for entry in trace.stream:
        entry.zero_()
    assert torch.equal(trace["resid_post", 0], before)
    assert torch.equal(gs.trace(IDS, model=trace.model).logits, logits)
    assert bool(trace.stream[1].any())


@pytest.mark.nano
def test_a_trace_opens_with_an_equal_tokenizer_and_is_refused_with_another(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(NANO)
    gs.trace("Mary went", model=gs.load(NANO, tokenizer=words)).save(tmp_path / "t")
    assert gs.open_trace(tmp_path / "t", model=gs.load(NANO)).tokens == gs.trace("Mary went").tokens
    words("Mary", truncation=True, max_length=2, padding="max_length")  # what a call leaves on it
    words.add_eos_token = words.add_bos_token = False
    assert gs.load(NANO, tokenizer=NANO).fingerprint == gs.load().fingerprint
    gs.open_trace(tmp_path / "t", model=gs.load(NANO, tokenizer=AutoTokenizer.from_pretrained(NANO)))
    words.add_tokens(["<new>"])
    shutil.copytree(NANO, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    for different in (gs.load(tmp_path / "m"), gs.load(tmp_path / "m", dtype="bfloat16")):
        message = "another tokenizer" if different.dtype == torch.float32 else "other weights, configuration or dtype"
        with pytest.raises(TraceError, match=message):
            gs.open_trace(tmp_path / "t", model=different)


@pytest.mark.nano
def test_binding_splices_checks_the_weights_once_and_again_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    model = gs.load(AutoModelForCausalLM.from_pretrained(NANO), tokenizer=NANO)
    sae, ids = gs.load_sae(), gs.load().ids("Mary went to the store")
    gs.splice(sae, {3: 0.5}).bind(model, ids)
    monkeypatch.setattr(type(sae), "require_fit", None)
    for value in (0.0, 1.0):
        gs.splice(sae, {3: value}).bind(model, ids)
    monkeypatch.undo()
    model.network.model.layers[2].mlp.down_proj.weight.data[:, 3] = 0
    with pytest.raises(DictionaryError, match="fingerprint"):
        gs.splice(sae, {3: 0.5}).bind(model, ids)
