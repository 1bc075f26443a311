"""Odd values, and a check that a public call gives a package error or a right answer for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import numpy as np
import torch

import gemmascope as gs
from gemmascope.errors import GemmascopeWarning

D = 128

# Created for each call: a generator can be read only once.
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "np.True_": lambda: np.True_,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2.0": lambda: 2.0,
    "-0.0": lambda: -0.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "2**63": lambda: 2**63,
    "-(2**63)": lambda: -(2**63),
    "1j": lambda: 1j,
    "np.int64": lambda: np.int64(1),
    "np.uint8": lambda: np.uint8(1),
    "np.float32": lambda: np.float32(1),
    "0-d array": lambda: np.array(1),
    "array": lambda: np.array([0, 1]),
    "array of floats": lambda: np.array([0.5, 1]),
    "array of texts": lambda: np.array(["a"]),
    "array of objects": lambda: np.array([None, {}]),
    "0-d tensor": lambda: torch.tensor(1),
    "tensor": lambda: torch.tensor([0, 1]),
    "mask": lambda: torch.tensor([True, False]),
    "float tensor": lambda: torch.tensor(1.5),
    "2-d tensor": lambda: torch.zeros(2, 2),
    "no tensor": lambda: torch.empty(0),
    "meta": lambda: torch.zeros(2, device="meta"),
    "0-d meta": lambda: torch.tensor(1, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "complex": lambda: torch.zeros(D, dtype=torch.complex64),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "parameter": lambda: torch.nn.Parameter(torch.zeros(D)),
    "vector": lambda: torch.zeros(D),
    "vector of numpy": lambda: np.zeros(D),
    "[]": lambda: [],
    "()": lambda: (),
    "range": lambda: range(2),
    "range(0)": lambda: range(0),
    "generator": lambda: (i for i in range(2)),
    "set": lambda: {0, 1},
    "dict": lambda: {0: 1},
    "nested list": lambda: [[0], [1]],
    "list of None": lambda: [None],
    "list with True": lambda: [0, True],
    "''": lambda: "",
    "text": lambda: "nothing",
    "bytes": lambda: b"z",
    "...": lambda: ...,
    "object": lambda: object(),
    "type": lambda: int,
    "function": lambda: lambda *x: None,
    "slice": lambda: slice(None),
    "step 0": lambda: slice(None, None, 0),
    "slice of numpy": lambda: slice(np.int64(1), np.int64(3)),
    "slice of floats": lambda: slice(0.0, 2.0),
    "slice of texts": lambda: slice("a", "b"),
    "empty slice": lambda: slice(3, 3),
    "huge slice": lambda: slice(0, 10**400),
}

# Passed to every call; of the others as many as a call's test has time for.
ALWAYS = ("True", "2.0", "10**5000", "array", "meta", "nested", "object")


def some_of(call: str, n: int) -> list[str]:
    """ALWAYS and n other names of odd values, always the same ones for a call."""
    return [*ALWAYS, *Random(call).sample([name for name in ODD if name not in ALWAYS], n)]


def bare_errors(call: Callable[[Any], Any], names: Iterable[str] = tuple(ODD)) -> dict[str, str]:
    """The odd values for which a call raises an error that is not the package's, or one too long to read."""
    messages: dict[str, str] = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", GemmascopeWarning)
            # torch's, of the odd values themselves
            warnings.filterwarnings("ignore", message=".*(nested tensors|quantiz|Sparse CSR).*")
            odd = ODD[name]()
            try:
                call(odd)
            except gs.GemmascopeError as error:
                if len(str(error)) > 2000:
                    messages[name] = f"{len(str(error))} letters: {str(error)[:120]}"
            except Exception as error:
                messages[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return messages
