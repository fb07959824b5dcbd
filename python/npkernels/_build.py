"""Where other projects find what they compile and link against."""

from __future__ import annotations

from pathlib import Path

from npkernels import _core

_INSTALLED = Path(_core.__file__).parent


def get_include() -> str:
    """Return the include directory of the C and C++ headers; libnpkernels.so lies in the directory above it.

    Examples
    --------
    >>> import os, npkernels
    >>> "npkernels.h" in os.listdir(os.path.join(npkernels.get_include(), "npkernels"))
    True
    """
    return str(_INSTALLED / "include")


def get_cmake_dir() -> str:
    """Return the directory of the CMake package: ``-Dnpkernels_DIR=`` for ``find_package(npkernels)``.

    Examples
    --------
    >>> import os, npkernels
    >>> "npkernels-config.cmake" in os.listdir(npkernels.get_cmake_dir())
    True
    """
    return str(_INSTALLED / "cmake")
