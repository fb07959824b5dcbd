"""Progress bars: tqdm, if it is installed and somebody is looking."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Give the items, with a bar on stderr if that is a terminal and tqdm is there."""
    if not sys.stderr.isatty():
        return items
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, desc=what, leave=False)
    return bar
