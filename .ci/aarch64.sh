#!/usr/bin/env bash
# Builds the library and its C++ unit tests for aarch64 with Debian's cross compiler and runs them under QEMU.
set -euo pipefail
triple=aarch64-linux-gnu
work=build/aarch64
missing=()
command -v $triple-g++ >/dev/null || missing+=(g++-$triple)
command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
command -v cmake >/dev/null || missing+=(cmake)
command -v ninja >/dev/null || missing+=(ninja-build)
[ -e /usr/include/doctest/doctest.h ] || missing+=(doctest-dev)
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq && apt-get install -y -qq "${missing[@]}"
fi

# By itself: the headers around it in /usr/include are those of this machine.
mkdir -p $work/include
cp -r /usr/include/doctest $work/include/
cmake -S . -B $work -G Ninja -DNPKERNELS_PYTHON=OFF -DNPKERNELS_TESTS=ON \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$triple-g++ \
  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/$triple" -DDOCTEST_INCLUDE="$PWD/$work/include"
cmake --build $work
ctest --test-dir $work --output-on-failure
