"""bfloat16 through DLPack: NumPy's side of the protocol does not know it, so it travels as 16-bit integers.

A capsule of DLPack belongs to whoever asked for it, so that the type code in it may be changed on the way.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._party import party

_UINT, _BFLOAT = 1, 4  # DLDataTypeCode of dlpack.h
_IN_TENSOR = 20  # of the type (code, bits, lanes) in DLTensor: behind data, device and ndim
_HEADER = {
    b"dltensor": 0,
    b"dltensor_versioned": 32,
}  # bytes before DLTensor; version, context, deleter, flags

_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Retyped:
    """An array of 16-bit numbers on the memory of another, whose type code is changed."""

    def __init__(self, owner: Any, before: int, after: int) -> None:
        self.owner, self.before, self.after = owner, before, after
        self.changed = False

    def __dlpack_device__(self) -> Any:
        return self.owner.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self.owner.__dlpack__(**options)
        name = _name_of(capsule)
        address = _pointer_in(capsule, name)
        assert name is not None
        assert address is not None
        code, bits, *_ = dtype = (ctypes.c_uint8 * 4).from_address(address + _HEADER[name] + _IN_TENSOR)
        if (code, bits) == (self.before, 16):
            dtype[0] = self.after
            self.changed = True
        return capsule


@functools.cache
def bfloat16() -> np.dtype[Any]:
    """NumPy's dtype of bfloat16, from ml_dtypes."""
    ml_dtypes = party("npkernels: bfloat16", "ml_dtypes", "0.5", "npkernels[bfloat16]")
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def bfloat16_to_numpy(x: Any) -> npt.NDArray[Any] | None:
    """Return the array of another library as one of ml_dtypes.bfloat16; None if it is not of bfloat16."""
    integers = Retyped(x, _BFLOAT, _UINT)
    array: npt.NDArray[Any] = np.from_dlpack(integers)
    if not integers.changed:
        return None
    view: npt.NDArray[Any] = array.view(bfloat16())
    return view


def bfloat16_from_numpy(array: npt.NDArray[Any]) -> Retyped:
    """Return something that any from_dlpack reads as bfloat16."""
    return Retyped(array.view(np.uint16), _UINT, _BFLOAT)
