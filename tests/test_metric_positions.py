"""Metrics that read chosen positions: against transformers and loops of single runs, in traces, sweeps and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import worded
from reference import error
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Gemma2ForCausalLM

import gemmascope as gs
from gemmascope.errors import GemmascopeError, MetricError, SiteError
from gemmascope.model.gemma2 import Gemma2, Layer
from gemmascope.model.model import Model
from gemmascope.run import bound_metric as bound_module

pytestmark = pytest.mark.filterwarnings("ignore:.*every effect is 0.*:gemmascope.GemmascopeWarning")

CLOSE = 1e-5
N_POS = 9
KINDS = ["lgl", "gl", "l"]


@cache
def checkpoint_of(kinds: str) -> Gemma2ForCausalLM:
    return checkpoint(kinds)


@cache
def model(kinds: str = "lgl") -> Model:
    return model_of(checkpoint_of(kinds))


def theirs(ids: list[int], kinds: str = "lgl") -> Tensor:
    """The logits of transformers, [pos, vocab]."""
    with torch.no_grad():
        logits: Tensor = checkpoint_of(kinds)(torch.tensor([ids])).logits[0]
    return logits


def entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1)


def middle(logits: Tensor) -> Tensor:
    """A function of logits [run, pos, vocab] that treats its positions differently."""
    weights = torch.arange(1.0, logits.shape[1] + 1)
    return (entropy(logits) * weights).sum(-1) - logits[:, 0, 3]


def expected(metric: Any, logits: Tensor, ids: list[int], reference: Tensor) -> float:
    """A metric of DEFINED written out, from logits [pos, vocab]."""
    name, at = metric
    x, p = logits[at].double(), reference[at].double().log_softmax(-1)
    of = {
        "logit_diff": lambda: (x[:, 5] - x[:, 9]).mean(),
        "answer_prob": lambda: x.softmax(-1)[:, 5].mean(),
        "answer_logprob": lambda: x.log_softmax(-1)[:, 5].mean(),
        "rank": lambda: (x > x[:, 5:6]).sum(-1).double().mean(),
        "kl": lambda: (p.exp() * (p - x.log_softmax(-1))).sum(-1).mean(),
        "loss": lambda: cross_entropy(x, torch.tensor([ids[i + 1] for i in at])),
        "function": lambda: middle(x[None].float())[0],
    }
    return float(of[name]())


def made(name: str, pos: Any, reference: list[int], m: Model) -> Any:
    return {
        "logit_diff": lambda: gs.logit_diff(5, 9, pos=pos),
        "answer_prob": lambda: gs.answer_prob(5, pos=pos),
        "answer_logprob": lambda: gs.answer_logprob(5, pos=pos),
        "rank": lambda: gs.rank(5, pos=pos),
        "kl": lambda: gs.kl_from(gs.trace(reference, model=m), pos=pos),
        "loss": lambda: gs.loss(pos=pos),
        "function": lambda: gs.metric(middle, pos=pos),
    }[name]()


NAMES = ["logit_diff", "answer_prob", "answer_logprob", "rank", "kl", "loss", "function"]


@st.composite
def positions(draw: Any, n: int) -> tuple[Any, list[int]]:
    """What a user writes for some of n positions, and the positions."""
    numbers = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4, unique=True))
    return draw(
        st.sampled_from(
            [
                (numbers[0], numbers[:1]),
                (numbers[0] - N_POS, numbers[:1]),
                (numbers, numbers),
                (slice(numbers[0], n), list(range(numbers[0], n))),
                (np.array(numbers), numbers),
                (torch.tensor(numbers), numbers),
            ]
        )
    )


# -- of a trace --


@settings(deadline=None, max_examples=60, derandomize=True)
@given(name=st.sampled_from(NAMES), kinds=st.sampled_from(KINDS), seed=st.integers(0, 5), data=st.data())
def test_a_metric_called_on_a_trace_is_its_formula_of_transformers(name: str, kinds: str, seed: int, data: Any) -> None:
    m, ids, other = model(kinds), prompt(N_POS, seed=seed), prompt(N_POS, seed=seed + 1)
    pos, at = data.draw(positions(N_POS - 1))
    value = made(name, pos, other, m)(gs.trace(ids, model=m))
    assert isinstance(value, float)
    wanted = expected((name, at), theirs(ids, kinds), ids, theirs(other, kinds))
    assert abs(value - wanted) <= CLOSE * max(1.0, abs(wanted))


@pytest.mark.parametrize("kinds", KINDS)
def test_the_loss_of_a_trace_is_transformers_loss(kinds: str) -> None:
    ids = prompt(N_POS)
    t = gs.trace(ids, model=model(kinds))
    with torch.no_grad():
        loss = checkpoint_of(kinds)(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert t.loss() == pytest.approx(loss, rel=CLOSE)
    each = t.loss(mean=False)
    assert isinstance(each, Tensor)
    assert each.shape == (N_POS - 1,)
    assert float(each.mean()) == pytest.approx(loss, rel=CLOSE)
    assert t.loss(pos=3) == pytest.approx(float(each[3]), rel=CLOSE)
    assert gs.loss()(t) == gs.loss(pos="all")(t) == t.loss()
    other = prompt(N_POS, seed=1)
    wanted = cross_entropy(theirs(ids, kinds)[:-1], torch.tensor(other[1:])).item()
    assert gs.loss(other)(t) == pytest.approx(wanted, rel=CLOSE)


def test_traces_of_unequal_lengths_have_positions_of_their_own() -> None:
    runs = gs.trace([prompt(4), prompt(7, seed=1)], model=model())
    assert gs.logit_diff(5, 9)(runs) == [float(t.next_logits[5] - t.next_logits[9]) for t in runs]
    assert gs.loss()(runs) == [t.loss() for t in runs]
    assert gs.logit_diff(5, 9, pos=-2)(runs) == pytest.approx([float(t.logits[-2, 5] - t.logits[-2, 9]) for t in runs])


def test_a_token_names_its_position() -> None:
    m = worded()
    t = gs.trace("When Mary,", model=m)
    at = t.tokens.index(" Mary")
    assert gs.rank(5, pos=" Mary")(t) == gs.rank(5, pos=at)(t)
    assert gs.loss(pos=" Mary")(t) == t.loss(pos=at)


def test_edits_after_the_layers_reach_a_metric() -> None:
    edits = [gs.scale("logits", 0.5, pos=3)]
    plain, edited = gs.trace(prompt(N_POS), model=model()), gs.trace(prompt(N_POS), model=model(), edits=edits)
    assert gs.logit_diff(5, 9, pos=3)(edited) == pytest.approx(gs.logit_diff(5, 9, pos=3)(plain) / 2)
    assert gs.logit_diff(5, 9, pos=4)(edited) == pytest.approx(gs.logit_diff(5, 9, pos=4)(plain))


def test_long_runs_are_unembedded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    t, other = gs.trace([prompt(N_POS), prompt(N_POS, seed=1)], model=model())
    metrics = [gs.loss(), gs.kl_from(other, pos="all"), gs.logit_diff(5, 9, pos=[7, 2, 4])]
    whole = [metric(t) for metric in metrics]
    each = t.loss(mean=False)
    sizes: list[int] = []
    unembed = Gemma2.unembed

    def counting(network: Gemma2, x: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(x))
        return unembed(network, x, *rest)

    monkeypatch.setattr(Gemma2, "unembed", counting)
    monkeypatch.setattr(bound_module, "rows_to_unembed", lambda *_, **__: 2)
    assert [metric(t) for metric in metrics] == pytest.approx(whole, rel=CLOSE)
    assert error(t.loss(mean=False), each) <= CLOSE
    assert max(sizes) <= N_POS
    assert sizes.count(2) >= 8


# -- of a sweep --


def loop(m: Model, base: list[int], source: list[int], site: str, metric: Any, layer: int, pos: int) -> float:
    """The metric of one patched run, by hooks of gs.trace and the call of the metric."""
    edit = gs.patch(site, gs.trace(source, model=m), layer=layer, pos=pos)
    value = metric(gs.trace(base, model=m, edits=[edit]))
    assert isinstance(value, float)
    return value


@settings(deadline=None, max_examples=25, derandomize=True)
@given(name=st.sampled_from(NAMES), kinds=st.sampled_from(KINDS), data=st.data())
def test_a_sweep_is_the_loop_of_single_runs(name: str, kinds: str, data: Any) -> None:
    m, clean, corrupt = model(kinds), prompt(N_POS), [*prompt(N_POS)[:2], *prompt(N_POS, seed=1)[2:]]
    pos, _ = data.draw(positions(N_POS - 1))
    site = data.draw(st.sampled_from(["resid_pre", "z", "mlp_out", "k"]))
    metric = made(name, pos, prompt(N_POS, seed=7), m)
    layers = data.draw(st.lists(st.integers(0, m.n_layers - 1), min_size=1, unique=True))
    s = gs.sweep(clean, corrupt, metric, site=site, layer=layers, model=m, progress=False)
    wanted = [[loop(m, corrupt, clean, site, metric, layer, at) for at in range(N_POS)] for layer in layers]
    assert error(s.values[0], np.array(wanted)) <= CLOSE
    assert s.corrupt == pytest.approx(metric(gs.trace(corrupt, model=m)), rel=CLOSE, abs=CLOSE)
    of_source = gs.loss(corrupt, pos=pos) if name == "loss" else metric
    assert s.clean == pytest.approx(of_source(gs.trace(clean, model=m)), rel=CLOSE, abs=CLOSE)


def test_a_sweep_is_the_loop_of_transformers_with_hooks() -> None:
    clean, corrupt, net = prompt(N_POS), prompt(N_POS, seed=1), checkpoint_of("lgl")
    s = gs.sweep(clean, corrupt, gs.loss(), site="resid_post", model=model(), progress=False)
    entering: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: entering.append(out[0] if isinstance(out, tuple) else out))
        for layer in net.model.layers
    ]
    theirs(clean)
    for hook in hooks:
        hook.remove()
    for layer, pos in itertools.product(range(3), (0, 4, 8)):

        def patch(_: Any, __: Any, out: Any, layer: int = layer, pos: int = pos) -> Any:
            x = out[0] if isinstance(out, tuple) else out
            x[:, pos] = entering[layer].reshape(1, N_POS, -1)[:, pos]
            return out

        hook = net.model.layers[layer].register_forward_hook(patch)
        loss = cross_entropy(theirs(corrupt)[:-1], torch.tensor(corrupt[1:])).item()
        hook.remove()
        assert s.values[0][layer, pos] == pytest.approx(loss, rel=CLOSE)


class Rows:
    """How many rows are unembedded, and how many each layer computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unembedded, self.of_layer = 0, dict[int, int]()
        unembed, forward = Gemma2.unembed, Layer.forward

        def counting(network: Gemma2, x: Tensor, *rest: Any) -> Tensor:
            self.unembedded += len(x)
            return unembed(network, x, *rest)

        def counting_rows(layer: Layer, *arguments: Any) -> Tensor:
            y = forward(layer, *arguments)
            self.of_layer[layer.index] = self.of_layer.get(layer.index, 0) + len(y)
            return y

        monkeypatch.setattr(Gemma2, "unembed", counting)
        monkeypatch.setattr(Layer, "forward", counting_rows)


@pytest.mark.parametrize(("pos", "n_read", "n_from"), [(None, 1, 1), (6, 1, 3), ([4, 7], 2, 5), ("all", 9, 9)])
def test_only_the_rows_that_are_asked_for_are_unembedded(
    pos: Any, n_read: int, n_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, corrupt = prompt(N_POS), [prompt(1, seed=3)[0], *prompt(N_POS, seed=1)[1:]]
    metric = gs.logit_diff(5, 9, pos=pos)
    rows = Rows(monkeypatch)
    s = gs.sweep(clean, corrupt, metric, site="resid_pre", layer=[0, 1], pos=[0, 3], model=model(), progress=False)
    tried = 2 + 2  # stand-ins: two runs together, made once
    assert rows.unembedded == 2 + (4 + 2) * n_read, (rows.unembedded, tried)
    bases = 2 * N_POS
    starts = [0, 3, 0, 3]
    assert rows.of_layer[2] == bases + sum(min(n_from, N_POS - start) for start in starts)
    assert s.finished.all()


def test_pairs_of_unequal_lengths_have_positions_of_their_own() -> None:
    m = model()
    cleans, corrupts = [prompt(6), prompt(9, seed=2)], [prompt(6, seed=1), prompt(9, seed=3)]
    for metric in (gs.loss(), gs.logit_diff(5, 9, pos=-2), gs.metric(middle, pos=[1, -1])):
        both = gs.sweep(cleans, corrupts, metric, site="mlp_out", by="layer", model=m, progress=False)
        for i, (clean, corrupt) in enumerate(zip(cleans, corrupts, strict=True)):
            alone = gs.sweep(clean, corrupt, metric, site="mlp_out", by="layer", model=m, progress=False)
            assert error(both.values[i], alone.values[0]) <= CLOSE
            assert both.base_metric[i] == pytest.approx(alone.base_metric[0], rel=CLOSE, abs=CLOSE)


def test_an_edit_of_the_logits_reaches_each_position_of_a_sweep() -> None:
    m, clean, corrupt = model(), prompt(N_POS), prompt(N_POS, seed=1)
    edits = [gs.scale("logits", 0.5, pos=[3, 5]), gs.scale("resid_pre", 1.5, layer=1, pos=2)]
    metric = gs.logit_diff(5, 9, pos=[2, 3, 6])
    s = gs.sweep(clean, corrupt, metric, site="mlp_out", layer=1, edits=edits, model=m, progress=False)
    source = gs.trace(clean, model=m)
    for pos in range(N_POS):
        patch = gs.patch("mlp_out", source, layer=1, pos=pos)
        wanted = metric(gs.trace(corrupt, model=m, edits=[*edits, patch]))
        assert s.values[0][0, pos] == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)


def test_a_cell_right_of_every_position_changes_nothing() -> None:
    s = gs.sweep(prompt(N_POS), prompt(N_POS, seed=1), gs.loss(pos=[1, 4]), site="resid_mid", model=model(), progress=False)
    assert (s.effect.sel(pos=slice(5, None)).values == 0).all()
    assert (s.effect.sel(pos=slice(0, 2), layer=slice(0, 2)).values[:2] != 0).all()


def test_files_tell_positions_apart_and_hold_the_function(tmp_path: Any) -> None:
    def ask(metric: Any) -> Any:
        return gs.sweep(
            prompt(5), prompt(5, seed=1), metric, site="mlp_out", model=model(), progress=False, out=tmp_path / "s"
        )

    first = ask(gs.metric(middle, pos=[1, 2]))
    assert ask(gs.metric(middle, pos=[1, 2])).effect.equals(first.effect)
    assert gs.open_sweep(tmp_path / "s").effect.equals(first.effect)
    with pytest.raises(GemmascopeError, match="holds another sweep"):
        ask(gs.metric(middle, pos=[1, 3]))

    def middle_too(logits: Tensor) -> Tensor:
        return middle(logits) * 2

    middle_too.__name__ = "middle"
    with pytest.raises(GemmascopeError, match="a function with other code"):
        ask(gs.metric(middle_too, pos=[1, 2]))


# -- gradients --


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rank"])
def test_gradients_are_those_of_autograd_through_transformers(name: str) -> None:
    m, ids, other, net = model(), prompt(N_POS), prompt(N_POS, seed=1), checkpoint_of("lgl")
    at = [6, 1, 3]
    metric = made(name, at, other, m)
    embedded = net.model.embed_tokens(torch.tensor([ids])).detach().requires_grad_()
    x = net(inputs_embeds=embedded).logits[0][at]
    reference = theirs(other)[at]
    value = {
        "logit_diff": lambda: (x[:, 5] - x[:, 9]).mean(),
        "answer_prob": lambda: x.softmax(-1)[:, 5].mean(),
        "answer_logprob": lambda: x.log_softmax(-1)[:, 5].mean(),
        "kl": lambda: (reference.softmax(-1) * (reference.log_softmax(-1) - x.log_softmax(-1))).sum(-1).mean(),
        "loss": lambda: cross_entropy(x, torch.tensor([ids[i + 1] for i in at])),
        "function": lambda: middle(x[None])[0],
    }[name]()
    (wanted,) = torch.autograd.grad(value, embedded)
    ours = gs.trace(ids, model=m).grad(metric, "embed")
    assert isinstance(ours, Tensor)
    assert error(ours, wanted[0]) <= CLOSE
    assert not ours[7:].any()


def test_gradients_in_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemmascope.run.backward import carried

    t = gs.trace(prompt(N_POS), model=model())
    whole = t.grad(gs.loss(), ("resid_pre", 1))
    monkeypatch.setattr(carried, "rows_to_unembed", lambda *_, **__: 3)
    assert error(t.grad(gs.loss(), ("resid_pre", 1)), whole) <= CLOSE


@pytest.mark.parametrize("metric", [gs.loss(), gs.logit_diff(5, 9, pos=[2, 6]), gs.metric(middle, pos=[4, 8])], ids=repr)
def test_integrated_gradients_add_up_to_the_effect(metric: Any) -> None:
    clean, corrupt = prompt(N_POS), prompt(N_POS, seed=1)
    ask = {"site": "mlp_out", "by": "pos", "layer": 1, "model": model()}
    estimate = gs.attribute(clean, corrupt, metric, steps=64, **ask)
    whole = gs.sweep(clean, corrupt, metric, site="mlp_out", by="layer", layer=1, model=model(), progress=False)
    assert float(estimate.effect.sum()) == pytest.approx(float(whole.effect[0]), rel=2e-2, abs=1e-4)
    assert estimate.corrupt == pytest.approx(whole.corrupt, rel=CLOSE)
    assert estimate.clean == pytest.approx(whole.clean, rel=CLOSE)


# -- text, bad input --


@pytest.mark.parametrize(
    "text",
    [
        "gs.logit_diff(5, 9, pos=3)",
        "gs.logit_diff(5, 9, pos=[3, -1])",
        "gs.rank(5, pos=slice(2, None, None))",
        "gs.answer_prob(' Mary', pos=' John')",
        "gs.loss()",
        "gs.loss(pos='all')",
        "gs.loss([2, 5, 7])",
        "gs.loss('Mary', pos=2)",
    ],
)
def test_a_metric_prints_as_the_call_that_makes_it(text: str) -> None:
    assert repr(eval(text, {"gs": gs})) == text


def test_a_function_prints_its_name() -> None:
    assert repr(gs.metric(middle, pos=[1, 2], name="mine")) == "gs.metric(middle, pos=[1, 2], name='mine')"
    s = gs.sweep(
        prompt(5), prompt(5, seed=1), gs.metric(lambda x: x[:, 0, 1], pos=1), site="mlp_out", model=model(), progress=False
    )
    assert "gs.metric(function_1, pos=1)" in s.code()


def shapes() -> Iterator[tuple[Any, str]]:
    yield lambda x: x, r"the metric returned \(2, 2, 61\) for logits of shape \(2, 2, 61\).*one number per run, shape \(2,\)"
    yield lambda x: x[:, :, 3], r"the metric returned \(2, 2\) for logits of shape \(2, 2, 61\)"
    yield lambda x: x.mean(), r"the metric returned \(\) for logits"
    yield lambda x: 1.0, "the metric returned float"
    yield lambda x: x[:, 0, 3] / 0 * 0, "the metric returned NaN"
    yield lambda x: x[:, 0, 3] - x[:, 0, 3].mean(), "the metric mixes runs"


@pytest.mark.parametrize(("function", "message"), list(shapes()), ids=[message[:30] for _, message in shapes()])
def test_a_function_of_another_shape_is_refused_before_anything_runs(
    function: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Layer, "forward", lambda *_: pytest.fail("a layer ran"))
    with pytest.raises(MetricError, match=message):
        gs.sweep(prompt(5), prompt(5, seed=1), gs.metric(function, pos=[1, 3]), site="mlp_out", model=model())


BAD: list[tuple[Any, type[GemmascopeError], str]] = [
    (lambda: gs.logit_diff(5, 9, pos=9), SiteError, "there is no position 9: positions go from 0 to 8"),
    (lambda: gs.loss(pos=-10), SiteError, "there is no position -10"),
    (lambda: gs.rank(5, pos=[]), MetricError, "pos is an empty list: name one position at least, 'all', or leave it out"),
    (lambda: gs.rank(5, pos=slice(9, None)), SiteError, "the slice 9: holds none of the 9 positions"),
    (lambda: gs.rank(5, pos=[2, 2]), SiteError, "pos names one twice"),
    (lambda: gs.rank(5, pos=1.5), MetricError, "pos is a position, a slice or a list of positions.*given 1.5"),
    (lambda: gs.rank(5, pos=True), MetricError, "pos is a position.*given True"),
    (lambda: gs.loss(pos=8), MetricError, "position 8 is the last of the run.*a loss has positions 0 to 7"),
    (lambda: gs.loss(pos=[2, -1]), MetricError, "position 8 is the last"),
    (lambda: gs.loss(prompt(5)), MetricError, "the text of a loss has as many tokens as the run: they have 9 and 5 tokens"),
    (lambda: gs.kl_from(gs.trace(prompt(5), model=model()), pos="all"), MetricError, "9 positions of the run and 5 of the"),
    (
        lambda: gs.kl_from(gs.trace(prompt(5), model=model()), pos=7),
        SiteError,
        "there is no position 7: positions go from 0 to 4",
    ),
    (lambda: gs.metric(3, pos=1), MetricError, "a metric is made of a function of logits .* given 3"),
    (lambda: gs.metric(middle, pos=None), MetricError, "name the positions"),
    (lambda: gs.metric(middle, pos=1, name=3), MetricError, "the name of a metric is a text; given 3"),
]


@pytest.mark.parametrize(("make", "kind", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_positions_are_refused_before_anything_runs(make: Any, kind: type[GemmascopeError], message: str) -> None:
    t = gs.trace(prompt(N_POS), model=model())
    with pytest.raises(kind, match=message):
        make()(t)
    with pytest.raises(kind, match=message):
        gs.sweep(prompt(N_POS), prompt(N_POS, seed=1), make(), site="mlp_out", model=model(), progress=False)


@pytest.mark.parametrize("given", [torch.ones(2, 61), 3, "text", None])
def test_only_a_trace_has_a_metric(given: Any) -> None:
    with pytest.raises(MetricError, match=r"a metric is called on a trace, or on a list of them; given .*metric\.bind"):
        gs.logit_diff(5, 9)(given)


def test_one_token_has_no_loss() -> None:
    with pytest.raises(MetricError, match="a run of one token has no loss"):
        gs.trace([2], model=model()).loss()


def test_a_grid_or_a_position_that_cannot_matter_is_warned_of() -> None:
    clean = prompt(N_POS)
    corrupt = [*clean[:5], *prompt(N_POS, seed=1)[5:]]
    ask = {"site": "mlp_out", "model": model(), "progress": False}
    with pytest.warns(gs.GemmascopeWarning, match="the prompts differ from position 5 on, and the metric reads position 3"):
        gs.sweep(clean, corrupt, gs.logit_diff(5, 9, pos=3), **ask)
    with pytest.warns(gs.GemmascopeWarning, match="the metric reads position 6, and the grid begins at pos 7"):
        gs.sweep(clean, corrupt, gs.logit_diff(5, 9, pos=6), pos=[7, 8], **ask)
