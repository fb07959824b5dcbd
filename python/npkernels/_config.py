"""Instruction set, threads, and what is known about this build."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator

import numpy as np

from npkernels import _core


def isa() -> str:
    """Return the name of the instruction set (ISA) that the kernels use.

    Examples
    --------
    >>> import npkernels
    >>> npkernels.isa() in npkernels.available_isas()
    True
    """
    return str(_core.isa())


def available_isas() -> tuple[str, ...]:
    """Return the compiled ISAs that this CPU runs, the fastest last.

    Examples
    --------
    >>> import npkernels
    >>> len(npkernels.available_isas()) >= 1
    True
    """
    return tuple(name for name in _core.compiled_isas() if _core.isa_supported(name))


def set_isa(name: str | None) -> None:
    """Use one ISA from now on, in the whole process; `NPKERNELS_ISA` does the same from outside.

    Parameters
    ----------
    name : str or None
        One of `available_isas()`; None goes back to the default: `NPKERNELS_ISA`, else the fastest.

    Raises
    ------
    ValueError
        If the name is unknown or this CPU does not run that ISA.

    Examples
    --------
    >>> import npkernels
    >>> npkernels.set_isa(npkernels.available_isas()[0])
    >>> npkernels.set_isa(None)
    """
    if name is None:
        _core.reset_isa()
    elif not isinstance(name, str) or not _core.set_isa(name):
        raise ValueError(f"set_isa: {_isa_problem(name)}")


@contextlib.contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Use one ISA inside a block. The choice is the process's: other threads see it too. `name` as for `set_isa`.

    Examples
    --------
    >>> import npkernels
    >>> with npkernels.use_isa(npkernels.available_isas()[0]):
    ...     npkernels.softmax([1.0, 1.0])
    array([0.5, 0.5])
    """
    before = isa() if _core.isa_source() == "set_isa" else None
    set_isa(name)
    try:
        yield
    finally:
        set_isa(before)


def _isa_problem(name: object) -> str:
    choices = ", ".join(available_isas())
    compiled = ", ".join(_core.compiled_isas())
    return f"{name!r} cannot be used; this CPU runs {choices} (compiled: {compiled})"


def get_num_threads() -> int:
    """Return how many threads a large call would use now.

    Examples
    --------
    >>> import npkernels
    >>> npkernels.get_num_threads() >= 1
    True
    """
    return int(_core.num_threads())


def set_num_threads(n: int | None) -> None:
    """Fix the number of threads for the process; None goes back to the default.

    The default is `NPKERNELS_NUM_THREADS`, else `OMP_NUM_THREADS`, else the CPUs that the process may run on (affinity,
    container quota). A limit set through OpenMP, as threadpoolctl does, holds on top. A forked child uses one thread.

    Raises
    ------
    ValueError
        If n is not a positive integer.

    Examples
    --------
    >>> import npkernels
    >>> npkernels.set_num_threads(2)
    >>> npkernels.get_num_threads()
    2
    >>> npkernels.set_num_threads(None)
    """
    _core.set_num_threads(0 if n is None else _positive("set_num_threads", n))


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use at most n threads for the calls that this thread makes inside the block.

    Examples
    --------
    >>> import npkernels
    >>> with npkernels.num_threads(1):
    ...     npkernels.get_num_threads()
    1
    """
    before = _core.set_thread_limit(_positive("num_threads", n))
    try:
        yield
    finally:
        _core.set_thread_limit(before)


def _positive(function: str, n: int) -> int:
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{function}: n is {n!r}; expected a positive integer")
    return min(int(n), 4096)


def config() -> dict[str, str]:
    """Return what `show_config` prints."""
    supported = available_isas()
    variables = {key: value for key, value in os.environ.items() if key.startswith("NPKERNELS_")}
    for key in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        if key in os.environ:
            variables[key] = os.environ[key]
    return {
        "npkernels": str(_core.__version__),
        "python": f"{platform.python_implementation()} {platform.python_version()}, numpy {np.__version__}",
        "compiler": f"{_core.compiler}, {_core.build_type} build",
        "machine": platform.machine(),
        "ISAs compiled": ", ".join(_core.compiled_isas()),
        "ISAs supported": ", ".join(supported),
        "ISA in use": f"{isa()} ({_core.isa_source()})",
        "threads": f"{get_num_threads()} ({_core.num_threads_source()})",
        "environment": ", ".join(f"{key}={value}" for key, value in sorted(variables.items()))
        or "nothing set",
    }


def show_config() -> None:
    """Print version, compiler, ISAs, threads and the environment variables that matter.

    Examples
    --------
    >>> import npkernels
    >>> npkernels.show_config()  # doctest: +ELLIPSIS
    npkernels ...
    """
    items = config()
    width = max(map(len, items))
    for key, value in items.items():
        print(f"{key:<{width}}  {value}")


def check_environment() -> None:
    """Raise if an environment variable asks for something that cannot be had; called once, at import."""
    name = os.environ.get("NPKERNELS_ISA")
    if name is not None and not _core.isa_supported(name):
        raise ImportError(f"NPKERNELS_ISA: {_isa_problem(name)}")
    threads = os.environ.get("NPKERNELS_NUM_THREADS")
    if threads is not None and not (
        threads.isascii() and threads.isdecimal() and len(threads) < 9 and 0 < int(threads) <= 4096
    ):
        raise ImportError(
            f"NPKERNELS_NUM_THREADS: {threads!r} cannot be used; expected a number from 1 to 4096"
        )
    check = os.environ.get("NPKERNELS_CHECK")
    if check not in (None, "", "0", "1"):
        raise ImportError(f"NPKERNELS_CHECK: {check!r} cannot be used; expected 1, or 0 for no checks")
