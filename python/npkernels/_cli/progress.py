"""Progress bars: tqdm, if it is installed and somebody is looking."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], what: str, name: Callable[[T], str] | None = None) -> Iterable[T]:
    """Give the items, with a bar on stderr if that is a terminal and tqdm is there; `name` says what is at work."""
    if not (sys.stderr and sys.stderr.isatty()):  # None where it is closed from the start
        return items
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return items
    bar: Any = tqdm(items, desc=what, leave=False)
    return bar if name is None else _named(bar, name)


def _named(bar: Any, name: Callable[[T], str]) -> Iterator[T]:
    for item in bar:
        bar.set_postfix_str(name(item))
        yield item
