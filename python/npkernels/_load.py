"""Loads the compiled module, and OpenMP with it, so that waiting threads do not take the cores from others.

After a parallel region libgomp's threads spin for milliseconds before they sleep. Between two kernels a program
usually calls BLAS, whose own threads then wait for the cores: a language model on NumPy + npkernels was several times
slower. A short spin keeps kernels that follow one another fast and gives the cores back soon after. libgomp reads the
variable when it is loaded; the environment is left as it was, and what the user has set holds.
"""

from __future__ import annotations

import os

_SPIN = "4000"  # rounds of a pause instruction, some 50 microseconds; libgomp's own choice is 300,000
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

if any(name in os.environ for name in _WAITING):
    from npkernels import _core
else:
    os.environ["GOMP_SPINCOUNT"] = _SPIN
    try:
        from npkernels import _core
    finally:
        del os.environ["GOMP_SPINCOUNT"]

__version__: str = _core.__version__
