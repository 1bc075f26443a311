"""Sweeps, estimates and labs check edits, answers and numbers as a trace and a sweep do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gemmascope as gs
from gemmascope.errors import EditError, GemmascopeWarning, SweepError

P = "When Mary and John went to the store, John gave a drink to"
Q = P.replace("John gave", "Mary gave")
DIFF = gs.logit_diff(" Mary", " John")

ASKED: dict[str, Callable[[list[Any]], Any]] = {
    "sweep": lambda edits: gs.sweep(P, Q, DIFF, site="z", by=("layer",), layer=5, edits=edits, progress=False),
    "attribute": lambda edits: gs.attribute(P, Q, DIFF, site="z", by=("layer",), layer=5, edits=edits),
    "feature_sweep": lambda edits: gs.feature_sweep(gs.load_sae(), P, DIFF, features=[3], edits=edits),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_base_edit_that_changes_nothing_is_warned_about_as_in_a_trace(name: str) -> None:
    overwritten = [gs.scale("z", 2.0, layer=1), gs.ablate("z", layer=1)]
    with pytest.warns(GemmascopeWarning, match="has no effect: .*later in the list, overwrites all of it") as caught:
        ASKED[name](overwritten)
    assert len(caught) == 1
    with pytest.warns(GemmascopeWarning, match="reaches nothing at k_pos="):
        ASKED[name]([gs.knockout(layer=1, q_pos=[3, 4], k_pos=[2, 9])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ASKED[name]([gs.scale("z", 2.0, layer=1)])


@pytest.mark.parametrize("ask", ASKED)
def test_a_base_run_of_no_numbers_names_the_site_and_the_edit(ask: str) -> None:
    with pytest.raises(EditError, match=r"first at 'layers.1.\w+', position \d+; without them it does not: gs.patch"):
        ASKED[ask]([gs.patch("resid_mid", torch.full((128,), 3e38), layer=1), gs.add("mlp_out", torch.ones(128), layer=1)])


@pytest.mark.parametrize("site", ["resid_pre", "attn_raw", "z", "mlp_act", "resid_post"])
def test_numbers_whose_squares_overflow_in_a_norm_are_refused(site: str) -> None:
    with pytest.raises(EditError, match=r"holds NaN or infinity, first at .*gs.scale|gs.scale.*squares are infinite"):
        _ = gs.trace(P, edits=[gs.scale(site, 1e36, layer=1)]).next_logits
    assert gs.trace(P, edits=[gs.scale(site, 1e10, layer=1)]).next_logits.isfinite().all()


def test_a_head_lab_checks_its_answers_as_a_sweep_does() -> None:
    with gs.head_lab(P, " Mary", max_new_tokens=1) as lab:
        with pytest.raises(SweepError, match="the two answers are the same token"):
            lab.set(against=" Mary")
        assert lab.against is None
        with pytest.warns(GemmascopeWarning, match="'Mary' has no space in front"):
            lab.set(answer="Mary")
        with pytest.warns(GemmascopeWarning, match="the prompt ends in ' '"):
            lab.set(prompt=P + " ", answer=" Mary")


def test_a_bad_value_typed_into_a_lab_is_shown_in_the_lab() -> None:
    with gs.head_lab(P, " Mary", max_new_tokens=1) as lab:
        lab.wait()
        lab._typed("answer", lambda: "Mary")
        lab.wait()
        assert "'Mary' has no space in front" in (lab.error or "")
        lab._typed("answer", lambda: " Mary")
        assert lab.error is None


@pytest.mark.parametrize("how", ["head lab", "steer lab"])
def test_a_lab_whose_change_makes_no_numbers_says_so(how: str) -> None:
    if how == "head lab":
        lab: Any = gs.head_lab(P, max_new_tokens=1)
        lab.scale(1, 1, 1e37)
    else:
        lab = gs.steer_lab(P, torch.ones(128), site="resid_post", layer=1, max_new_tokens=1)
        lab.set(strength=3e37)
    with lab, pytest.raises(EditError, match=r"holds NaN or infinity|squares are infinite"):
        lab.wait()


def test_a_warning_of_ipython_is_no_error_in_our_tests() -> None:
    """IPython warns about VIRTUAL_ENV, which an activated environment sets."""
    message = "Attempting to work in a virtualenv. If you encounter problems, please install IPython inside the virtualenv."
    warnings.warn_explicit(message, UserWarning, "interactiveshell.py", 1, module="IPython.core.interactiveshell")
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, "trace.py", 1, module="gemmascope.run.trace")
