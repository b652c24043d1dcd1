"""The pages lead where they say, and hold what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from update_docs import PAGES as FILLED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading_that_there_are(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), target


def test_pages_that_the_code_names_exist() -> None:
    named = {
        page
        for folder in ("src", "benchmarks", "recipes")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", ".yaml")
        for page in re.findall(r"docs/[\w/]+\.md", file.read_text())
    }
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


@pytest.mark.parametrize("page", FILLED)
def test_tables_are_what_the_result_files_say(page: str) -> None:
    text = (ROOT / page).read_text()
    for name, table in FILLED[page].items():
        assert f"<!-- {name}:begin -->\n\n{table()}\n\n<!-- {name}:end -->" in text, name
