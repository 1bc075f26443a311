"""Edits in files: what is read back is equal and writes the same bits; what a file cannot or should not hold is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, prompt
from random_dictionaries import arrays, dictionary, write

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import EditError, FileError, GemmascopeError, GemmascopeWarning, SiteError

N_POS, D_MODEL, D_HEAD, N_HEADS = 9, 32, 12, 8
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def drawn_pos(draw: random.Random) -> Any:
    places = [draw.randrange(-N_POS, N_POS), sorted(draw.sample(range(N_POS), draw.randrange(1, 5))), None]
    return draw.choice([*places, slice(draw.randrange(4), None, draw.choice([None, 1, 2])), range(2, 6), np.int64(3)])


def tensor(draw: random.Random, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(draw.choice(DTYPES))


def drawn_edit(draw: random.Random, saes: list[Any]) -> Edit:
    """One edit of a kind, at places and with numbers that chance decides."""
    layer, pos = draw.randrange(-3, 3), drawn_pos(draw)
    head = draw.choice([None, draw.randrange(N_HEADS), sorted(draw.sample(range(N_HEADS), 3))])
    vector = tensor(draw, D_MODEL)
    probe = gs.probe_above(tensor(draw, D_MODEL), draw.uniform(-1, 1))
    when = draw.choice([None, probe, gs.feature_on(saes[0], draw.randrange(40), draw.random())])
    at = {"layer": 1, "pos": pos, "when": when}
    return draw.choice([
        lambda: gs.patch("z", tensor(draw, D_HEAD), layer=layer, pos=pos, head=head),
        lambda: gs.patch("resid_post", vector, **at),
        lambda: gs.patch("embed", tensor(draw, N_POS, D_MODEL)),
        lambda: gs.ablate("z", layer=layer, pos=pos, head=head, value=draw.choice([0, 0.1, -1e-7, np.float32(0.3)])),
        lambda: gs.ablate("pattern", layer=layer, head=head, value=draw.random()),
        lambda: gs.ablate_direction("resid_post", vector, **at),
        lambda: gs.add("resid_post", vector, scale=draw.uniform(-2, 2), **at),
        lambda: gs.add("mlp_out", vector.numpy() if vector.dtype != torch.bfloat16 else vector, layer=layer, pos=pos),
        lambda: gs.scale("blocks.1.hook_attn_out", draw.random(), pos=pos),
        lambda: gs.scale("resid_post", draw.random(), **at),
        lambda: gs.knockout(layer=layer, head=head, q_pos=[4, 5], k_pos=draw.choice([2, [2, 3], slice(2, 4)])),
        lambda: gs.splice(draw.choice(saes), {draw.randrange(40): draw.random(), 3: -0.0}, pos=pos),
    ])()  # fmt: skip


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """A dictionary in a file."""
    file = write(tmp_path_factory.mktemp("saes"), arrays(D_MODEL))
    return [gs.load_sae(file, site="resid_post", layer=1, any_model=True)]


@pytest.mark.parametrize("seed", range(60))
def test_what_is_read_back_is_equal_and_writes_the_same_bits(seed: int, saes: list[Any], tmp_path: Path) -> None:
    draw, m = random.Random(seed), model("lgl")
    edits = [drawn_edit(draw, saes) for _ in range(draw.randrange(1, 4))]
    gs.save_edits(edits, tmp_path / "edits.json", model=m)
    opened = gs.open_edits(tmp_path / "edits.json", model=m)
    assert opened == edits
    assert [edit.digest() for edit in gs.open_edits(tmp_path / "edits.json")] == [edit.digest() for edit in opened]
    gs.save_edits(opened, tmp_path / "again.json", model=m)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "edits.json").read_bytes()
    runs = [gs.trace(prompt(N_POS, seed=seed), model=m, edits=each) for each in (edits, opened)]
    for written, read in zip(runs[0].residuals, runs[1].residuals, strict=True):
        assert torch.equal(written, read)
    assert torch.equal(runs[0].logits, runs[1].logits)


def test_two_edits_of_one_dictionary_share_it_when_they_are_read(tmp_path: Path) -> None:
    sae = gs.load_sae()
    edits = [gs.splice(sae, {887: 0.0}), gs.splice(sae, {3: 1.0})]
    gs.save_edits(edits, tmp_path / "e.json")
    opened = gs.open_edits(tmp_path / "e.json", model=gs.load())
    assert opened == edits
    assert torch.equal(*(gs.trace("Mary and John went", edits=each).logits for each in (edits, opened)))
    assert opened != [gs.splice(gs.load_sae(), {887: 0.0}), gs.splice(gs.load_sae("nano-transcoders", layer=2), {3: 1.0})]


def test_every_kind_is_drawn(saes: list[Any]) -> None:
    draw = random.Random(0)
    texts = [repr(drawn_edit(draw, saes)) for _ in range(300)]
    kinds = ("patch", "ablate", "ablate_direction", "add", "scale", "knockout", "splice")
    assert all(any(text.startswith(f"gs.{kind}(") for text in texts) for kind in kinds)
    assert all(any(f"when=gs.{kind}(" in text for text in texts) for kind in ("feature_on",))
    assert any("when=ProbeAbove(" in text for text in texts)


def test_what_the_error_about_a_mean_says_to_do_gives_the_same_bits(tmp_path: Path) -> None:
    m, heads = model("lgl"), [1, 5]
    traces = [gs.trace(prompt(n, seed=n), model=m) for n in (5, 9)]
    mean = gs.ablate("z", layer=2, head=heads, value="mean", reference=traces)
    with pytest.raises(EditError, match=r"gs.patch\('z', torch.cat\(\[t\['z', 2\]\[1:\] for t in traces\]\).mean\(0\)"):
        gs.save_edits([mean], tmp_path / "edits.json")
    values = torch.cat([t["z", 2][1:] for t in traces]).mean(0)[heads]
    gs.save_edits([gs.patch("z", values, layer=2, head=heads)], tmp_path / "edits.json")
    runs = [gs.trace(prompt(7), model=m, edits=e).logits for e in ([mean], gs.open_edits(tmp_path / "edits.json"))]
    assert torch.equal(*runs)


def test_small_tensors_are_lists_and_large_ones_keep_every_bit(tmp_path: Path) -> None:
    kept = [
        torch.tensor([0.1, -0.0, 1e-45, 3e38]),
        torch.arange(200),
        torch.zeros(3, 0),
        torch.tensor(True),
        torch.tensor(2),
    ]
    kept += [torch.full((65,), 1 / 3, dtype=dtype) for dtype in DTYPES]
    gs.save_edits([gs.patch("resid_post", one, layer=1) for one in kept], tmp_path / "edits.json")
    content = json.loads((tmp_path / "edits.json").read_text())
    assert content["edits"][0]["source"] == {"dtype": "float32", "values": kept[0].tolist()}
    assert content["edits"][1]["source"].keys() == {"dtype", "shape", "base64"}
    for before, after in zip(kept, gs.open_edits(tmp_path / "edits.json"), strict=True):
        source: torch.Tensor = after.source  # type: ignore[attr-defined]
        assert source.dtype == before.dtype
        assert source.shape == before.shape
        assert (
            source.numpy(force=True).tobytes() == before.numpy(force=True).tobytes() if before.dtype != DTYPES[2] else True
        )


def big(rows: torch.Tensor) -> torch.Tensor:
    return rows[:, 0] > 0


UNSAVED: list[tuple[Callable[[], Any], str]] = [
    (lambda: gs.edit("z", torch.tanh, layer=1), "holds a function, 'tanh', and a file holds no code"),
    (lambda: gs.scale("resid_post", 0.5, layer=1, when=big), "its condition, 'big', is a function"),
    (lambda: gs.patch("z", gs.trace(prompt(4), model=model()), layer=1), "its source is a trace: take its values"),
    (lambda: gs.patch("z", "x", layer=1), "its source is a str, not a tensor"),  # type: ignore[arg-type]
    (lambda: gs.splice(dictionary(32, "resid_post", 1), {1: 1.0}), "was not loaded by its name"),
    (lambda: gs.scale("z", float("nan"), layer=1), "factor is a finite number"),
    (lambda: gs.patch("z", torch.tensor([1.0, torch.inf]), layer=1), "the source holds NaN or infinity"),
    (lambda: gs.patch("z", torch.ones(2, dtype=torch.complex64), layer=1), "holds real numbers"),
    (lambda: gs.scale("y", 1.0, layer=1), "unknown site|no site"),
    (lambda: gs.scale("z", 1.0, layer=1, pos=10**5000), "pos is a whole number"),
    (lambda: gs.scale("z", 1.0, layer=1, pos={}), "pos is a number, a list"),  # type: ignore[arg-type]
    (lambda: gs.scale("z", 1.0, layer=1, head="all"), "head is a number, a list"),  # type: ignore[arg-type]
    (lambda: gs.scale("z", 1.0, layer=1.5), "layer is a whole number"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "why"), UNSAVED)
def test_what_a_file_cannot_hold_is_refused_with_its_reason(make: Callable[[], Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(EditError, match=r"(?s)edit 1 of the list, .*cannot be saved: .*(" + why + ")"):
        gs.save_edits([gs.scale("z", 1.0, layer=0), make()], tmp_path / "edits.json")
    assert not (tmp_path / "edits.json").exists()


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="edits is a list of edits"):
        gs.save_edits(gs.scale("z", 1.0, layer=0), tmp_path / "e.json")  # type: ignore[arg-type]
    with pytest.raises(EditError, match=r"model is what gs\.load returns; given 'nano'"):
        gs.save_edits([], tmp_path / "e.json", model="nano")  # type: ignore[arg-type]
    with pytest.raises(EditError, match=r"model is what gs\.load returns; given 3"):
        gs.open_edits("e", model=3)  # type: ignore[arg-type]
    with pytest.raises(FileError, match=r"cannot write"):
        gs.save_edits([], tmp_path / "no" / "e.json")
    with pytest.raises(EditError, match="cannot be read"):
        gs.open_edits(tmp_path / "none.json")


SCALE = {"edit": "scale", "site": "z", "layer": 1, "factor": 0.5}
PATCH = {"edit": "patch", "site": "z", "layer": 1}
HUGE = "9" * 6000


def of_edits(*edits: Any, **more: Any) -> str:
    return json.dumps({"format": "gemmascope.edits.1", "edits": list(edits), **more})


def source(**tensor: Any) -> str:
    return of_edits({**PATCH, "source": tensor})


BAD: list[tuple[str, str]] = [
    ("{", "cannot be read as JSON"),
    ("[]", "not an object"),
    ("[" * 100_000, "nested too deeply"),
    (of_edits({**SCALE, "pos": [[[[1]]]]}), "edit 0: pos is a whole number"),
    ('{"format": "gemmascope.edits.1", "format": "x"}', "names 'format' twice"),
    ("{}", "holds no edits: format is None"),
    ('{"format": "gemmascope.patching-lab.1"}', "holds no edits"),
    ('{"format": "gemmascope.edits.2", "edits": []}', "is of version '2' of gemmascope.edits, and this gemmascope reads 1"),
    ('{"format": "gemmascope.edits.1"}', "edits is a list of objects; given None"),
    (of_edits(code="x"), "has no field 'code'"),
    (of_edits(model={"name": 3, "fingerprint": "x"}), "model has a name and a fingerprint"),
    (of_edits(model=[]), "model is an object"),
    (of_edits(SCALE, 3), "edit 1: an edit is an object; given 3"),
    (of_edits({**SCALE, "edit": "scales"}), "no kind of edit 'scales'.*Did you mean.*scale"),
    (of_edits({**SCALE, "edit": ["scale"]}), "no kind of edit"),
    (of_edits({**SCALE, "fn": "torch.tanh"}), "has no field 'fn'; its fields are edit, site, layer"),
    (of_edits({"edit": "scale", "site": "z", "layer": 1}), "has no factor, and needs one"),
    (of_edits({**SCALE, "factor": "1"}), "factor is a finite number"),
    (of_edits(SCALE).replace("0.5", "1e999"), "too large for a number"),
    (of_edits(SCALE).replace("0.5", "NaN"), "is no number of JSON"),
    (of_edits(SCALE).replace("0.5", "9" * 400), "factor is a finite number"),
    (of_edits(SCALE).replace("0.5", HUGE), "cannot be read as JSON"),
    (of_edits({**SCALE, "layer": True}), "layer is a whole number"),
    (of_edits({**SCALE, "layer": 2**60}), "layer is a whole number"),
    (of_edits({**SCALE, "site": "zz"}), "zz"),
    (of_edits({**SCALE, "site": 3}), "site is a text"),
    (of_edits({**SCALE, "pos": {"start": 1, "end": 3}}), "is a slice, of start, stop and step; given 'end'"),
    (of_edits({**SCALE, "pos": 1.5}), "pos is a whole number"),
    (of_edits({**SCALE, "head": "x"}), "head is a whole number"),
    (of_edits({**SCALE, "when": {"condition": "exec"}}), "'feature_on' or 'probe_above'"),
    (of_edits({**SCALE, "when": {"condition": "probe_above", "vector": {"values": [[1.0]]}}}), "a probe is a vector"),
    (of_edits({**SCALE, "when": {"condition": "feature_on", "feature": 1}}), "dictionary is an object"),
    (of_edits({"edit": "knockout", "site": "z", "layer": 1}), "has no field 'site'"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano", "layer": 3, "code": 1}}), "has no field 'code'"),
    (of_edits({"edit": "splice", "dictionary": {"source": 3}}), "dictionary's source is an argument of gs.load_sae"),
    (of_edits({"edit": "splice", "dictionary": {"layer": 3}}), "has no source"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano", "layer": True}}), "dictionary's layer"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano", "fingerprint": "x"}}), "its numbers are others"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano"}, "features": {"1e3": 1}}), "a feature is a whole number"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano"}, "features": {"3": 0, "03": 1}}), "without zeros"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano"}, "features": {"9999": 1}}), "9999"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano"}, "features": [1]}), "features is an object"),
    (of_edits({"edit": "splice", "dictionary": {"source": "nano"}, "keep_error": 1}), "keep_error is True or False"),
    (of_edits(PATCH), "has no source, and needs one"),
    (of_edits({**PATCH, "source": [1, 2]}), "the source is an object of dtype and values"),
    (source(dtype="float9", values=[1]), "the dtype of the source is one of float64"),
    (source(values=[]), "an empty list"),
    (source(values=[1, [2]]), "side by side"),
    (source(values=[[1, 2], [3]]), "no tensor of float32"),
    (source(values=[1, "2"]), "numbers of float32; given '2'"),
    (source(dtype="int64", values=[1.5]), "numbers of int64; given 1.5"),
    (source(dtype="uint8", values=[300]), "no tensor of uint8"),
    (source(dtype="bool", values=[1]), "numbers of bool; given 1"),
    (source(values=[1e39]), "too large for torch.float32"),
    (source(values=[[[[[[[[[1]]]]]]]]]), "more than 8 axes"),
    (source(values=[1], shape=[1]), "dtype and values, or dtype, shape and base64"),
    (source(dtype="float32", shape=[2], base64="AAAA"), "holds 3 bytes, and its dtype and shape take 8"),
    (source(dtype="float32", shape=[2**39, 2**39], base64="AAAA"), "holds 3 bytes"),
    (source(dtype="float32", shape=[2**39] * 7 + [0], base64=""), "the shape of the source is too large"),
    (source(dtype="float32", shape=[-1], base64=""), "a list of up to 8 sizes"),
    (source(dtype="float32", shape=2, base64=""), "a list of up to 8 sizes"),
    (source(dtype="float32", shape=[1], base64="*AAA"), "base64 of the source is damaged"),
    (source(dtype="float32", shape=[1], base64="AADAfw=="), "holds NaN or infinity"),
    (source(dtype="bool", shape=[1], base64="Ag=="), "a bool is 0 or 1"),
    (source(dtype="float32", shape=[1], base64=3), "base64 of the source is a text"),
]


@pytest.mark.parametrize(("text", "why"), BAD, ids=range(len(BAD)))
def test_a_damaged_or_hostile_file_is_refused_by_name(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "edits.json").write_text(text)
    with pytest.raises(EditError, match=r"(?s)edits\.json.*(" + why + ")"):
        gs.open_edits(tmp_path / "edits.json")


def test_a_file_by_hand_is_read(tmp_path: Path) -> None:
    patch = {"edit": "patch", "site": "z", "layer": 2, "head": 3, "source": {"values": [0.5] * 12}}
    (tmp_path / "e.json").write_text(of_edits({**SCALE, "pos": " Mary"}, patch, {**SCALE, "pos": {"start": 1}}))
    expected = [
        gs.scale("z", 0.5, layer=1, pos=" Mary"),
        gs.patch("z", torch.full((12,), 0.5), layer=2, head=3),
        gs.scale("z", 0.5, layer=1, pos=slice(1, None)),
    ]
    assert gs.open_edits(tmp_path / "e.json") == expected


def test_random_damage_is_an_error_or_other_edits_and_nothing_else(saes: list[Any], tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "e.json"
    gs.save_edits([drawn_edit(draw, saes) for _ in range(12)], path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(damaged))
            damaged[at : at + draw.randrange(3)] = bytes([draw.randrange(256)])
        path.write_bytes(damaged)
        try:
            gs.open_edits(path)
        except GemmascopeError:
            refused += 1
    assert refused > 30


def test_opening_for_another_model_warns_and_checks_the_places(tmp_path: Path) -> None:
    path, m = tmp_path / "e.json", model("lgl")
    gs.save_edits([gs.scale("z", 0.5, layer=2)], path, model=m)
    assert len(gs.open_edits(path, model=m)) == 1
    with (
        pytest.warns(GemmascopeWarning, match=r"were saved for .*fingerprint.*and this is"),
        pytest.raises(SiteError, match=r"e\.json, edit 0: there is no layer 2"),
    ):
        gs.open_edits(path, model=model("lg"))
