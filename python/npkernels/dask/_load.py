"""Dask itself, if it is installed and of a version that works."""

from __future__ import annotations

from typing import Any

from npkernels._party import party

OLDEST = "2025.1"


def load(name: str) -> Any:
    """Import a module of Dask; an ImportError says what to install."""
    dask, module = (party("npkernels.dask", n, OLDEST, "npkernels[dask]") for n in ("dask", name))
    if dask.config.get("array.query-planning", False):
        raise ImportError(
            "npkernels.dask builds graphs, which Dask's array expressions do not take; "
            "set the option array.query-planning to False"
        )
    return module
