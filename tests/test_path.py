"""Path patching, against the definition: traces with everything between sender and receiver frozen by edits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint_3, model, model_of, prompt

import gemmascope as gs
from gemmascope.edits.edit import Edit
from gemmascope.errors import SiteError, SweepError
from gemmascope.model.model import Model

CLEAN, CORRUPT = prompt(9, seed=1), prompt(9, seed=2)
METRIC = gs.logit_diff(5, 9)


def by_definition(sender: Edit, receivers: list[tuple[str, int, Any]] | None, m: Model) -> float:
    """The metric of the corrupted run, the sender's change reaching only the receivers (None: the end of the stream)."""
    base = gs.trace(CORRUPT, model=m)
    last = 4 if receivers is None else max(layer for _, layer, _ in receivers)
    assert sender.layer is not None
    frozen: list[Edit] = [sender]
    for layer in range(sender.layer, last):
        frozen += [gs.patch("attn_out", base, layer=layer)] if layer > sender.layer else []
        frozen += [gs.patch("mlp_out", base, layer=layer)] if layer > sender.layer or sender.site != "mlp_out" else []
    arriving = gs.trace(CORRUPT, model=m, edits=frozen)
    if receivers is not None:
        late = [(site, layer, heads) for site, layer, heads in receivers if layer > sender.layer]
        arriving = gs.trace(CORRUPT, model=m, edits=[gs.patch(s, arriving, layer=a, head=h) for s, a, h in late])
    return float(arriving.next_logits[5] - arriving.next_logits[9])


RECEIVERS: list[Any] = [
    [("q", 3, [1, 6])],
    [("v", 2, None)],
    [("k", 3, 1)],
    [("q", 1, 0), ("k", 3, None), ("v", 3, 2)],
    [("q_raw", 3, [1, 6]), ("k_raw", 2, 3)],
    None,
]


@pytest.mark.parametrize("receivers", RECEIVERS, ids=str)
@pytest.mark.parametrize(("sender", "family"), [("z", 2), ("attn_out", 2), ("mlp_out", 2), ("z", 3)])
def test_a_path_is_its_definition(sender: str, receivers: Any, family: int) -> None:
    m = model("lgll") if family == 2 else model_of(checkpoint_3("lgll"))
    by = ("layer", "head") if sender == "z" else ("layer",)
    s = gs.path_sweep(CLEAN, CORRUPT, METRIC, sender=sender, receiver=receivers or "final", by=by, mlps="frozen", model=m)
    source = gs.trace(CLEAN, model=m)
    last = 4 if receivers is None else max(layer for _, layer, _ in receivers)
    for layer in range(last):
        for head in [0, 7] if sender == "z" else [None]:
            expected = by_definition(gs.patch(sender, source, layer=layer, head=head), receivers, m)
            value = s.values[0, layer] if head is None else s.values[0, layer, head]
            assert value == pytest.approx(expected, abs=3e-4), (layer, head)
    assert np.isnan(s.values[0, last:]).all(), "a sender at or after its receivers has no path: not run, rather than 0"
    assert float(np.nanstd(s.values)) > 1e-2
    assert s.progress_text() == f"{s.finished.sum()} of {s.finished.sum()} cells finished"


def test_a_sender_at_one_position() -> None:
    s = gs.path_sweep(
        CLEAN, CORRUPT, METRIC, receiver=("v", 2), by=("layer", "pos"), head=[2, 3], mlps="frozen", model=model("lgll")
    )
    sender = gs.patch("z", gs.trace(CLEAN, model=model("lgll")), layer=1, pos=4, head=[2, 3])
    assert s.effect.dims == ("layer", "pos")
    assert s.values[0, 1, 4] == pytest.approx(by_definition(sender, [("v", 2, None)], model("lgll")), abs=3e-4)


def test_names_of_transformerlens_are_read() -> None:
    ours = gs.path_sweep(CLEAN, CORRUPT, METRIC, sender="z", layer=1, receiver=[("q", 3), ("v", 2, 1)], model=model("lgll"))
    theirs: list[Any] = ["blocks.3.attn.hook_q", ("attn.hook_v", 2, 1)]
    by_hook = gs.path_sweep(CLEAN, CORRUPT, METRIC, sender="blocks.1.attn.hook_z", receiver=theirs, model=model("lgll"))
    assert by_hook.question.axes == ours.question.axes
    assert np.array_equal(by_hook.values, ours.values)
    by_hook_head = gs.path_sweep(
        CLEAN, CORRUPT, METRIC, layer=1, receiver=("blocks.2.attn.hook_v", None, 1), model=model("lgll")
    )
    by_site_head = gs.path_sweep(CLEAN, CORRUPT, METRIC, layer=1, receiver=("v", 2, 1), model=model("lgll"))
    assert np.array_equal(by_hook_head.values, by_site_head.values)


def test_bad_arguments_are_refused() -> None:
    def ask(**arguments: Any) -> Any:
        return gs.path_sweep(CLEAN, CORRUPT, METRIC, model=model("lgll"), **arguments)

    with pytest.raises(SweepError, match="a sender writes to the stream: z, attn_out, mlp_out; given 'q'"):
        ask(sender="q")
    with pytest.raises(SweepError, match="a receiver is"):
        ask(receiver=("z", 3))
    with pytest.raises(SiteError, match=r"'attn.hook_result' leaves out Gemma 2's post-norm"):
        ask(sender="blocks.1.attn.hook_result")
    with pytest.raises(SiteError, match=r"'blocks.1.attn.hook_z' names layer 1, and layer=2 was given as well"):
        ask(sender="blocks.1.attn.hook_z", layer=2)
    with pytest.raises(SiteError, match=r"'blocks.3.attn.hook_q' names layer 3, and layer 2 was given as well"):
        ask(receiver=("blocks.3.attn.hook_q", 2, 1))
    with pytest.raises(SweepError, match=r"names its layer: give it alone, or as .* None, head"):
        ask(receiver=("blocks.3.attn.hook_q", 1))
    with pytest.raises(SiteError, match=r"'q' is in every layer: say which"):
        ask(receiver="q")
    with pytest.raises(SweepError, match=r"a receiver is .* given 3"):
        ask(receiver=3)
    with pytest.raises(SweepError, match="receiver is an empty list"):
        ask(receiver=[])
    with pytest.raises(SiteError, match="there is no layer 9"):
        ask(receiver=("q", 9))
    with pytest.raises(SiteError, match="'k' has 4 kv heads, 0 to 3; given head=6"):
        ask(receiver=("k", 3, 6))


def test_a_receiver_that_no_sender_reaches_is_refused() -> None:
    with pytest.raises(SweepError, match="no sender comes before"):
        gs.path_sweep(CLEAN, CORRUPT, METRIC, receiver=("q", 0, None), model=model("lgll"))


def test_a_sender_without_heads_is_laid_out_by_position() -> None:
    s = gs.path_sweep(CLEAN, CORRUPT, METRIC, sender="mlp_out", model=model("lgll"), progress=False)
    assert s.effect.dims == ("layer", "pos")
