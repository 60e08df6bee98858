"""A real browser: the Chromium of the system, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Skips where there is no Chromium or no Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra 'dev')")
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with api.sync_playwright() as playwright:
        # Chromium has no sandbox for root, as in a container.
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield made
        made.close()


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[Any, str], None]:
    """Takes a screenshot, into the folder that DATO_SCREENSHOTS names where it is set."""

    def take(page: Any, name: str, **how: Any) -> None:
        folder = Path(os.environ.get("DATO_SCREENSHOTS") or tmp_path)
        page.screenshot(path=folder / f"{name}.png", **how)
        assert (folder / f"{name}.png").stat().st_size > 5000

    return take
