"""Looks whether PyTorch is there, and new enough."""

from __future__ import annotations

OLDEST = (2, 4)  # the first with torch.library.custom_op, register_autograd and unsigned 16-bit tensors
TESTED = "2.13.0"

_WANTED = f"npkernels.torch needs PyTorch >= {OLDEST[0]}.{OLDEST[1]} (tested with {TESTED})"
_MEND = "pip install 'npkernels[torch]'"


def check() -> None:
    """Raise ImportError, saying what to install, unless a PyTorch is there that will do."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{_WANTED}, which cannot be imported ({error}); {_MEND}") from error
    version = str(torch.__version__)
    numbers = version.partition("+")[0].split(".")[:2]
    if not all(n.isdecimal() for n in numbers) or tuple(map(int, numbers)) < OLDEST:
        raise ImportError(f"{_WANTED}, found {version}; {_MEND}")
