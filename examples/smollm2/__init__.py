"""SmolLM2-135M-Instruct on NumPy and npkernels: a small language model in a few readable files."""

import os

# NumPy's BLAS and npkernels take turns on the same cores. OpenMP workers that spin while they wait for their
# next turn take a core away from BLAS: on two shared cores a prompt then took four times as long. Let them
# sleep; OpenMP reads this when npkernels loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
