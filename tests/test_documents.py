"""Documents name files that are there."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from launch.schema import keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(p for package in ("analysis", "conf", "dato", "launch", "search") for p in sorted((ROOT / package).rglob("*.md")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    named = {path for path in re.findall(r"`((?:analysis|conf|dato|launch|search|tests)/[\w./-]+\.\w+)`", text)}
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 800


TEXTS = [p for package in ("analysis", "launch", "search") for p in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", [*PAGES, *TEXTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_text_refers_to_is_there(path: Path) -> None:
    named = set(re.findall(r"`((?:analysis|launch|search)(?:\.\w+)+)(?:\(\))?`", path.read_text())) - keys("search").keys() - keys("evaluate").keys()
    for name in named:
        pkgutil.resolve_name(name)  # raises where there is no such module, class or function
