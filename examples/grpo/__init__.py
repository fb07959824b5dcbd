"""GRPO on NumPy and npkernels: a tiny transformer that learns (`learn`), and one round on a real model (`round`)."""
