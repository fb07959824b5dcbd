#!/usr/bin/env bash
# Format, lint and types. $1: the bin directory of an environment with the tools and the package.
set -euo pipefail
bin=$1
"$bin/ruff" check .
"$bin/ruff" format --check .
find csrc src tests/cpp tests/consumers -name '*.cpp' -o -name '*.h' -o -name '*.c' | xargs "$bin/clang-format" --dry-run -Werror
"$bin/python" -m mypy
"$bin/python" -m mypy.stubtest npkernels._core --mypy-config-file pyproject.toml
