"""Jacobian lenses: the fit beside autograd on transformers' models, resuming, stopping, files, reading and steering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model_of
from torch import Tensor
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM

import gemmascope as gs
from gemmascope.circuits.jacobian import backward, fit
from gemmascope.circuits.jacobian.load import NANO
from gemmascope.errors import GemmascopeWarning, LensError, PromptError, SiteError
from gemmascope.nano.training.fit_jacobian_lens import divergence

Source = Gemma2ForCausalLM | Gemma3ForCausalLM


def random_ids(n: int, seed: int) -> list[int]:
    return torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


TEXTS = [random_ids(n, n) for n in (11, 9, 17, 3, 12)]  # beyond the window of 4; one is too short for skip_first=2


def expected(source: Source, ids: Sequence[int], skip_first: int) -> dict[int, Tensor]:
    """The Jacobians of a text by autograd through transformers' whole model, one coordinate at a time."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in source.model.layers
    ]
    source(torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    used = slice(skip_first, len(ids) - 1)
    rows = [torch.autograd.grad(outputs[-1][0, used, i].sum(), outputs[:-1], retain_graph=True) for i in range(32)]
    return {layer: torch.stack([row[layer][0, used].mean(0) for row in rows]) for layer in range(len(outputs) - 1)}


def with_gradients(source: Source) -> Source:
    for parameter in source.parameters():
        parameter.requires_grad_()
    return source


@pytest.mark.parametrize("make", [checkpoint, checkpoint_3], ids=["Gemma 2", "Gemma 3"])
@pytest.mark.parametrize("state_bytes", [2**29, 11 * 32 * 4 * 5], ids=["at once", "in chunks"])
def test_a_fit_is_the_mean_of_autograds_jacobians(
    make: Callable[..., Source], state_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "STATE_BYTES", state_bytes)
    monkeypatch.setattr(backward, "MICROBATCH_ROWS", 70)
    source = make("lgl", seed=3)
    lens = gs.fit_jacobian_lens(model_of(source), TEXTS, skip_first=2, max_length=12, tolerance=0, progress=False)
    each = [expected(with_gradients(source), ids[:12], 2) for ids in TEXTS if len(ids) > 3]
    assert (lens.layers, lens.n_texts, len(lens.changes)) == ((0, 1), 4, 3)
    for layer in lens.layers:
        mean = torch.stack([one[layer] for one in each]).mean(0)
        assert torch.allclose(lens.matrices[layer], mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))
        assert not torch.allclose(mean, each[0][layer], rtol=1e-2)


def test_a_layer_alone_is_as_in_the_whole_fit() -> None:
    model = model_of(checkpoint("lglg"))
    whole, one = (
        gs.fit_jacobian_lens(model, TEXTS[:2], skip_first=2, layers=layers, progress=False) for layers in (None, [1])
    )
    assert one.layers == (1,)
    assert torch.equal(one.matrices[1], whole.matrices[1])


def test_streamed_int8_weights_fit_as_resident_ones_do(tmp_path: Path) -> None:
    source = checkpoint("lgl")
    source.save_pretrained(tmp_path)
    models = [gs.load(tmp_path, weights="int8", **more) for more in ({}, {"memory": 2_800_000})]
    assert models[1].network.layer_source is not None  # no layer fits beside the rows
    lenses = [gs.fit_jacobian_lens(model, TEXTS[:2], skip_first=2, progress=False) for model in models]
    for layer, matrix in lenses[0].matrices.items():
        assert torch.allclose(matrix, lenses[1].matrices[layer], rtol=1e-4, atol=1e-5)


# -- the run: when it ends, and how it goes on --


def test_the_fit_ends_when_a_text_changes_the_mean_by_less_than_the_tolerance() -> None:
    model, same = model_of(checkpoint("lg")), [random_ids(9, 1)] * 40
    assert gs.fit_jacobian_lens(model, same, skip_first=2, progress=False).n_texts == fit.LEAST_TEXTS
    assert gs.fit_jacobian_lens(model, same, skip_first=2, tolerance=0, max_texts=12, progress=False).n_texts == 12
    other = [random_ids(9, seed) for seed in range(40)]
    lens = gs.fit_jacobian_lens(model, other, skip_first=2, tolerance=0.05, progress=False)
    assert fit.LEAST_TEXTS <= lens.n_texts < 40
    assert lens.changes[-1] < 0.05
    assert all(change >= 0.05 for change in lens.changes[fit.LEAST_TEXTS - 1 : -1])


def test_a_stopped_fit_goes_on_to_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    model, path = model_of(checkpoint("lgl")), tmp_path / "run.safetensors"
    straight = gs.fit_jacobian_lens(model, TEXTS, skip_first=2, tolerance=0, progress=False)

    def broken_off():  # type: ignore[no-untyped-def]
        yield from TEXTS[:2]
        raise KeyboardInterrupt

    with pytest.warns(GemmascopeWarning, match=r"interrupted: the lens is the mean over 2 texts. A second call"):
        stopped = gs.fit_jacobian_lens(model, broken_off(), skip_first=2, tolerance=0, out=path, progress=False)
    assert (stopped.n_texts, gs.load_jacobian_lens(path).n_texts) == (2, 2)
    resumed = gs.fit_jacobian_lens(model, iter(TEXTS), skip_first=2, tolerance=0, out=path, progress=False)
    assert (resumed.n_texts, resumed.changes) == (straight.n_texts, straight.changes)
    for layer, matrix in straight.matrices.items():
        assert torch.equal(matrix, resumed.matrices[layer])
        assert torch.equal(matrix, gs.load_jacobian_lens(path).matrices[layer])


def test_a_file_of_another_fit_is_refused(tmp_path: Path) -> None:
    model, path = model_of(checkpoint("lgl")), tmp_path / "run.safetensors"
    lens = gs.fit_jacobian_lens(model, TEXTS[:2], skip_first=2, out=path, progress=False)

    def again(**changed: object) -> None:
        arguments = {"model": model, "texts": TEXTS, "skip_first": 2, "out": path, "progress": False, **changed}
        gs.fit_jacobian_lens(**arguments)  # type: ignore[arg-type]

    with pytest.raises(LensError, match=r"holds a fit of .*skip_first=2.*skip_first=3"):
        again(skip_first=3)
    with pytest.raises(LensError, match="holds a fit of"):
        again(model=model_of(checkpoint("lgl", seed=1)))
    with pytest.raises(LensError, match="over other texts"):
        again(texts=TEXTS[::-1])
    lens.save(tmp_path / "saved.safetensors")
    with pytest.raises(LensError, match="is a finished lens"):
        again(out=tmp_path / "saved.safetensors")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"texts": "Mary went"}, LensError, "texts is a list"),
        ({"texts": []}, LensError, "none of the 0 texts"),
        ({"texts": [[5, 6, 7]]}, LensError, "a text needs 18 tokens at least"),
        ({"texts": [[5] * 20, [999]]}, PromptError, "text 1: token id 999"),
        ({"layers": [1]}, LensError, "some of 0 to 0: the last one, 1"),
        ({"layers": []}, LensError, "some of 0 to 0"),
        ({"max_length": 10}, LensError, "max_length"),
        ({"tolerance": -1.0}, LensError, "tolerance is 0 or more"),
        ({"out": "lens.pt"}, LensError, "ends in .safetensors"),
        ({"model": model_of(checkpoint("l"))}, LensError, "has one layer"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], error: type[Exception], match: str) -> None:
    given = {"model": model_of(checkpoint("lg")), "texts": [[5] * 20], "progress": False, **arguments}
    with pytest.raises(error, match=match):
        gs.fit_jacobian_lens(**given)  # type: ignore[arg-type]


def test_a_model_with_edits_of_its_own_is_refused() -> None:
    model = model_of(checkpoint("lg")).edited([gs.ablate("mlp_out", layer=0)])
    with pytest.raises(LensError, match="has edits of its own"):
        gs.fit_jacobian_lens(model, TEXTS)


# -- files --


def published(path: Path, **changed: object) -> Path:
    matrices = {layer: torch.eye(32).half() * (layer + 1) for layer in range(2)}
    torch.save({"J": matrices, "n_prompts": 7, "source_layers": [0, 1], "d_model": 32, **changed}, path)
    return path


def test_a_published_file_is_read_as_data(tmp_path: Path) -> None:
    lens = gs.load_jacobian_lens(published(tmp_path / "x.pt"))
    assert (lens.layers, lens.n_texts, lens.d_model, lens.model) == ((0, 1), 7, 32, None)
    assert torch.equal(lens.matrices[1], 2 * torch.eye(32))
    lens.require_fit(model_of(checkpoint("lgl")))
    with pytest.raises(LensError, match=r"with d_model 32 and layers up to 1; given 'nano'"):
        lens.require_fit(gs.load())


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code ran",)


def test_files_that_are_no_lens_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.pt"
    torch.save({"J": Evil()}, bad)
    with pytest.raises(LensError, match="could run code: it is not read"):
        gs.load_jacobian_lens(bad)
    assert "code ran" not in capsys.readouterr().out
    torch.save({"jacobian_sum": {}, "n_done": 3}, bad)
    with pytest.raises(LensError, match="state of a run that was not finished"):
        gs.load_jacobian_lens(bad)
    for changed, match in (
        ({"J": {0: torch.eye(3), 1: torch.eye(4)}}, "says d_model 32"),
        ({"J": {0: torch.ones(2, 3)}, "d_model": None}, "square matrices"),
        ({"J": {}}, "it has none"),
        ({"J": {-1: torch.eye(32)}}, "counted from 0"),
        ({"J": {0: [1.0]}}, "no tensor of numbers"),
        ({"J": {0: torch.full((32, 32), float("nan"))}}, "NaN or infinity"),
        ({"n_prompts": 0}, "n_prompts"),
    ):
        with pytest.raises(LensError, match=match):
            gs.load_jacobian_lens(published(bad, **changed))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"\x00" * 40)
    with pytest.raises(LensError, match="no safetensors file that can be read"):
        gs.load_jacobian_lens(other)
    with pytest.raises(LensError, match="no file or folder that exists"):
        gs.load_jacobian_lens(tmp_path / "nothing.pt")


def test_a_lens_comes_back_from_its_file(tmp_path: Path) -> None:
    model = model_of(checkpoint("lgl"))
    lens = gs.fit_jacobian_lens(model, TEXTS[:3], skip_first=2, progress=False)
    for dtype in ("float32", "float16"):
        lens.save(tmp_path / dtype, dtype=dtype)
        again = gs.load_jacobian_lens(tmp_path / dtype, model=model)
        assert (again.n_texts, again.changes, again.settings) == (lens.n_texts, lens.changes, lens.settings)
        for layer, matrix in lens.matrices.items():
            assert torch.equal(again.matrices[layer], matrix.to(getattr(torch, dtype)).float())
    with pytest.raises(LensError, match=r"whose weights or dtype differ .*any_model=True"):
        again.require_fit(model_of(checkpoint("lgl", seed=1)))
    gs.load_jacobian_lens(tmp_path / "float16", any_model=True).require_fit(model_of(checkpoint("lgl", seed=1)))
    with pytest.raises(LensError, match="'float16' or 'float32'"):
        lens.save(tmp_path / "x", dtype="bfloat16")


def test_a_folder_of_several_is_chosen_from_by_the_models_name(tmp_path: Path) -> None:
    for name in ("gemma-2-2b", "gemma-2-2b-it"):
        (tmp_path / name).mkdir()
        published(tmp_path / name / "lens.pt", n_prompts=len(name))
    with pytest.raises(LensError, match=r"2 lenses that fit; say which, by file=; it has 'gemma-2-2b-it/lens.pt'"):
        gs.load_jacobian_lens(tmp_path)
    assert gs.load_jacobian_lens(tmp_path, "gemma-2-2b/lens.pt").n_texts == 10
    model = model_of(checkpoint("lgl"))
    model.name = "google/gemma-2-2b"
    assert gs.load_jacobian_lens(tmp_path, model=model).n_texts == 10
    with pytest.raises(LensError, match=r"has no lens 'x'; it has"):
        gs.load_jacobian_lens(tmp_path, "x")


# -- reading and steering --


def test_reading_is_the_unembedding_of_carried_rows() -> None:
    model = model_of(checkpoint("lgl"))
    lens = gs.fit_jacobian_lens(model, TEXTS[:3], skip_first=2, progress=False)
    trace = gs.trace(TEXTS[0], model=model)
    reading = gs.jacobian_lens(trace, lens, top=3, answer=7)
    assert isinstance(reading, gs.Lens)
    for layer in range(3):
        rows = trace["resid_post", layer]
        carried = rows if layer == 2 else (lens.matrices[layer] @ rows.T).T
        logits = model.network.unembed(carried)
        assert torch.allclose(reading.followed[0][layer], logits[:, 7], rtol=1e-4, atol=1e-4)
        assert torch.equal(reading.ids[layer], logits.topk(3).indices)
        assert torch.allclose(torch.from_numpy(reading.logits(4).values[layer]), logits[4], rtol=1e-4, atol=1e-4)
    assert torch.allclose(reading.followed[0][2], trace.logits[:, 7])
    assert torch.equal(reading.follow(9).followed[0], gs.jacobian_lens(trace, lens, answer=9).followed[0])
    assert repr(reading).startswith("Jacobian lens on resid_post")
    assert reading.plot().layout.title.text.startswith("Jacobian lens on resid_post")
    some = gs.fit_jacobian_lens(model, TEXTS[:3], skip_first=2, layers=[1], progress=False)
    assert gs.jacobian_lens(trace, some).entropy["layer"].values.tolist() == [1, 2]


def test_runs_are_compared_and_averaged_through_the_lens() -> None:
    model = model_of(checkpoint("lgl"))
    lens = gs.fit_jacobian_lens(model, TEXTS[:3], skip_first=2, progress=False)
    traces = gs.trace([random_ids(9, 5), random_ids(9, 6)], model=model)
    difference = gs.jacobian_lens(traces[0], lens, against=traces[1])
    logits = [gs.jacobian_lens(trace, lens).logits(-1).values[0] for trace in traces]
    largest = (logits[0] - logits[1]).max()
    assert abs(float(difference.differences[0, -1, 0]) - largest) <= 1e-4
    assert "difference of Jacobian lenses on resid_post" in repr(difference)
    mean = gs.jacobian_lens(list(traces), lens, pos=-1)
    each = [gs.jacobian_lens(trace, lens, pos=-1).entropy.values for trace in traces]
    assert abs(mean.mean["entropy"].values - sum(each) / 2).max() <= 1e-6


def test_a_direction_is_the_gradient_of_the_tokens_logit() -> None:
    model = model_of(checkpoint("lgl"))
    lens = gs.fit_jacobian_lens(model, TEXTS[:3], skip_first=2, progress=False)
    trace = gs.trace(TEXTS[0], model=model)
    h = trace["resid_post", 0][5].clone().requires_grad_()
    carried = lens.matrices[0] @ h
    norm = model.network.model.norm
    scale = (carried.detach().square().mean() + model.config.norm_eps).rsqrt()
    logit = (carried * scale * (1 + norm.weight)) @ model.W_U[:, 7]
    (grad,) = torch.autograd.grad(logit, h)
    vector = lens.direction(7, 0, model=model)
    assert torch.allclose(vector, grad / grad.norm(), atol=1e-5)
    with pytest.raises(LensError, match="no matrix of layer 2; it has those of 0 to 1"):
        lens.direction(7, 2, model=model)


def test_reading_needs_a_lens_that_fits() -> None:
    model = model_of(checkpoint("lgl"))
    trace = gs.trace(TEXTS[0], model=model)
    with pytest.raises(LensError, match="has no lens inside the package: give one"):
        gs.jacobian_lens(trace)
    with pytest.raises(LensError, match=r"lens is what gs\.fit_jacobian_lens"):
        gs.jacobian_lens(trace, 3)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="a lens reads a trace"):
        gs.jacobian_lens("Mary went")  # type: ignore[arg-type]
    lens = gs.fit_jacobian_lens(model, TEXTS[:2], skip_first=2, progress=False)
    with pytest.raises(LensError, match="weights or dtype differ"):
        gs.jacobian_lens(gs.trace(TEXTS[0], model=model_of(checkpoint("lgl", seed=1))), lens)


# -- nano's --


@pytest.mark.nano
def test_nanos_lens_is_nearer_to_the_answer_than_the_logit_lens_at_every_layer() -> None:
    lens, model = gs.load_jacobian_lens(), gs.load()
    assert NANO.stat().st_size < 200_000
    plain, carried = (divergence(one, model, "fresh", 40) for one in (None, lens))
    assert (lens.layers, lens.n_texts >= fit.LEAST_TEXTS, lens.changes[-1] < 2e-3) == ((0, 1, 2, 3, 4), True, True)
    assert (carried[:-1] < 0.95 * plain[:-1]).all()
    assert carried[-1] == plain[-1]
    with pytest.raises(LensError, match="weights or dtype differ"):
        lens.require_fit(gs.load(dtype="bfloat16"))


@pytest.mark.nano
@pytest.mark.parametrize("layer", range(5))
def test_a_direction_of_nanos_lens_steers(layer: int) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    edit = gs.add("resid_post", gs.load_jacobian_lens().direction(" John", layer), layer=layer, pos=-1, scale=16.0)
    assert gs.trace(prompt).top(1)[0][0] == " Mary"
    assert gs.trace(prompt, edits=[edit]).top(1)[0][0] == " John"


@pytest.mark.nano
def test_the_view_shows_what_the_lens_reads() -> None:
    trace = gs.trace("When Mary and John went to the store, John gave a drink to")
    view = gs.lens_view(trace, answer=" Mary", jacobian=gs.load_jacobian_lens())
    assert view.title == "Jacobian lens on resid_post in nano"
    reading = gs.jacobian_lens(trace, answer=" Mary")
    row = view.rows[-3][1]  # of layer 2: layer 0 stands at the bottom
    assert f"{float(reading.probs[2, -1, 0]):.4f}" in row
    assert f"{float(gs.lens(trace).probs[2, -1, 0]):.4f}" not in row
    with pytest.raises(SiteError, match="a Jacobian lens reads site='resid_post'"):
        gs.lens_view(trace, site="stream", jacobian=gs.load_jacobian_lens())
