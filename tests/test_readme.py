"""The examples of the README run as they stand, one after another."""

import itertools
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
ROOT = README.parent
FOLDERS = ("docs/*.md", "examples/*/README.md", "benchmarks/README.md")
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for pattern in FOLDERS for p in ROOT.glob(pattern))]


def prose(page):
    """The lines of a page outside of its blocks of code."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page):
    return re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose(page))


def test_the_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["out"].shape == (1, 8, 512, 64)
    assert names["t"].entropy.shape == (4,)
    assert names["bound"].residual < 1e-3


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target in links(page):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_page_is_found_from_the_readme():
    reached = {README}
    for _ in PAGES:
        pages = [p.relative_to(ROOT) for p in reached if p.suffix == ".md"]
        reached |= {((ROOT / page).parent / target).resolve() for page in pages for target in links(page)}
    assert {str(p) for p in {ROOT / page for page in PAGES} - reached} == set()


@pytest.mark.parametrize("page", PAGES)
def test_tables_have_a_head_and_as_many_cells_in_each_row(page):
    lines = ["", *prose(page).splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|(-+\|)+", after), line
            assert before == "" or before.startswith("#"), f"a table needs an empty line before it: {line}"
    rows = itertools.groupby(lines, key=lambda line: line.startswith("|"))
    for table in (list(group) for is_table, group in rows if is_table):
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table}
        assert len(cells) == 1, table[0]


@pytest.mark.parametrize("page", PAGES)
def test_headings_stand_apart(page):
    for before, line in itertools.pairwise(["", *prose(page).splitlines()]):
        if re.match(r"#+ ", line):
            assert before == "", line
