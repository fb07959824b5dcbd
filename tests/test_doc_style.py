"""Every public function is documented: docstring, working example, a line of the API page; so is its reference."""

import doctest
import inspect
import itertools
import operator
import pathlib
import re

import pytest

import npkernels
from npkernels import reference

FAMILIES = ("perturb", "lipschitz")  # with a module of their own
FUNCTIONS = sorted(n for n in npkernels.__all__ if inspect.isfunction(getattr(npkernels, n)))
FUNCTIONS += [
    f"{family}.{n}"
    for family in FAMILIES
    for n in getattr(npkernels, family).__all__
    if inspect.isfunction(getattr(getattr(npkernels, family), n))
]
API = pathlib.Path(__file__).parents[1] / "docs" / "api.md"
SECTIONS = ("Parameters", "Returns", "Raises", "Notes", "References", "Examples")


def sections(docstring):
    """Names of the underlined sections, in order."""
    lines = inspect.cleandoc(docstring).splitlines()
    return [a for a, b in itertools.pairwise(lines) if b and set(b) == {"-"}]


def parameters(function):
    return {n: (p.default, p.kind) for n, p in inspect.signature(function).parameters.items() if n != "out"}


def public(name):
    return operator.attrgetter(name)(npkernels)


def sibling(name, other):
    """Another function of the same family."""
    return public(f"{name.rpartition('.')[0]}.{other}".lstrip("."))


def in_reference(name):
    try:
        return operator.attrgetter(name)(reference)
    except AttributeError:
        return None


def test_the_functions_were_found():
    assert {"softmax", "attention", "merge_attention", "set_isa", "checked", "get_include"} <= set(FUNCTIONS)


def test_all_is_sorted_and_complete():
    assert sorted(npkernels.__all__) == sorted(set(npkernels.__all__))
    public = {
        name
        for name, value in vars(npkernels).items()
        if getattr(value, "__module__", "").startswith("npkernels.") and not name.startswith("_")
    }
    assert public - {"check_environment"} <= set(npkernels.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_docstring_with_an_example(name):
    text = public(name).__doc__
    assert re.match(r"\S.*\.\n|\S.*\.$", text), "the first line is a sentence"
    found = sections(text)
    assert set(found) <= set(SECTIONS)
    assert found == sorted(found, key=SECTIONS.index)
    for section in found:
        assert re.search(rf"^ *{section}\n *-{{{len(section)}}}\n", text, re.M), f"underline of {section}"
    assert "Examples" in found
    examples = doctest.DocTestParser().get_examples(text)
    assert any("npkernels." in example.source for example in examples)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_gives_what_it_shows(name):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestFinder(recurse=False).find(public(name), name)[0]
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    out = []
    runner.run(test, out=out.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(out)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_explained(name):
    """By the docstring itself, or by that of the function to which it refers."""
    function = public(name)
    text = function.__doc__
    for other in re.findall(r"as for `(\w+)`", text):
        text += sibling(name, other).__doc__
        for further in re.findall(r"as for `(\w+)`", sibling(name, other).__doc__):
            text += sibling(name, further).__doc__
    missing = [p for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", text)]
    assert missing == []


@pytest.mark.parametrize("name", [*npkernels.__all__, *(n for n in FUNCTIONS if "." in n)])
def test_the_api_page_names_it(name):
    if name in ("__version__",):
        return
    name = name.rpartition(".")[2]
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", API.read_text()), f"{name} is not in docs/api.md"


BY_DEFINITION = "lipschitz."  # whose reference takes small sizes only, and no options of an iteration


@pytest.mark.parametrize(
    "name", [n for n in FUNCTIONS if in_reference(n) and not n.startswith(BY_DEFINITION)]
)
def test_the_reference_has_the_same_parameters(name):
    assert parameters(in_reference(name)) == parameters(public(name))


def test_the_reference_has_every_kernel():
    kernels = {n for n in FUNCTIONS if "." not in n and hasattr(public(n), "__wrapped__")}
    kernels -= {"checked", "num_threads", "use_isa"}  # context managers
    assert kernels == set(reference.__all__) - {"cached_attention"}  # of KVCache.attend
    assert len(kernels) >= 20
    for family in FAMILIES:
        kernels = {
            n for n in getattr(npkernels, family).__all__ if hasattr(public(f"{family}.{n}"), "__wrapped__")
        }
        assert kernels == set(getattr(reference, family).__all__) or not kernels


def test_signatures_in_the_api_page_are_real():
    """Whatever the page writes out in full, with a default for each option, is what Python says."""
    seen = 0
    for name, inside in re.findall(r"`(\w+)\(([^`]*?)\)`", API.read_text()):
        full = next((n for n in FUNCTIONS if n.rpartition(".")[2] == name), None)
        if "..." in inside or full is None:
            continue
        said = [
            p.split("=")[0].strip()
            for p in re.split(r",\s*(?![^()]*\))", inside)
            if p.strip() not in ("", "*")
        ]
        assert said == list(inspect.signature(public(full)).parameters), name
        seen += 1
    assert seen >= 10
