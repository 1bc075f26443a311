"""gs.plan against parameter counts, the tensors of a pass, and a table from another source; and its laws."""

from __future__ import annotations

import dataclasses
import json
import socket
import weakref
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gemmascope as gs
from gemmascope.checkpoints.from_transformers import empty_network
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.memory import rates
from gemmascope.memory.cards import CARDS, DRIVER
from gemmascope.memory.limits import RESIDENT_ROWS
from gemmascope.memory.placement import Sizes, parse_bytes
from gemmascope.memory.plan import Plan
from gemmascope.memory.planning import plan
from gemmascope.memory.sizes import TASKS, TRACE, activation_bytes, kv_bytes, operations
from gemmascope.model.model import Model
from gemmascope.run.passes import streams

SIZES = ("2b", "9b", "27b")
BF16 = torch.bfloat16

# Weights, keys and values, and activations in GB at 1k, 4k and 8k positions, as computed by others; without a scratch
# layer. The int8 row counts an embedding in int8, of which ours in bfloat16 takes so much more.
TABLE = {
    ("2b", "bfloat16"): (5.45, 5.98, 6.49), ("2b", "int8"): (2.84, 3.37, 3.88),
    ("9b", "bfloat16"): (19.01, 20.43, 21.67), ("9b", "int8"): (9.78, 11.20, 12.44),
    ("27b", "bfloat16"): (55.17, 56.85, 58.38), ("27b", "int8"): (27.96, 29.65, 31.17),
}  # fmt: skip
EMBEDDING_IN_BFLOAT16 = {"2b": 0.59, "9b": 0.92, "27b": 1.18}


def weight_bytes(p: Plan) -> int:
    return sum(part.n_bytes for part in p.parts if part.tasks == TASKS)


def part(p: Plan, name: str) -> int:
    return sum(part.n_bytes for part in p.parts if part.name == name)


# -- what it says is so --


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_weights_are_two_bytes_a_parameter(size: str) -> None:
    assert weight_bytes(plan(size)) == 2 * PRESETS[size].n_params


@pytest.mark.parametrize("size", SIZES)
def test_int8_weights_are_a_byte_a_number_and_two_for_each_group_of_128(size: str) -> None:
    c = PRESETS[size]
    matrices = c.n_layers * c.d_model * (c.d_head * (2 * c.n_heads + 2 * c.n_kv_heads) + 3 * c.d_mlp)
    in_bfloat16 = c.n_params - matrices  # embedding and norms
    p = plan(size, weights="int8")
    assert weight_bytes(p) - part(p, "scratch") == matrices + matrices // 128 * 2 + 2 * in_bfloat16
    assert part(p, "layers that stay") == c.n_layers * Sizes.of(c, "int8", BF16).layer
    assert part(p, "scratch") == 2 * (c.n_params - c.vocab_size * c.d_model - c.d_model) // c.n_layers


@pytest.mark.parametrize("size", SIZES)
def test_the_table_agrees_with_one_computed_elsewhere_within_5_percent(size: str) -> None:
    rows = plan(size).table()
    assert [(row["weights"], row["context"]) for row in rows] == [
        (kind, n) for kind in ("bfloat16", "int8", "4 bits") for n in (1024, 4096, 8192)
    ]
    for row, expected in zip(rows[:6], TABLE[size, "bfloat16"] + TABLE[size, "int8"], strict=True):
        int8 = row["weights"] == "int8"
        scratch = part(plan(size, weights="int8"), "scratch") if int8 else 0
        assert (row["total"] - scratch) / 1e9 == pytest.approx(expected + int8 * EMBEDDING_IN_BFLOAT16[size], rel=0.05)


def test_the_table_is_the_sum_of_the_parts_of_generating() -> None:
    for row in plan("9b").table():
        assert row["total"] == row["weight_bytes"] + row["kv_bytes"] + row["activation_bytes"]
        if row["weights"] != "4 bits":
            assert row["total"] == plan("9b", weights=row["weights"], context=row["context"]).peaks["generate"]


@pytest.mark.parametrize("size", SIZES)
def test_four_bits_are_18_bytes_for_32_weights_beside_the_same_keys_values_and_activations(size: str) -> None:
    rows = {(row["weights"], row["context"]): row for row in plan(size).table()}
    for context in (1024, 4096, 8192):
        small, whole = rows["4 bits", context], rows["bfloat16", context]
        assert small["weight_bytes"] == PRESETS[size].n_params * 18 // 32
        assert whole["total"] - small["total"] == whole["weight_bytes"] - small["weight_bytes"]


@pytest.mark.parametrize("size", SIZES)
def test_the_table_names_the_smallest_card_with_a_gigabyte_to_spare(size: str) -> None:
    for row in plan(size).table():
        holding = [n for n in (8, 16, 24, 40, 80) if row["total"] / 1e9 + 1 <= n]
        assert row["card_bytes"] == (min(holding) * 10**9 if holding else None)


class Live(TorchDispatchMode):
    """Counts the bytes of the live tensors of a pass, also on the meta device, where they take no memory."""

    def __init__(self, known: Model) -> None:
        super().__init__()
        self.live = {p.untyped_storage()._cdata: 0 for p in known.network.parameters()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in self.live:
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.live[key], self.now = size, self.now + size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def traced(config: GemmaConfig, dtype: torch.dtype, n_pos: int) -> tuple[int, int]:
    """Bytes at the peak of a trace beside its weights, counted, and as planned."""
    model = Model(empty_network(config).to(dtype), None, "shape")
    with Live(model) as live:
        residuals = streams(model, [torch.zeros(n_pos, dtype=torch.long, device="meta")], [()])
    del residuals
    p = plan(model, context=n_pos)
    return live.peak, p.peaks[TRACE] - weight_bytes(p)


@pytest.mark.parametrize("n_pos", [64, 1024, 8192])
@pytest.mark.parametrize("size", SIZES)
def test_a_trace_takes_what_the_tensors_of_its_pass_take(size: str, n_pos: int) -> None:
    config = dataclasses.replace(PRESETS[size], kinds=PRESETS[size].kinds[:4], vocab_size=1000)
    counted, planned = traced(config, BF16, n_pos)
    assert counted <= planned <= 1.06 * counted


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("heads", "n_pos"), [(4, 256), (8, 512), (32, 1024)])
def test_where_attention_takes_more_than_the_mlp_it_is_counted(dtype: torch.dtype, heads: int, n_pos: int) -> None:
    config = dataclasses.replace(
        PRESETS["2b"], kinds=("local", "global"), n_heads=heads, d_mlp=16, vocab_size=100, d_model=512, d_head=64
    )
    counted, planned = traced(config, dtype, n_pos)
    assert 0.95 * counted <= planned <= 1.4 * counted


@pytest.mark.parametrize("n_pos", [1, 5, 40])
def test_keys_and_values_are_counted_within_each_layers_window(n_pos: int) -> None:
    model = model_of(checkpoint("lglg"))  # window 4
    t = gs.trace(list(range(3, 3 + n_pos)), model=model)
    n_bytes = 0
    for layer, kind in enumerate(model.config.kinds):
        n_visible = min(n_pos, model.config.window) if kind == "local" else n_pos
        n_bytes += sum(t[site, layer][-n_visible:].nbytes for site in ("k_rot", "v"))
    assert kv_bytes(model.config, torch.float32, n_pos) == n_bytes == part(plan(model, context=n_pos), "keys and values")


def test_the_trace_part_is_what_a_trace_keeps() -> None:
    model = model_of(checkpoint("lgl"))
    t = gs.trace([2, 3, 4, 5], model=model)
    assert part(plan(model, context=4), "trace") == sum(x.nbytes for x in t.stream)


def test_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = model_of(checkpoint("gg"))
    ids = torch.arange(2, 42)
    with FlopCounterMode(display=False) as counter:
        streams(model, [ids], [()])
    full, causal = 40 * 40, 40 * 41 // 2  # a chunk multiplies what the mask then hides
    rows_alone = operations(model.config, 40, one_prompt=False)
    expected = rows_alone + (operations(model.config, 40, one_prompt=True) - rows_alone) * full // causal
    assert counter.get_total_flops() == expected


def test_a_sweep_without_a_budget_has_the_rows_of_one_without() -> None:
    assert plan("2b").rows == RESIDENT_ROWS


# -- laws --


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from(SIZES),
    weights=st.sampled_from(("auto", "int8")),
    context=st.integers(1, 8192),
    budgets=st.tuples(st.integers(3 * 10**9, 90 * 10**9), st.integers(0, 10**10)),
)
def test_laws_of_a_budget(size: str, weights: str, context: int, budgets: tuple[int, int]) -> None:
    less, more = (plan(size, weights=weights, context=context, memory=n) for n in (budgets[0], sum(budgets)))
    for p in (less, more):
        assert sorted(p.kept + p.streamed) == list(range(p.config.n_layers))
        assert weight_bytes(p) == p.placement.weights + part(p, "last norm")
        for task, peak in p.peaks.items():
            assert peak == sum(part.n_bytes for part in p.parts if task in part.tasks)
        assert p.peaks["sweep"] <= p.memory + part(p, "last norm")
        assert p.total == max(p.peaks["trace"], p.peaks["generate"])
        streamed = len(p.streamed) * p.memory_need.sizes.layer
        assert p.moved == streamed + (0 if p.placement.embedded else p.config.vocab_size * p.config.d_model * 2)
    assert more.moved <= less.moved
    if more.placement.embedded == less.placement.embedded:  # else the memory went to the embedding, which saves as much
        assert len(more.kept) >= len(less.kept)


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from(SIZES),
    weights=st.sampled_from(("bf16", "int8")),
    context=st.integers(1, 8192),
    gb=st.integers(1, 90),
)
def test_what_a_plan_says_about_a_card_holds_for_a_load_with_its_memory(
    size: str, weights: str, context: int, gb: int
) -> None:
    p = plan(size, weights=weights, context=context)
    fit, room = p.fits(gb * 10**9), gb * 10**9 - DRIVER
    if fit.how == "resident":
        assert p.total <= room
        return
    assert p.total > room
    if fit.how == "no":
        enough = p.fits(gb * 10**9 + fit.missing + 3 * 10**9)
        assert fit.missing > 0
        assert enough
        return
    done = plan(size, weights=weights, context=context, memory=fit.memory)
    assert done.total <= room + part(done, "last norm")
    assert len(done.kept) == fit.n_kept < p.config.n_layers
    assert plan(size, weights=weights, memory=str(fit).split("'")[1]).kept == done.kept


def test_more_memory_on_a_card_never_keeps_fewer_layers_once_the_embedding_stays() -> None:
    p = plan("27b", weights="int8")
    n_kept = [p.fits(gb * 10**9).n_kept for gb in range(15, 60)]
    assert n_kept == sorted(n_kept)
    assert n_kept[0] < 10
    assert n_kept[-1] == 46
    assert [fit.how for fit in p.cards()] == ["no", *["streams"] * 4, *["resident"] * 3]


def test_local_layers_stop_growing_at_the_window_and_global_ones_do_not() -> None:
    c = PRESETS["9b"]
    local, everywhere = dataclasses.replace(c, kinds=("local",) * 42), dataclasses.replace(c, kinds=("global",) * 42)
    at = [kv_bytes(local, BF16, n) for n in (4095, 4096, 4097, 8192)]
    assert at[0] < at[1] == at[2] == at[3]
    assert kv_bytes(everywhere, BF16, 8192) == 2 * kv_bytes(everywhere, BF16, 4096) == 2 * at[1]


@settings(deadline=None)
@given(size=st.sampled_from(SIZES), rows=st.integers(1, 8191))
def test_activations_never_shrink_with_more_rows(size: str, rows: int) -> None:
    assert activation_bytes(PRESETS[size], BF16, rows) < activation_bytes(PRESETS[size], BF16, rows + 1)


# -- sources and formats --


def test_known_models_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name in ("google/gemma-2-27b", "google/gemma-2-27b-it", "gemma-2-27b", "gemma-2-27b-it", "27b", "27B"):
        p = gs.plan(name)
        assert (p.name, p.config, p.weights) == (name, PRESETS["27b"], "bfloat16")


def test_a_folder_with_its_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["9b"].to_dict() | {"dtype": "bfloat16"}))
    p = plan(tmp_path)
    assert (p.name, p.weights, p.config) == (str(tmp_path), "bfloat16", PRESETS["9b"])
    assert p.total == plan("9b").total


def test_a_folder_in_float32_that_is_computed_in_bfloat16(tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path)
    all_there, streaming = plan(tmp_path, dtype="bfloat16"), plan(tmp_path, dtype="bfloat16", memory="100MB")
    assert all_there.weights == "float32"
    assert weight_bytes(all_there) == 2 * all_there.config.n_params  # turned into bfloat16 while loading
    layer = Sizes.of(all_there.config, "", BF16, torch.float32).layer
    assert part(streaming, "layers that stay") == 2 * layer
    assert part(streaming, "scratch") == layer // 2


@pytest.mark.parametrize(("memory", "n_kept"), [(None, 6), (7_010_000, 2), (2_800_000, 0)])
def test_a_plan_keeps_the_layers_that_gs_load_keeps(memory: int | None, n_kept: int, tmp_path: Path) -> None:
    checkpoint("lglglg").save_pretrained(tmp_path / "source")
    store = gs.quantize(tmp_path / "source", tmp_path / "int8")
    p = plan(store, memory=memory)
    layer_source: Any = gs.load(store, memory=memory).network.layer_source
    assert p.weights == "int8"
    assert p.kept == tuple(sorted(layer_source.kept))
    assert len(p.kept) == n_kept
    for name, buffers in (("layers that stay", layer_source.kept.values()), ("slots", layer_source.buffers)):
        n_bytes = sum(buffer.nbytes for buffer in buffers)
        assert n_bytes - 4096 * len(buffers) <= part(p, name) <= n_bytes  # whole pages, for reads past the cache
    assert part(p, "scratch") == sum(value.nbytes for value in layer_source.scratch.values())


@pytest.mark.parametrize("named", [None, "bfloat16", "float32"])
@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16"])
def test_formats_are_those_of_gs_load(stored: str, named: str | None, tmp_path: Path) -> None:
    checkpoint("lg").to(getattr(torch, stored)).save_pretrained(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config | ({"dtype": named} if named else {})))
    for source in (tmp_path / "source", gs.quantize(tmp_path / "source", tmp_path / "int8")):
        model, p = gs.load(source, memory="100MB"), plan(source, memory="100MB")
        layer_source: Any = model.network.layer_source
        assert p.formats.dtype == model.dtype
        assert part(p, "layers that stay") == sum(packed.n_bytes for packed in layer_source.packed)
        assert part(p, "scratch") == sum(value.nbytes for value in layer_source.scratch.values())
        assert part(p, "embedding") == model.network.model.embed_tokens.weight.nbytes
        assert plan(model, memory="100MB").parts == p.parts


def test_a_model_in_memory_is_a_source(tmp_path: Path) -> None:
    theirs = checkpoint("lg")
    model = model_of(theirs)
    theirs.save_pretrained(tmp_path / "source")
    int8 = gs.load(gs.quantize(tmp_path / "source", tmp_path / "int8"))
    assert plan(theirs).total == plan(model).total
    assert (plan(model).weights, plan(int8).weights) == ("float32", "int8")
    assert plan(int8).total == plan(model, weights="int8").total


def test_weights_are_read_as_they_are_named() -> None:
    assert plan("2b", weights="bf16").parts == plan("2b", weights="bfloat16").parts == plan("2b").parts
    assert weight_bytes(plan("2b", weights="float32")) == 2 * weight_bytes(plan("2b"))
    assert plan("2b", weights="int8", dtype="float32").formats.dtype == torch.float32


# -- bad input --


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("gemma-4-27b", {}, gs.errors.CheckpointError, "Did you mean 'google/gemma-2-27b'"),
        ("google/gemma-7b", {}, gs.errors.CheckpointError, "By its name it is Gemma 1, another architecture"),
        ("paligemma2-3b-pt-224", {}, gs.errors.CheckpointError, "By its name it is PaliGemma, another architecture"),
        ("google/gemma-2-28b", {}, gs.errors.CheckpointError, "Did you mean"),
        ("someone/else", {}, gs.errors.CheckpointError, "give the folder of its config.json"),
        (3, {}, gs.errors.CheckpointError, "cannot plan for a int; Known without a network are"),
        ("", {}, gs.errors.CheckpointError, "no folder that exists"),
        ("27b", {"weights": "int4"}, gs.errors.DeviceError, "4 bits are not offered"),
        ("27b", {"weights": "fp8"}, gs.errors.DeviceError, "give 'auto' for what is stored, 'int8', 'bf16'"),
        ("27b", {"weights": 8}, gs.errors.DeviceError, "weights=8 is not offered"),
        ("27b", {"dtype": "float16"}, gs.errors.DeviceError, "float16"),
        ("27b", {"device": "cuda:99"}, gs.errors.DeviceError, "'cuda:99' was asked for"),
        ("27b", {"context": 8193}, gs.errors.BudgetError, "at most 8,192 positions"),
        ("27b", {"context": 0}, gs.errors.BudgetError, "context is a whole number from 1"),
        ("27b", {"context": 1.5}, gs.errors.BudgetError, "context is a whole number from 1"),
        ("27b", {"rows": -1}, gs.errors.BudgetError, "rows is a whole number from 1"),
        ("27b", {"memory": "much"}, gs.errors.BudgetError, "memory is a number of bytes or a text"),
        ("27b", {"memory": "1GiB"}, gs.errors.BudgetError, "is too little: this model needs"),
    ],
)
def test_bad_arguments_are_refused(source: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        plan(source, **options)
    assert message in str(caught.value)


def test_a_store_is_no_source_of_bfloat16(tmp_path: Path) -> None:
    checkpoint("lg").save_pretrained(tmp_path / "source")
    store = gs.quantize(tmp_path / "source", tmp_path / "int8")
    with pytest.raises(gs.errors.DeviceError, match="holds int8 weights"):
        plan(store, weights="bf16")


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(gs.errors.BudgetError, match=r"no card that is known.*RTX 4090"):
        plan("2b").fits("Voodoo 2")
    assert plan("2b").fits("rtx4090").card.name == "RTX 4090 24 GB"
    assert plan("2b").fits("A100").card.name == "A100 40 GB"  # of several, the smallest
    assert plan("2b").fits("24GB").card.n_bytes == 24 * 10**9
    assert not plan("27b").fits("8GB")


# -- how it shows itself --


def test_the_text_has_a_line_for_every_part_task_and_card() -> None:
    p = plan("google/gemma-2-27b", weights="int8", memory="20GiB", context=4096)
    lines = repr(p).splitlines()
    assert lines[0] == (
        "Plan of google/gemma-2-27b: int8 weights, computed in bfloat16, 4,096 positions, memory of 21.47 GB"
    )
    for one in p.parts:
        assert sum(line.startswith(f"  {one.name}  ") for line in lines) == 1, one.name
    assert "  embedding          2.36 GB  256,000 tokens, also the unembedding" in lines
    assert f"{len(p.kept)} layers stay, {len(p.streamed)} stream: a pass brings {p.moved / 1e9:.2f} GB" in repr(p)
    assert sum(line.startswith("  RTX 4090 24 GB  streams: ") for line in lines) == 1
    assert len([line for line in lines if any(line.startswith(f"  {card.name}") for card in CARDS)]) == len(CARDS)
    assert max(map(len, lines)) <= 125


def test_the_sentence_says_whether_it_fits_and_what_to_do() -> None:
    assert "It fits: " in repr(plan("2b", memory="80GB"))
    over = plan("27b", weights="int8", memory="24GiB")
    assert "It does not fit: " in repr(over)
    budget = repr(over).split("(memory='")[1].split("'")[0]
    better = plan("27b", weights="int8", memory=budget)
    assert better.total <= parse_bytes("24GiB")
    assert f"{len(better.kept)} layers stay" in repr(over)
    assert "take int8 weights, a shorter context, or a larger device" in repr(plan("27b", memory="7GB"))


def test_rows_of_the_call_are_planned_for() -> None:
    planned = plan("2b", context=16, memory="12GB", rows=10**7)
    assert planned.total == planned.peaks["sweep"] > plan("2b", context=16, memory="12GB").total
    assert "It does not fit" in repr(planned)


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_html_holds_the_text_of_the_plan_and_escapes_a_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PRESETS["2b"].to_dict()))
    known = rates.Rates(str(folder), read=1.0, copy=1.0, dequantise=1.0, prompt=1.0, chunk=1.0)
    p = dataclasses.replace(plan(folder), rates=known)
    html = p._repr_html_()
    page = Page(html)
    assert page.tags == {"div", "style", "b", "table", "tr", "th", "td"}
    assert "http" not in html
    text = "".join(page.text)
    for one in p.parts:
        assert one.name in text
        assert one.note in text
    for task in ("a trace", "generating", "a sweep"):
        assert f"{task}{p.peaks['generate' if task == 'generating' else task[2:]] / 1e9:.2f} GB" in text
    assert text.count("<img src=x onerror=alert(1)>") == 2  # the name, and where the disk was measured
    assert "<img" not in html


def test_the_data_is_json_with_the_plans_numbers() -> None:
    p = plan("27b", weights="int8", memory="20GiB")
    data = json.loads(json.dumps(p.to_dict()))
    assert data["total"] == p.total
    assert data["layers_kept"] + data["layers_streamed"] != []
    assert sum(one["bytes"] for one in data["parts"] if "trace" in one["tasks"]) == data["peaks"]["trace"]
    assert data["fits"] is False
    assert [one["card"] for one in data["cards"]] == [card.name for card in CARDS]
    assert data["seconds"] is None


# -- rates --


def test_a_probe_gives_rates_and_from_them_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SAMPLE", 2**24)
    checkpoint("lglg", hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "m")
    before = sorted(tmp_path.rglob("*"))
    p = plan(tmp_path / "m", weights="int8", context=32, rows=64, memory="200MB", device="cpu", probe=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert p.rates is not None
    assert p.seconds is not None
    assert p.rates.folder == str(tmp_path / "m")
    assert p.rates.copy is None
    assert min(p.rates.read, p.rates.dequantise or 0, p.rates.prompt, p.rates.chunk, *p.seconds.values()) > 0
    assert "Measured here: " in repr(p)
    assert json.loads(json.dumps(p.to_dict()))["seconds"]["trace"] > 0


def test_seconds_are_the_longer_of_moving_and_computing() -> None:
    c = PRESETS["27b"]
    known = rates.Rates("", read=2e9, copy=None, dequantise=2.7e9, prompt=2e12, chunk=2e12)
    p = dataclasses.replace(plan("27b", weights="int8", context=16, rows=11776, memory="8GB", device="cpu"), rates=known)
    assert p.seconds is not None
    assert p.moved > 24 * 10**9
    assert p.seconds["trace"] == pytest.approx(p.moved / 2e9)
    layers = c.n_params - c.vocab_size * c.d_model
    assert p.seconds["sweep"] == pytest.approx(2 * 11776 * layers / 2e12 + layers / 2.7e9, rel=1e-3)


def test_from_host_memory_only_what_it_does_not_hold_is_read() -> None:
    known = rates.Rates("", read=2e9, copy=20e9, dequantise=None, prompt=1.0, chunk=1.0)
    assert known.moving(40 * 10**9, from_host=40 * 10**9) == pytest.approx(2)
    assert known.moving(40 * 10**9, from_host=30 * 10**9) == pytest.approx(5)


def test_a_disk_without_enough_room_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SAMPLE", 2**62)
    with pytest.raises(gs.errors.BudgetError, match="plan without probe=True"):
        plan("nano", probe=True, device="cpu")
