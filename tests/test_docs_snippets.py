"""The Python blocks of the README and of the documentation's pages run, in order, one namespace per page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs" / "source").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<skip><!-- skip -->[ \t]*\n\s*)?^```python[ \t]*\n(?P<code>.*?)^```[ \t]*$", re.M | re.S)


def blocks(page: str) -> list[tuple[int, str]]:
    """The (first line, code) of each block to run; ``<!-- skip -->`` on the line above leaves one out."""
    found = [m for m in BLOCK.finditer(page) if not m["skip"]]
    return [(page.count("\n", 0, m.start("code")) + 1, m["code"]) for m in found]


def run(page: str, name: str) -> dict[str, object]:
    """Run a page's blocks in one namespace; a traceback points at the line of the page."""
    namespace: dict[str, object] = {"__name__": "__snippets__"}
    for line, code in blocks(page):
        exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
    return namespace


def test_blocks_are_found_and_skipped():
    page = "```python\na = 1\n```\n\n<!-- skip -->\n```python\nraise\n```\n```bash\nls\n```\n\n"
    page += "```python\nb = a + 1\n```\n"
    assert blocks(page) == [(2, "a = 1\n"), (14, "b = a + 1\n")]
    assert run(page, "page")["b"] == 2


def test_a_broken_block_fails_at_its_line():
    with pytest.raises(ZeroDivisionError) as error:
        run("text\n\n```python\nx = 1\n1 / 0\n```\n", "page.md")
    last = error.traceback[-1]
    assert (str(last.frame.code.raw.co_filename), last.lineno + 1) == ("page.md", 5)


def test_the_readme_has_blocks():
    if not README.exists():
        pytest.skip("README.md is not written yet")
    assert blocks(README.read_text(encoding="utf-8"))


@pytest.mark.param_store
@pytest.mark.parametrize("page", [p for p in PAGES if p.exists()], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
