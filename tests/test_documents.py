"""Documents name files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(p for package in ("analysis", "conf", "dato", "launch", "search") for p in sorted((ROOT / package).rglob("*.md")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    named = {path for path in re.findall(r"`((?:analysis|conf|dato|launch|search|tests)/[\w./-]+)`", text)}
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 800
