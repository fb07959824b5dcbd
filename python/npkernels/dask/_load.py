"""Dask itself, if it is installed and of a version that works."""

from __future__ import annotations

import importlib
import re
from typing import Any

OLDEST = (2025, 1)
NEEDED = "npkernels.dask needs dask[array] >= {}.{}: pip install 'npkernels[dask]'"


def load(name: str) -> Any:
    """Import a module of Dask; an ImportError says what to install."""
    needed = NEEDED.format(*OLDEST)
    try:
        dask: Any = importlib.import_module("dask")
        module: Any = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{needed} ({error})") from error
    version = tuple(int(n) for n in re.findall(r"\d+", dask.__version__)[:2])
    if version < OLDEST:
        raise ImportError(f"{needed} (found {dask.__version__})")
    if dask.config.get("array.query-planning", False):
        raise ImportError(
            "npkernels.dask builds graphs, which Dask's array expressions do not take; "
            "set the option array.query-planning to False"
        )
    return module
