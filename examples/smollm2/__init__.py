"""SmolLM2-135M-Instruct on NumPy and npkernels: a small language model in a few readable files."""

import os

# NumPy's BLAS and npkernels take turns on the same cores. OpenMP workers that spin while they wait for their
# next turn take a core away from BLAS, of two the half. Let them sleep; OpenMP reads this when npkernels loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The other way round: OpenBLAS's threads look for new work for about a tenth of a second after a product. At 2^4
# clock ticks they sleep at once; OpenBLAS reads this when NumPy loads it.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
