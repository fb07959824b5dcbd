"""The PyTorch of the tensors that `npkernels.flash_attn` gets: importing this says if it is too old."""

from __future__ import annotations

from npkernels._party import party

party("npkernels.flash_attn", "torch", "2.4", "npkernels[torch]")
