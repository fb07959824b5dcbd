#!/usr/bin/env bash
# The kernels of avx512 and avx512bf16 on a machine that has no more than AVX2: the C++ unit tests and `check`, in a test build
# that emulates their instructions (csrc/simd/x86_emulated.h). $1: the bin directory of an environment with the package.
set -euo pipefail
bin=$1
work=build/avx512
missing=()
[ -e /usr/include/simde/x86/avx512.h ] || missing+=(libsimde-dev)
[ -e /usr/include/doctest/doctest.h ] || missing+=(doctest-dev)
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq && apt-get install -y -qq "${missing[@]}"
fi
[ -x "$bin/ninja" ] || "$bin/python" -m pip install --quiet cmake ninja pybind11 cython
"$bin/cmake" -S . -B $work -G Ninja -DCMAKE_MAKE_PROGRAM="$(realpath "$bin")/ninja" -DPython_EXECUTABLE="$(realpath "$bin")/python" \
  -DNPKERNELS_EMULATE_AVX512=ON -DNPKERNELS_TESTS=ON
"$bin/cmake" --build $work
"$bin/ctest" --test-dir $work --output-on-failure

# The package of this tree with the modules of that build.
rm -rf $work/package
mkdir -p $work/package
cp -r python/npkernels $work/package/
rm -f $work/package/npkernels/*.so
cp $work/libnpkernels.so $work/src/*.so $work/package/npkernels/
PYTHONPATH=$PWD/$work/package "$bin/python" -m npkernels check --isa avx512,avx512bf16
