"""Digests of functions depend on what a function does, and not on its name or comments."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, model_of, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

import gemmascope as gs
from gemmascope.sweeps.digest import digest, metric_parts


def function_of(source: str, name: str = "f", **known: Any) -> Any:
    """The function that the source defines, as in a notebook."""
    names: dict[str, Any] = {"torch": torch, "__name__": "notebook", **known}
    exec(source, names)
    return names[name]


def digest_of(metric: Any) -> str:
    return digest(metric_parts(metric))


CALL = "def g(x): return x + {0}\ndef f(x): return g(x)"
CLASS = "class F:\n  def __init__(self, n): self.n = n\n  def __call__(self, x): return x + {0}\nf = F({1})"
DIFFERENT: list[tuple[str, str]] = [
    ("def f(x): return x + 1", "def f(x): return x + 2"),
    ("def f(x): return x + 1", "def f(x): return x - 1"),
    ("def f(x): return torch.sin(x)", "def f(x): return torch.cos(x)"),
    ("def f(x): return x in (1, 2)", "def f(x): return x in (1, 3)"),
    ("def f(x): return x in {'a', 'b'}", "def f(x): return x in {'a', 'c'}"),
    ("def f(x, n=1): return x + n", "def f(x, n=2): return x + n"),
    ("def f(x, *, n=1): return x + n", "def f(x, *, n=2): return x + n"),
    ("def f(x): return [y + 1 for y in x]", "def f(x): return [y + 2 for y in x]"),
    ("def f(x): return map(lambda y: y + 1, x)", "def f(x): return map(lambda y: y + 2, x)"),
    ("n = 1\ndef f(x): return x + n", "n = 2\ndef f(x): return x + n"),
    ("n = 1\ndef f(x): return map(lambda y: y + n, x)", "n = 2\ndef f(x): return map(lambda y: y + n, x)"),
    ("n = torch.ones(3)\ndef f(x): return x + n", "n = torch.zeros(3)\ndef f(x): return x + n"),
    (CALL.format(1), CALL.format(2)),
    (CLASS.format(1, 0), CLASS.format(2, 0)),
    ("f = torch.sin", "f = torch.cos"),
    ("from torch.nn.functional import relu as f", "from torch.nn.functional import gelu as f"),
    ("def f(x): return f(x - 1) if x > 0 else 1", "def f(x): return f(x - 1) if x > 0 else 2"),
    ("f = [lambda x: x, lambda x: -x]", "f = [lambda x: -x, lambda x: x]"),
]


@pytest.mark.parametrize(("source", "other_source"), DIFFERENT)
def test_functions_with_different_code_have_different_digests(source: str, other_source: str) -> None:
    assert digest_of(function_of(source)) == digest_of(function_of(source))
    assert digest_of(function_of(other_source)) == digest_of(function_of(other_source))
    assert digest_of(function_of(source)) != digest_of(function_of(other_source))


@pytest.mark.parametrize(("source", "other_source"), [
    ("def f(x): return x + 1", "def f(x):\n\n  # a remark\n  return x + 1"),
    ("def f(x): return x + 1", "n = 3\ndef f(x): return x + 1"),
    (CLASS.format(1, 0), CLASS.format(1, 5)),
])  # fmt: skip
def test_functions_with_equal_code_have_equal_digests(source: str, other_source: str) -> None:
    assert digest_of(function_of(source)) == digest_of(function_of(other_source))


def closed(value: Any) -> Callable[[Any], Any]:
    return lambda x: (x, value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        | st.frozensets(st.integers(0, 4))
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(data=PLAIN, other_data=PLAIN)
def test_functions_over_data_have_equal_digests_if_the_data_are_equal(data: Any, other_data: Any) -> None:
    makers: list[Callable[[Any], Any]] = [
        closed,
        lambda value: functools.partial(torch.add, value),
        lambda value: function_of("def f(x): return x, n", n=value),
    ]
    for maker in makers:
        assert digest_of(maker(data)) == digest_of(maker(copy.deepcopy(data)))
        assert (digest_of(maker(data)) == digest_of(maker(other_data))) == (repr(data) == repr(other_data))


ARRAYS: list[Any] = [
    torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), torch.zeros(2).bfloat16(), torch.zeros(0), torch.tensor(0.0),
    torch.ones(2, requires_grad=True), torch.eye(2).to_sparse(), np.zeros(2), np.zeros(2, np.float32), np.float32(1),
    np.array(["a", None], dtype=object), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), gs, os.path.join, object,
]  # fmt: skip


def test_functions_over_different_tensors_arrays_and_modules_have_different_digests() -> None:
    digests = [digest_of(closed(value)) for value in ARRAYS]
    assert len(set(digests)) == len(digests)
    assert digests == [digest_of(closed(copy.deepcopy(value) if value is not gs else gs)) for value in ARRAYS]


def test_functions_over_different_traces_have_different_digests() -> None:
    model, other = model_of(checkpoint("l")), model_of(checkpoint("l", seed=1))
    runs = [gs.trace(prompt(3, seed=seed), model=m) for seed in (1, 2) for m in (model, other)]
    runs += [gs.trace(prompt(3, seed=1), model=model, edits=[gs.edit("z", fn, layer=0)]) for fn in (torch.sin, torch.tanh)]
    digests = [digest_of(closed(run)) for run in runs]
    assert len(set(digests)) == len(digests)
    assert digest_of(closed(gs.trace(prompt(3, seed=1), model=model))) == digests[0]


def test_data_that_refers_to_itself_has_a_digest() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest_of(closed(loop)) == digest_of(closed(loop))
    unbound = function_of("def make():\n  def f(x): return later\n  return f\n  later = 1\nf = make()")
    assert digest_of(unbound) == digest_of(unbound)


SCRIPT = """
import torch
from gemmascope.sweeps.digest import digest, metric_parts
words = {"one", "two", "three"}
def helper(x, names=frozenset(["a", "b", "c"])): return x, words, names, (1, 2), (1, 2)
def metric(logits, weights=torch.arange(3)):
    return helper(logits[:, 5]) if logits in {"p", "q", "r"} else [helper(y) for y in weights], (1, 2)
print(digest(metric_parts(metric)))
"""


def test_a_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    """With other hash seeds, from a script file and from source on the command line."""
    (tmp_path / "script.py").write_text(SCRIPT)
    commands = [["script.py"], ["-c", SCRIPT], ["-c", "import script"], ["-c", "import script"]]
    digests = set()
    for seed, command in enumerate(commands):
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        run = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        digests.add(run.stdout)
    assert len(digests) == 1, digests


def test_the_name_of_a_partial_is_that_of_its_function() -> None:
    third = functools.partial(function_of("def third(x, at): return x[:, at]", "third"), at=3)
    s = gs.sweep(prompt(3), prompt(3, seed=1), third, site="resid_pre", by="pos", model=model_of(checkpoint("l")))
    assert s.question.metric == "third"
