"""The report as a person sees it: opened in Chromium, on a laptop and on a phone."""

from __future__ import annotations

import fcntl
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from analysis.compare import write_comparison
from analysis.page import figure_section, page, write_page
from analysis.report import write_report
from analysis.rivals import rivals_figure
from dato.sampler import SAMPLERS
from launch import live_report
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


@pytest.fixture(scope="module")
def report(make_search: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(read_ledger(make_search(folder / "toy", population=20, generations=4) / "ledger.jsonl"), folder / "report.html", pictures(folder))


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Waits for an expression to be true; Playwright's own way needs what the page's security policy refuses."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(100)


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


def test_a_long_legend_covers_nothing_on_a_phone(browser: Any, tmp_path: Path) -> None:
    def result(name: str, family: str, speedup: float) -> dict[str, Any]:
        value = {"value": 5.0, "low": 4.0, "high": 6.0}
        return {"name": name, "family": family, "speedup": {"value": speedup, "low": 1, "high": 9}, "metrics": {"fid": value}, "differences": {"fid": value}, "latency": value}

    found = [result(f"{sampler}-{n}", family, n) for sampler in SAMPLERS for family in ("fewer", "limited") for n in (3, 4)] + [result("mine", "strategy", 6)]
    path = write_page(tmp_path / "r.html", page("rivals", [figure_section("Rivals", rivals_figure(found), ""), "<h2>after</h2>"]))
    opened = Opened(browser, path, 390)
    boxes = opened.page.evaluate("['.legend','.xtitle','.xy','h2:last-of-type'].map(s=>{const r=[...document.querySelectorAll(s)].pop().getBoundingClientRect();return [r.top,r.bottom]})")
    legend, title, plot, after = boxes
    assert plot[1] - plot[0] > 150 and title[1] <= legend[0] + 1 and legend[1] <= after[0] + 1, boxes
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


@pytest.mark.parametrize("size", WIDTHS)
def test_names_of_points_meet_nothing(browser: Any, report: Path, size: str) -> None:
    opened = Opened(browser, report, WIDTHS[size])
    boxes = """[...document.querySelectorAll('#front .textpoint text')].filter(t=>t.textContent).map(t=>{const r=t.getBoundingClientRect();return [r.left,r.top,r.right,r.bottom]})"""
    found = opened.page.evaluate(boxes)
    assert len(found) >= 3
    plot = opened.page.evaluate("(()=>{const r=document.querySelector('#front').getBoundingClientRect();return [r.left,r.top,r.right,r.bottom]})()")
    for i, a in enumerate(found):
        assert plot[0] <= a[0] and a[2] <= plot[2], "none is cut off"
        assert not [b for b in found[:i] if a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 1 and b[1] < a[3] - 1], "none lies on another"
    opened.page.close()


@pytest.mark.parametrize("size", WIDTHS)
def test_a_strategy_in_full(browser: Any, report: Path, keep: Callable[..., None], size: str) -> None:
    opened = Opened(browser, report, WIDTHS[size])
    page, shown = opened.page, opened.page.locator("#explorer .shown")
    assert "quality" in shown.locator("h3").inner_text()
    assert shown.locator(".cell").count() == 20
    assert "No images of it" in shown.inner_text(), "only the fastest has some here"
    page.locator("#explorer button.step").last.focus()
    for _ in range(2):
        page.keyboard.press("Enter")
    assert "fastest" in shown.locator("h3").inner_text()
    assert shown.locator(".grid.few img").count() == 2, "its own images and the unaccelerated ones"
    for named, said in (("copy the code", "winners/fastest.json"), ("copy its JSON", "dato.strategy/")):
        button = shown.get_by_role("button", name=named).element_handle()
        button.click()
        page.wait_for_function("b=>['copied','selected'].includes(b.textContent)", arg=button)
        assert said in shown.inner_text()
    keep(page.locator("#explorer"), f"explorer-{size}")
    # On the figure: what is clicked stays.
    page.locator("#front").scroll_into_view_if_needed()
    at = page.evaluate("(()=>{const g=document.getElementById('front'),l=g._fullLayout,r=g.getBoundingClientRect(),t=g.data.find(t=>t.name==='unaccelerated');return [r.left+l.xaxis._offset+l.xaxis.d2p(t.x[0]),r.top+l.yaxis._offset+l.yaxis.d2p(t.y[0])]})()")
    page.mouse.move(*at)
    page.mouse.click(*at)
    page.wait_for_function("document.querySelector('#explorer h3').textContent.startsWith('unaccelerated')")
    assert page.evaluate("document.querySelector('#explorer select').value") == "r0"
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[size]
    assert opened.complaints == []
    page.close()


@pytest.mark.parametrize("size", WIDTHS)
def test_genes_are_brushed_by_keys_and_by_pointer(browser: Any, report: Path, keep: Callable[..., None], size: str) -> None:
    opened = Opened(browser, report, WIDTHS[size])
    page, kept = opened.page, opened.page.locator("#parallel .kept span")
    everything = page.locator("#parallel polyline").count()
    assert f"{everything} strategies" in kept.inner_text()
    page.get_by_role("slider", name="speedup, lower end").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    count = int(kept.inner_text().split()[0])
    assert 0 < count < everything and "speedup" in kept.inner_text()
    assert page.locator("#parallel polyline.out").count() == everything - count
    assert page.evaluate("document.getElementById('front').data[0].selectedpoints.length") <= count, "the figure keeps the same"
    keep(page.locator("#parallel"), f"parallel-{size}")
    page.keyboard.press("Escape")
    assert f"{everything} strategies" in kept.inner_text()
    box = page.locator("#parallel .catcher").last.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 14)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 14, steps=4)
    page.mouse.up()
    assert "kept: FID" in kept.inner_text()
    page.locator("#parallel button.free").click()
    assert f"{everything} strategies" in kept.inner_text()
    assert opened.complaints == []
    page.close()


def test_a_live_page_keeps_what_the_reader_chose(browser: Any, make_search: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_LOOK_S": 0.1, "LEAST_S": 0.0}.items():
        monkeypatch.setattr(live_report, name, seconds)
    monkeypatch.setattr(live_report.Budget.__init__, "__defaults__", (1e6, 0.0))
    folder, later, said = make_search(tmp_path / "toy", "running", population=20), make_search(tmp_path / "later", population=20), list[str]()
    more = (later / "ledger.jsonl").read_bytes().split(b"\n")
    with (folder / "ledger.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: live_report.watch(folder, folder / "report.html", 0, lambda _: {}, said.append))
        thread.start()
        while not said:
            time.sleep(0.05)
        page, complaints = browser.new_page(viewport={"width": 390, "height": 800}), list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.goto(re.findall(r"http://\S+/", said[0])[0])
        page.select_option("#explorer select", index=3)
        chosen = page.evaluate("document.querySelector('#explorer select').value")
        page.evaluate("dato.parallel.keep([null,null,null,null,null,null,null,[2,3],null])")
        page.evaluate("document.querySelector('#explorer details').open=true")
        page.get_by_text("log FID").click()
        page.locator("#parallel").scroll_into_view_if_needed()
        top = page.evaluate("document.querySelector('#parallel').getBoundingClientRect().top")
        before = page.locator("#parallel polyline").count()
        known = (folder / "ledger.jsonl").read_bytes().count(b"\n")
        held.write(b"\n".join(more[known : known + 21]) + b"\n")
        held.flush()
        until(page, f"document.querySelectorAll('#parallel polyline').length > {before}")
        assert page.evaluate("document.querySelector('#explorer select').value") == chosen
        assert "speedup 2.00x to 3.00x" in page.locator("#parallel .kept span").inner_text()
        assert page.evaluate("document.querySelector('#explorer details').open")
        assert page.evaluate("document.getElementById('front')._fullLayout.yaxis.type") == "log"
        assert abs(page.evaluate("document.querySelector('#parallel').getBoundingClientRect().top") - top) < 3
        fcntl.flock(held, fcntl.LOCK_UN)
        until(page, "document.querySelector('p.live').textContent.startsWith('The search has ended')")
        thread.join(60)
        assert not thread.is_alive()
        assert page.evaluate("document.querySelector('#explorer select').value") == chosen
        assert complaints == []
        page.close()


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
