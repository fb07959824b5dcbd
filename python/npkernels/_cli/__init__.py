"""The command line, `python -m npkernels`: what this build is, whether its kernels are right, how fast they are."""
