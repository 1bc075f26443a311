"""The error about a missing package names it, what needs it, and how to install it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.errors import GemmascopeError, MissingPackageError, SweepError
from gemmascope.packages import requires_package

IDS, OTHER = [2, 5, 9, 11], [2, 6, 9, 11]


@pytest.fixture(scope="module")
def model() -> gs.Model:
    return model_of(checkpoint("lg"))


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes importing a package fail."""

    def hidden(name: str) -> None:
        for loaded in list(sys.modules):
            if loaded == name or loaded.startswith(f"{name}."):
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)

    return hidden


LABS: dict[str, Callable[[gs.Model], Any]] = {
    "patching": lambda model: gs.patching_lab(IDS, OTHER, 3, 4, model=model),
    "heads": lambda model: gs.head_lab(IDS, 3, model=model, max_new_tokens=2),
    "steering": lambda model: gs.steer_lab(IDS, torch.ones(32), site="resid_post", layer=1, model=model, max_new_tokens=2),
    "graphs": lambda model: gs.graph_lab(IDS, basis="neuron", max_nodes=5, model=model, max_new_tokens=2),
}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resets the cached widget classes."""
    from gemmascope.labs import display, widget

    widget.widget_class.cache_clear()
    display.box_class.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("package", ["ipywidgets", "anywidget"])
@pytest.mark.parametrize("make", LABS.values(), ids=LABS)
def test_a_lab_says_what_its_widget_needs(
    package: str, make: Callable[[gs.Model], Any], model: gs.Model, hide: Callable[[str], None]
) -> None:
    hide(package)
    with make(model) as lab:
        with pytest.raises(MissingPackageError, match=r'pip install "gemmascope\[lab\]"') as caught:
            _ = lab.widget
        assert not isinstance(caught.value, SweepError)
        assert package in str(caught.value)
        lab.wait()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("make", LABS.values(), ids=LABS)
def test_a_lab_that_is_shown_without_them_shows_its_fallback_and_warns(
    make: Callable[[gs.Model], Any], model: gs.Model, hide: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    hide("anywidget")
    with make(model) as lab:
        lab.wait()
        with pytest.warns(gs.GemmascopeWarning, match="anywidget"):
            lab._ipython_display_()
    assert "Lab of" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["bars", "grid"])
def test_a_picture_says_that_it_needs_plotly(shape: str, model: gs.Model, hide: Callable[[str], None]) -> None:
    by = ("layer",) if shape == "bars" else ("layer", "pos")
    result = gs.sweep(IDS, OTHER, gs.logit_diff(3, 4), site="resid_pre", by=by, model=model, progress=False)
    hide("plotly")
    with pytest.raises(MissingPackageError, match='a picture needs plotly: pip install "plotly"'):
        result.plot()


def test_pictures_of_other_results_say_that_they_need_plotly(model: gs.Model, hide: Callable[[str], None]) -> None:
    direction = gs.direction([[2, 5], [2, 6]], [[2, 9], [2, 11]], layer=0, site="resid_post", model=model)
    steered = gs.strength_sweep(IDS, direction, gs.answer_prob(3), strengths=[-1, 0, 1], model=model, progress=False)
    compared = gs.compare(model, model, [IDS, OTHER])
    hide("plotly")
    for one in (direction, steered, compared):
        with pytest.raises(MissingPackageError, match="a picture needs plotly"):
            one.plot()


def test_a_png_of_a_lab_says_that_it_needs_kaleido(model: gs.Model, hide: Callable[[str], None], tmp_path: Path) -> None:
    hide("kaleido")
    with LABS["patching"](model) as lab:
        lab.run("cell", 0, 0)
        with pytest.raises(MissingPackageError, match="kaleido"):
            lab.save(tmp_path / "a.png")


def test_the_command_line_prints_the_missing_package_on_one_line(
    hide: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hide("jupyterlab")
    assert main(["lab", str(tmp_path), "--", "--allow-root"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert 'gemmascope lab needs jupyterlab: pip install "gemmascope[lab]"' in message


def test_the_error_is_an_import_error_and_a_package_error() -> None:
    assert issubclass(MissingPackageError, GemmascopeError)
    assert issubclass(MissingPackageError, ImportError)
    with pytest.raises(MissingPackageError) as caught, requires_package("this", "nothing_of_that_name"):
        import nothing_of_that_name  # noqa: F401
    assert caught.value.name == "nothing_of_that_name"


def test_an_import_error_of_our_own_is_not_disguised() -> None:
    with pytest.raises(ImportError) as caught, requires_package("this", "ipywidgets"):
        import gemmascope.not_there  # noqa: F401
    assert not isinstance(caught.value, MissingPackageError)


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Hiding:
    find_spec = PathFinder.find_spec

    def __call__(self, name, *rest):
        return None if name.partition(".")[0] in {missing} else self.find_spec(name, *rest)

PathFinder.find_spec = Hiding()
"""
COMPUTES = """
import gemmascope as gs
model = gs.load("nano", device="cpu")
assert gs.trace("Mary and John", model=model).logits.shape[0] == 4
gs.sweep("Mary and John", "Anna and John", gs.logit_diff(" Mary", " John"), site="z", model=model, progress=False)
"""
TESTS_FOR_A_GPU = """
import pytest
sys.exit(pytest.main(["tests/gpu", "-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider"]))
"""


@pytest.mark.parametrize("code", [COMPUTES, TESTS_FOR_A_GPU], ids=["the model", "tests/gpu"])
def test_what_only_computes_needs_none_of_the_packages_for_notebooks(code: str) -> None:
    missing = {"plotly", "ipywidgets", "anywidget", "IPython", "jupyterlab", "beartype", "playwright", "hypothesis"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing) + code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
