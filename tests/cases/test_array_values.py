"""Numbers given as an array are the same as a tensor, whatever their type, order and strides; the rest is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemmascope.errors import EditError
from gemmascope.values import real_tensor

NUMBERS = np.array([[1, 0, 3], [4, 5, 6]])


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "uint64", "float16", "float32", "float64", ">f4", ">i2"])
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[::-1, ::2], lambda a: a.T], ids=["whole", "reversed", "turned"])
def test_an_array_of_numbers_is_a_tensor_of_them(dtype: str, view: object) -> None:
    array = view(NUMBERS.astype(dtype))  # type: ignore[operator]
    assert real_tensor(array, "it", EditError).tolist() == array.tolist()


def test_what_holds_no_real_numbers_is_refused() -> None:
    class Broken:
        shape, dtype = (2,), np.dtype("float32")

        def __array__(self, *_: object, **__: object) -> object:
            raise OSError("the disk is gone")

    for value, why in (
        ([1.0, 2.0], "it is a tensor; given list"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), r"masked array.*fill it first"),
        (np.array([1j]), "given an array of complex128"),
        (np.array(["a"]), "given an array of <U1"),
        (torch.tensor([1j]), "it .*complex"),
        (Broken(), "it cannot be read as an array: the disk is gone"),
    ):
        with pytest.raises(EditError, match=why):
            real_tensor(value, "it", EditError)
