"""The examples of the README run as they stand, one after another."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["out"].shape == (1, 8, 512, 64)
    assert names["t"].entropy.shape == (4,)
    assert names["bound"].residual < 1e-3


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (README.parent / "docs").glob("*.md"))]
)
def test_links_between_pages_lead_somewhere(page):
    path = README.parent / page
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (path.parent / target).exists(), target
