"""The other parties of the doors: imported when a door is opened, and named when they are missing or do not fit."""

from __future__ import annotations

import importlib
import re
from typing import Any


def party(door: str, name: str, oldest: str, install: str, before: str = "") -> Any:
    """Import another project for a door, or say what to install.

    Parameters
    ----------
    door : str
        What needs it, as in "npkernels.jax".
    name : str
        What is imported: a package, or a module of it. The version is that of the package.
    oldest : str
        The first version that works; empty for any.
    install : str
        What to give to pip.
    before : str
        The first version that does not work any more; empty for none.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If it is missing, cannot be imported, or has another version.

    Examples
    --------
    >>> party("npkernels.door", "numpy", "99.0", "npkernels[door]", before="100")
    Traceback (most recent call last):
        ...
    ImportError: npkernels.door needs numpy 99.0 or newer, before 100: pip install 'npkernels[door]' (this is ...)
    """
    package = name.partition(".")[0]
    versions = f"{oldest and f' {oldest} or newer'}{before and f', before {before}'}"
    wanted = f"{door} needs {package}{versions}: pip install {install!r}"
    try:
        whole = importlib.import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "it is not installed" if missing else f"it cannot be imported: {error}"
        raise ImportError(f"{wanted} ({why})", name=package) from error
    came = str(getattr(whole, "__version__", "of an unknown version"))
    if _numbers(came) < _numbers(oldest) or (before and _numbers(came) >= _numbers(before)):
        raise ImportError(f"{wanted} (this is {came})", name=package)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{wanted} (this is {came}: {error})", name=name) from error


def _numbers(version: str) -> list[int]:
    leading = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in leading.group().split(".")] if leading else []
