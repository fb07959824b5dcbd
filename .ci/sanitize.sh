#!/usr/bin/env bash
# The C++ unit tests under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set of this CPU. $1: Python.
set -euo pipefail
python=$1
work=build/sanitize
if ! echo '#include <doctest/doctest.h>' | g++ -E -x c++ - >/dev/null 2>&1; then
  apt-get update -qq && apt-get install -y -qq doctest-dev
fi
[ -x "$work/venv/bin/cmake" ] || { "$python" -m venv "$work/venv" && "$work/venv/bin/python" -m pip install --quiet cmake ninja; }
export PATH="$PWD/$work/venv/bin:$PATH"
unused=
[ "$(uname -m)" != x86_64 ] || grep -qw avx512bw /proc/cpuinfo || unused="avx512;avx512bf16"
cmake -S . -B "$work/cpp" -G Ninja -DNPKERNELS_UNUSED_ISAS="$unused" -DNPKERNELS_PYTHON=OFF -DNPKERNELS_TESTS=ON -DNPKERNELS_SANITIZE=address,undefined
cmake --build "$work/cpp"
ctest --test-dir "$work/cpp" --output-on-failure

# A C program that finds the installed library with find_package, under the same sanitizers.
prefix=$PWD/$work/prefix
cmake --install "$work/cpp" --prefix "$prefix"
cmake -S tests/consumers/c -B "$work/consumer" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_FLAGS=-fsanitize=address,undefined
cmake --build "$work/consumer"
"$work/consumer/consumer"
