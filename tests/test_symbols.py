"""The shared library: no weak code of a wide instruction set, and nothing exported that is not meant to be."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import npkernels

LIBRARY = Path(npkernels._core.__file__).with_name("libnpkernels.so")
pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm (binutils)")


def symbols(*options):
    """(type, name) of every defined symbol."""
    out = subprocess.run(
        ["nm", "-C", "--defined-only", *options, LIBRARY], capture_output=True, text=True, check=True
    )
    return re.findall(r"^[0-9a-f]+ (\w) (.*)$", out.stdout, re.MULTILINE)


def test_exports_are_the_public_functions_only():
    names = [name for kind, name in symbols("--dynamic") if kind in "TDB"]
    assert len(names) > 40
    strays = [n for n in names if not re.match(r"(npkernels::\w+(\(|$)|npk_\w+$)", n)]
    assert strays == []


def test_no_weak_symbol_holds_code_of_an_instruction_set():
    kinds = symbols() or symbols("--dynamic")
    isas = "|".join(npkernels._core.compiled_isas())
    weak = [name for kind, name in kinds if kind in "WVu"]
    assert [name for name in weak if re.search(rf"npkernels::({isas})::", name)] == []
    # The linker could take a shared template from an object of any ISA: the kernels must not have any.
    objects = [
        n for n in weak if not n.startswith(("std::vector<", "void std::vector<", "std::__", "void std::__"))
    ]
    assert objects == []
