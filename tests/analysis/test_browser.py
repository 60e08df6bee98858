"""The report as a person sees it: opened in Chromium, on a laptop and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from analysis.compare import write_comparison
from analysis.report import write_report
from search.ledger import read_ledger

pytestmark = pytest.mark.slow
WIDTHS = {"laptop": 1280, "phone": 390}


class Opened:
    """A page of a file, and everything it complained about or asked a network for."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.page, self.complaints, self.requests = browser.new_page(viewport={"width": width, "height": 900}), list[str](), list[str]()
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: self.requests.append(r.url) if not r.url.startswith(("data:", "blob:")) else None)
        self.page.goto(path.as_uri())
        self.page.wait_for_timeout(300)


def pictures(folder: Path) -> dict[str, bytes]:
    made = {}
    for i, label in enumerate(("unaccelerated", "fastest")):
        Image.radial_gradient("L").resize((400, 40)).rotate(90 * i, expand=False).save(folder / f"{label}.png")
        made[label] = (folder / f"{label}.png").read_bytes()
    return made


@pytest.fixture
def report(make_search: Callable[..., Path], tmp_path: Path) -> Path:
    return write_report(read_ledger(make_search(tmp_path / "toy", population=20, generations=4) / "ledger.jsonl"), tmp_path / "report.html", pictures(tmp_path))


@pytest.mark.parametrize("size", WIDTHS)
def test_the_report_opens_alone_and_fits(browser: Any, report: Path, keep: Callable[..., None], size: str) -> None:
    opened = Opened(browser, report, WIDTHS[size])
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    assert opened.page.locator(".js-plotly-plot .main-svg").count() >= 5
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[size]
    too_wide = "[...document.querySelectorAll('table,pre,.card,img,.plot-container')].filter(e=>e.getBoundingClientRect().right>innerWidth+1).length"
    assert opened.page.evaluate(too_wide) == 0
    # The map itself has most of the width, its labels and colour bar little.
    share = "(()=>{const g=document.querySelectorAll('.js-plotly-plot')[1];return g._fullLayout._size.w/g.clientWidth})()"
    assert opened.page.evaluate(share) > 0.7
    keep(opened.page, f"report-{size}", full_page=True)
    opened.page.close()


def test_the_fid_axis_can_be_logarithmic(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, 1280)
    kind = "document.querySelector('.js-plotly-plot')._fullLayout.yaxis.type"
    assert opened.page.evaluate(kind) == "linear"
    opened.page.get_by_text("log FID").click()
    assert opened.page.evaluate(kind) == "log"
    assert opened.complaints == []
    opened.page.close()


def test_what_a_person_reads_off_it(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, 1280)
    named = opened.page.locator(".js-plotly-plot").first.locator(".textpoint").all_text_contents()
    assert {"unaccelerated", "DeepCache-like, every 3", "fastest"} <= set(named)
    hovers = "[...document.querySelectorAll('.js-plotly-plot')].slice(1,3).map(g=>g.data[0].customdata[0][0][0])"
    assert opened.page.evaluate(hovers) == ["full, prune ratio 0.3"] * 2
    button = opened.page.locator("button.copy").first
    button.click()
    opened.page.wait_for_function("['copied','selected'].includes(document.querySelector('button.copy').textContent)")
    assert opened.complaints == []
    opened.page.close()


def test_several_searches_in_one_report(browser: Any, make_search: Callable[..., Path], tmp_path: Path, keep: Callable[..., None]) -> None:
    records = [read_ledger(make_search(tmp_path / str(seed), "running" if seed == 2 else "finished", seed=seed, population=20) / "ledger.jsonl") for seed in range(3)]
    path = write_comparison(records, tmp_path / "comparison.html")
    for size, width in WIDTHS.items():
        opened = Opened(browser, path, width)
        assert opened.complaints == []
        assert opened.requests == [path.as_uri()]
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        keep(opened.page, f"comparison-{size}", full_page=True)
        opened.page.close()


@pytest.mark.parametrize(("stop", "said"), [("empty", "Nothing can be drawn"), ("running", "16 strategies measured, 1 failed by then")])
def test_unfinished_and_empty_searches(browser: Any, make_search: Callable[..., Path], tmp_path: Path, stop: str, said: str) -> None:
    population = 8 if stop == "empty" else 17
    path = write_report(read_ledger(make_search(tmp_path / "toy", stop, population=population, generations=2) / "ledger.jsonl"), tmp_path / "r.html")
    opened = Opened(browser, path, 390)
    assert said in opened.page.locator(".banner").inner_text()
    assert opened.complaints == []
    opened.page.close()
