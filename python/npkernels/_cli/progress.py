"""What a long command is at, on stderr, so that it does not look hung; and tqdm's bars for the attacks."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

EVERY = 10.0  # seconds between two lines where they stay: in a file, or the log of a build


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Give the items, with a bar on stderr if that is a terminal and tqdm is there."""
    if not _terminal():
        return items
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return items
    bar: Iterable[T] = tqdm(items, desc=what, leave=False)
    return bar


def _terminal() -> bool:
    return bool(sys.stderr) and sys.stderr.isatty()  # None where it is closed from the start


class Note:
    """One line on stderr that says what is done now: rewritten on a terminal, else a new one every `EVERY` seconds."""

    def __init__(self) -> None:
        self.terminal = _terminal() and os.environ.get("TERM") != "dumb"  # which has no rewriting
        self.said = time.monotonic()

    def say(self, text: str) -> None:
        """Say it in place of what was said before."""
        if self.terminal:
            text = text[: max(1, shutil.get_terminal_size().columns - 1)]
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)
        elif sys.stderr and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def noted(items: Sequence[T], what: str, name: Callable[[T], str]) -> Iterator[T]:
    """Give the items, and say which one is at work."""
    note = Note()
    for i, item in enumerate(items, 1):
        note.say(f"{what} {i}/{len(items)}: {name(item)}")
        yield item
    note.clear()
