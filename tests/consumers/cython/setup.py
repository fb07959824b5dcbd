"""One extension cimports npkernels.ckernels and links nothing, the other links the C functions."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

import npkernels

include = npkernels.get_include()
library = os.path.dirname(include)

setup(
    ext_modules=cythonize(
        [
            Extension("rowwise.memoryviews", ["rowwise/memoryviews.pyx"]),
            Extension(
                "rowwise.direct",
                ["rowwise/direct.pyx"],
                include_dirs=[include],
                library_dirs=[library],
                libraries=["npkernels"],
                runtime_library_dirs=[library],
            ),
        ],
        language_level=3,
    )
)
