"""Labs are freed: when they are closed, when nothing refers to them, and when the cell that shows them is run again."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, model_of

import gemmascope as gs
from gemmascope.errors import GemmascopeError, LabError
from gemmascope.labs import display
from gemmascope.labs.display import box_class

pytest.importorskip("ipywidgets")
pytest.importorskip("anywidget")

IDS = [2, 5, 9, 11, 7]
OTHER = [2, 6, 9, 11, 7]


@pytest.fixture(scope="module")
def model() -> gs.Model:
    return model_of(checkpoint("lg"))


def patching(model: gs.Model) -> Any:
    return gs.patching_lab(IDS, OTHER, 3, 4, model=model)


def heads(model: gs.Model) -> Any:
    return gs.head_lab(IDS, 3, model=model, max_new_tokens=2)


def steering(model: gs.Model) -> Any:
    vector = torch.ones(model.config.d_model)
    return gs.steer_lab(IDS, vector, site="resid_post", layer=1, model=model, max_new_tokens=2)


def graphs(model: gs.Model) -> Any:
    return gs.graph_lab(IDS, basis="neuron", max_nodes=5, targets=3, model=model, max_new_tokens=2)


def are_gone(labs: list[weakref.ref[Any]], expected: list[bool]) -> bool:
    """Whether exactly these labs are freed, once the running jobs of the closed ones have ended."""
    for _ in range(200):
        gc.collect()
        if [lab() is None for lab in labs] == expected:
            return True
        time.sleep(0.05)
    return False


LABS = [patching, heads, steering, graphs]
labs = pytest.mark.parametrize("make", LABS, ids=lambda make: make.__name__)


def widgets() -> dict[str, Any]:
    from ipywidgets.widgets.widget import _instances

    return dict(_instances)


def traces() -> int:
    return sum(issubclass(type(one), gs.Trace) for one in gc.get_objects())


@labs
def test_ten_labs_that_nothing_refers_to_are_freed(make: Callable[[gs.Model], Any], model: gs.Model) -> None:
    gc.collect()
    widgets_before, traces_before = len(widgets()), traces()

    def make_one() -> weakref.ref[Any]:
        lab = make(model)
        assert lab.widget is not None
        lab.wait()
        return weakref.ref(lab)

    labs_made = [make_one() for _ in range(10)]
    assert are_gone(labs_made, [True] * 10)
    assert (len(widgets()), traces()) == (widgets_before, traces_before)


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A shell like a notebook's: with a kernel, ids of cells, and the outputs that IPython keeps."""
    events: list[Callable[..., None]] = []

    class Shell:
        kernel = object()
        cell: Any = "a"
        parent: Any = None
        events = SimpleNamespace(register=lambda name, listener: events.append(listener))
        user_ns: Any
        user_ns_hidden: Any

        def __init__(self) -> None:
            self.user_ns, self.user_ns_hidden, self.displayhook = {"_oh": {}}, {}, SimpleNamespace()

        def get_parent(self) -> Any:
            return {"metadata": {} if self.cell is None else {"cellId": self.cell}}

        def run(self, cell: Any, show: Callable[[], Any]) -> Any:
            """Run a cell whose last expression is a lab, or its widget."""
            self.cell = cell
            for listener in events:
                listener(None)
            lab = show()
            if lab is None:
                return None
            number = len(self.user_ns["_oh"]) + 1
            getattr(lab, "widget", lab)._repr_mimebundle_()
            self.user_ns["_oh"][number] = lab
            for space in (self.user_ns, self.user_ns_hidden):
                space |= {"_": lab, f"_{number}": lab}
            self.displayhook._ = lab
            return lab

    shell = Shell()
    monkeypatch.setattr(display, "_shell", lambda: shell)
    monkeypatch.setattr(display, "_BOXES", {})
    monkeypatch.setattr(display, "_SHELLS", weakref.WeakSet())
    before = widgets()
    yield shell
    for name, widget in widgets().items():
        if name not in before:
            widget.close()


@labs
def test_running_a_cell_again_frees_its_earlier_lab(
    make: Callable[[gs.Model], Any], model: gs.Model, front_end: Any
) -> None:
    gc.collect()
    before = len(widgets())
    labs_made = []
    for _ in range(5):
        labs_made.append(weakref.ref(front_end.run("a", lambda: make(model))))
        n_of_one_lab = len(widgets()) - before if len(labs_made) == 1 else n_of_one_lab  # noqa: F821
    labs_made[-1]().wait()
    assert are_gone(labs_made, [True] * 4 + [False])
    assert len(widgets()) - before == n_of_one_lab, "those of one lab"


def test_running_a_cell_again_frees_a_lab_shown_by_its_widget(model: gs.Model, front_end: Any) -> None:
    labs_made = [weakref.ref(front_end.run("a", lambda: patching(model).widget).lab) for _ in range(3)]
    assert are_gone(labs_made, [True, True, False])


def test_a_lab_that_a_variable_holds_keeps_its_numbers(model: gs.Model, front_end: Any) -> None:
    first_lab = front_end.run("a", lambda: patching(model))
    result = first_lab.run("cell", 0, 1)
    front_end.run("a", lambda: patching(model))
    assert not first_lab.is_closed
    assert first_lab.result.to_dataframe().equals(result.to_dataframe())
    assert first_lab.run("cell", 1, 1).finished[0, :, 1].all()
    again = first_lab.widget
    assert again.comm is not None, "shown again it has a widget again"


def test_a_lab_that_another_cell_or_widget_shows_stays(model: gs.Model, front_end: Any) -> None:
    import ipywidgets

    lab = front_end.run("a", lambda: patching(model))
    box = front_end.run("b", lambda: lab).widget
    front_end.run("a", lambda: patching(model))
    assert lab.widget is box
    shown_in_a_box = front_end.run("c", lambda: patching(model))
    holder = ipywidgets.VBox([shown_in_a_box.widget])
    box = shown_in_a_box.widget
    front_end.run("c", lambda: patching(model))
    assert shown_in_a_box.widget is box
    holder.close()


@pytest.mark.parametrize("cell", [None, "", 7])
def test_no_lab_is_closed_where_the_cell_is_unknown(cell: Any, model: gs.Model, front_end: Any) -> None:
    first = front_end.run(cell, lambda: patching(model))
    box = first.widget
    front_end.run(cell, lambda: patching(model))
    assert first.widget is box
    assert box.comm is not None


def test_a_job_ends_once_its_output_is_gone(model: gs.Model, front_end: Any) -> None:
    from gemmascope.labs.worker import turns_of

    lab = front_end.run("a", lambda: patching(model))
    lab.wait()
    with turns_of(model).turn():
        job = lab.start("all")
        front_end.run("a", lambda: None)
    assert job.ended.wait(60)
    assert job.cancelled


@labs
def test_a_closed_lab_frees_its_widgets_traces_and_threads(
    make: Callable[[gs.Model], Any], model: gs.Model, front_end: Any
) -> None:
    gc.collect()
    before, traces_before, threads = len(widgets()), traces(), threading.active_count()
    lab = make(model)
    box = lab.widget
    lab.wait()
    assert len(widgets()) > before
    lab.close()
    lab.close()
    gc.collect()
    assert lab.is_closed
    assert (len(widgets()), traces()) == (before, traces_before)
    assert threading.active_count() <= threads
    assert box.comm is None


@labs
def test_a_with_statement_closes_the_lab(make: Callable[[gs.Model], Any], model: gs.Model) -> None:
    with make(model) as lab:
        lab.wait()
        assert not lab.is_closed
    assert lab.is_closed


CALLS: dict[Callable[[gs.Model], Any], list[Callable[[Any], Any]]] = {
    patching: [
        lambda lab: lab.run(), lambda lab: lab.start("estimate"), lambda lab: lab.click(0, 0), lambda lab: lab.look(0, 0),
        lambda lab: lab.set(site="z"), lambda lab: lab.swap(), lambda lab: lab.wait(), lambda lab: lab.widget,
    ],
    heads: [
        lambda lab: lab.set(answer=5), lambda lab: lab.scale(0, 0, 2), lambda lab: lab.reset(), lambda lab: lab.wait(),
        lambda lab: lab.trace, lambda lab: lab.base, lambda lab: lab.text, lambda lab: lab.moved(), lambda lab: lab.widget,
    ],
    steering: [
        lambda lab: lab.set(strength=2), lambda lab: lab.wait(), lambda lab: lab.trace, lambda lab: lab.base_text,
        lambda lab: lab.widget,
    ],
    graphs: [
        lambda lab: lab.set(answer=5), lambda lab: lab.scale("bias"), lambda lab: lab.reset(), lambda lab: lab.reopen(0),
        lambda lab: lab.look("bias"), lambda lab: lab.group("a", []), lambda lab: lab.wait(), lambda lab: lab.graph,
        lambda lab: lab.result, lambda lab: lab.trace, lambda lab: lab.widget,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("make", "call"), [(make, call) for make, calls in CALLS.items() for call in calls])
def test_a_closed_lab_refuses_to_compute(
    make: Callable[[gs.Model], Any], call: Callable[[Any], Any], model: gs.Model
) -> None:
    lab = make(model)
    lab.close()
    with pytest.raises(LabError, match="this lab is closed"):
        call(lab)
    assert issubclass(LabError, GemmascopeError)


def test_results_of_a_closed_patching_lab_can_be_read(model: gs.Model) -> None:
    with patching(model) as lab:
        result = lab.run()
    assert lab.result.to_dataframe().equals(result.to_dataframe())
    assert len(lab.to_dataframe()) == result.question.n_cells
    assert "gs.sweep(" in lab.code()
    assert lab.view().to_html()
    assert "closed" in repr(lab)


def test_results_of_a_closed_graph_lab_can_be_read(model: gs.Model) -> None:
    with graphs(model) as lab:
        graph = lab.graph
        lab.scale(graph.nodes.query("kind == 'feature'")["id"].iloc[0], 0.0)
        lab.wait()
        before = lab.view()
    assert lab.view().spec == before.spec
    assert list(lab.changes.values()) == [0.0]
    assert "graph.intervene(" in lab.code()
    assert "closed" in repr(lab)
    assert graph.run is not None, "the graph that was taken out of it can still compute"


@labs
def test_a_closed_lab_can_be_printed_and_closed_while_it_computes(make: Callable[[gs.Model], Any], model: gs.Model) -> None:
    from gemmascope.labs.worker import turns_of

    with turns_of(model).turn():
        lab = make(model)
        closing = threading.Thread(target=lab.close)
        closing.start()
    closing.join(20)
    assert lab.is_closed
    assert "closed" in repr(lab)


def test_closing_the_widget_frees_the_lab_too(model: gs.Model, front_end: Any) -> None:
    before = len(widgets())
    lab = patching(model)
    lab.widget.close()
    reference = weakref.ref(lab)
    lab.wait()
    del lab
    gc.collect()
    assert reference() is None
    assert len(widgets()) == before


def test_where_widgets_are_not_drawn_one_line_stands_for_the_box() -> None:
    import ipywidgets

    box = box_class()([ipywidgets.VBox([ipywidgets.Text("a")])])
    data = box._repr_mimebundle_()
    assert data["text/plain"] == "a live lab: run this cell to use it"
    assert "application/vnd.jupyter.widget-view+json" in data
    box.close()
