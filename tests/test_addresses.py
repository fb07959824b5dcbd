"""The C functions by ctypes and by address: c_library and get_address know what npkernels.h declares."""

import ctypes
import re
from pathlib import Path

import pytest

import npkernels
from npkernels import _clibrary


def test_every_function_of_the_header_is_there():
    header = (Path(npkernels.get_include()) / "npkernels/npkernels.h").read_text()
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    kinds = [
        ("*", "p"),
        ("int64_t", "l"),
        ("uint64_t", "u"),
        ("double", "d"),
        ("int", "i"),
        ("npk_status", "i"),
    ]
    said = {}
    for name, inside in re.findall(r"NPK_API [\w *]+?\b(npk_\w+)\(([^)]*)\)", code):
        parameters = [] if inside.strip() == "void" else inside.split(",")
        said[name] = "".join(
            next(letter for word, letter in kinds if word in p.split() or (word == "*" and "*" in p))
            for p in parameters
        )
    assert said == _clibrary.PARAMETERS


def test_ctypes_knows_the_types():
    library = npkernels.c_library()
    assert library is npkernels.c_library()
    assert library.npk_isa().decode() == npkernels.isa()
    with pytest.raises(ctypes.ArgumentError):
        library.npk_softmax(None, "last", 1.0, None, None)
    assert library.npk_compiled_isas()[0].decode() == npkernels._core.compiled_isas()[0]


def test_addresses():
    for name in _clibrary.PARAMETERS:
        assert npkernels.get_address(name) > 0
    for wrong in ("npk_sofmax", "softmax", 3, ""):
        with pytest.raises(ValueError, match=r"^get_address: name is .*npk_softmax"):
            npkernels.get_address(wrong)
