"""The other parties of the doors: imported when a door is opened, and named when they are missing or too old."""

from __future__ import annotations

import importlib
import re
from typing import Any


def party(door: str, name: str, oldest: str, install: str) -> Any:
    """Import another project for a door, or say what to install.

    Parameters
    ----------
    door : str
        The module that needs it, as in "npkernels.jax".
    name : str
        What is imported.
    oldest : str
        The first version that works; empty for any.
    install : str
        What to give to pip.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If it is missing, or older than that.
    """
    wanted = f"{door} needs {name}{oldest and f' {oldest} or newer'}: pip install {install!r}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ImportError(f"{wanted} (it is not installed)", name=name) from error
    came = str(getattr(module, "__version__", ""))
    if _numbers(came) < _numbers(oldest):
        raise ImportError(f"{wanted} (this is {came})", name=name)
    return module


def _numbers(version: str) -> list[int]:
    leading = re.match(r"\d+(\.\d+)*", version)
    return [int(part) for part in leading.group().split(".")] if leading else []
