"""The other parties of the doors: who is missing, broken, too old or too new is named, with what to install."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import npkernels
from npkernels._party import party

# How a door is opened, whom it needs, and what it says.
DOORS = {
    "import npkernels.torch": ("npkernels.torch", "torch", "2.4 or newer", "npkernels[torch]"),
    "import npkernels.transformers": (
        "npkernels.transformers",
        "transformers",
        "5.0 or newer, before 6",
        "npkernels[transformers]",
    ),
    "import npkernels.jax": ("npkernels.jax", "jax", "0.6.2 or newer", "npkernels[jax]"),
    "import npkernels.onnx": ("npkernels.onnx", "onnx", "1.19.0 or newer", "npkernels[onnx]"),
    "import npkernels.numba": ("npkernels.numba", "numba", "0.59 or newer", "npkernels[numba]"),
    "import npkernels.dask": ("npkernels.dask", "dask", "2025.1 or newer", "npkernels[dask]"),
    "import npkernels.plot; npkernels.plot.attention([[1.0]])": (
        "npkernels.plot",
        "matplotlib",
        "3.8 or newer",
        "npkernels[plot]",
    ),
    "from npkernels.contrib.art import FastGradientMethod": (
        "npkernels.contrib.art",
        "art",
        "1.17 or newer",
        "adversarial-robustness-toolbox>=1.17",
    ),
    "from npkernels.contrib.foolbox import LinfPGD": (
        "npkernels.contrib.foolbox",
        "foolbox",
        "3.3 or newer",
        "foolbox>=3.3",
    ),
    "from npkernels.contrib import verl; verl.register()": ("npkernels.contrib.verl", "verl", "", "verl"),
    "from npkernels._dlpack import bfloat16; bfloat16()": (
        "npkernels: bfloat16",
        "ml_dtypes",
        "0.5 or newer",
        "npkernels[bfloat16]",
    ),
}
SAID = {
    "missing": "it is not installed",
    "broken": "it cannot be imported: no such thing",
    "old": "this is 0.0.1",
}


def opened(state, folder):
    """What each door says in one process, in which its party is so."""
    names = {name for _, name, _, _ in DOORS.values()}
    first = "import sys, warnings; import npkernels\n"
    if state == "missing":
        first += f"for name in {sorted(names)}: sys.modules[name] = None\n"
    else:
        text = {"broken": "raise ImportError('no such thing')", "old": "__version__ = '0.0.1'"}[state]
        for name in names:
            (folder / f"{name}.py").write_text(text)
        first += f"sys.path.insert(0, {str(folder)!r})\n"
    lines = [first]
    for door, (_, name, _, _) in DOORS.items():
        if name == "transformers":  # which is asked for after torch
            lines.append(f"import types; sys.modules['torch'] = {TORCH}\n")
        lines.append(f"try: exec({door!r})\nexcept ImportError as e: print(e)\nelse: print('opened')\n")
        if name == "transformers":
            lines.append("del sys.modules['torch']\n")
            if state == "missing":
                lines.append("sys.modules['torch'] = None\n")
    root = pathlib.Path(npkernels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", "".join(lines)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ":".join([str(root), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TORCH = "types.SimpleNamespace(__version__='2.4.0', __name__='torch')"


@pytest.mark.parametrize("state", SAID)
def test_every_door_names_what_it_needs(state, tmp_path):
    said = opened(state, tmp_path)
    for line, (door, name, versions, install) in zip(said, DOORS.values(), strict=True):
        if state == "old" and not versions:
            assert line.startswith(f"{door} needs {name}: pip install {install!r} (this is 0.0.1: ")
            continue
        needed = f"{name} {versions}" if versions else name
        assert line == f"{door} needs {needed}: pip install {install!r} ({SAID[state]})"


def test_a_version_that_is_too_new(tmp_path, monkeypatch):
    package = tmp_path / "some_party"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '6.0.0.dev1'")
    (package / "part.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    wanted = "door needs some_party 5.0 or newer, before 6: pip install 'x' (this is 6.0.0.dev1)"
    with pytest.raises(ImportError, match=re.escape(wanted)):
        party("door", "some_party", "5.0", "x", before="6")
    assert party("door", "some_party", "5.0", "x", before="7").__name__ == "some_party"
    assert party("door", "some_party", "6", "x").__name__ == "some_party"
    with pytest.raises(ImportError, match=r"6\.0\.0\.dev1: No module named 'not_there_at_all'"):
        party("door", "some_party.part", "5.0", "x")


def test_importing_npkernels_imports_no_party():
    names = sorted({name for _, name, _, _ in DOORS.values()} | {"distributed", "llvmlite", "scipy"})
    code = f"import sys, npkernels; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_extra_asks_for_what_the_door_needs():
    text = (pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text()
    for _, name, versions, install in DOORS.values():
        found = re.fullmatch(r"npkernels\[(\w+)\]", install)
        if found is None:
            continue
        (line,) = re.findall(rf"^{found[1]} = (.*)$", text, re.M)
        oldest = versions.split()[0]
        asked = re.search(rf'"{name}(?:\[\w+\])?([=<>]=)([\d.]+)', line)
        assert asked, line
        numbers = [tuple(map(int, v.split("."))) for v in (asked[2], oldest)]
        assert numbers[0] >= numbers[1][: len(numbers[0])], line
