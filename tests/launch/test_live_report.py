"""The report of a search that runs: the file that it renews, and the page that is served of it."""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch import live_report
from launch.__main__ import main
from launch.live_report import Budget, LivePage, ReportKeeper, watch
from search.ledger import read_ledger


def no_samples(folder: Path) -> dict[str, bytes]:
    return {}


def test_work_keeps_to_its_share_of_the_time() -> None:
    budget = Budget(share=0.01, least_s=2)
    assert budget.allows(0)
    budget.spent(0.5, 10)
    assert [budget.allows(t) for t in (10, 59.9, 60)] == [False, False, True]
    budget.spent(0.001, 60)
    assert [budget.allows(t) for t in (61.9, 62)] == [False, True]


def test_a_running_search_renews_its_report(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder, said = make_search(tmp_path / "toy", "running"), list[str]()
    keeper = ReportKeeper(folder / "ledger.jsonl", folder / "report.html", said.append, Budget(0.5, 100))
    record, before = read_ledger(folder / "ledger.jsonl"), (folder / "ledger.jsonl").read_bytes()
    keeper.generation_done(record, 1)
    keeper.close()
    text = (folder / "report.html").read_text()
    assert "was not finished when this page was written" in text and "15 strategies measured, 1 failed by then" in text
    assert "found out when the search is over" in text, "what takes longest is left out"
    assert ((folder / "ledger.jsonl").read_bytes(), said) == (before, [])
    (folder / "report.html").unlink()
    keeper.generation_done(record, 2)
    keeper.close()
    assert not (folder / "report.html").exists(), "the budget is spent"


def test_a_report_that_cannot_be_written_does_not_stop_the_search(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder, said = make_search(tmp_path / "toy", "running"), list[str]()
    keeper = ReportKeeper(folder / "ledger.jsonl", tmp_path / "nowhere" / "report.html", said.append, Budget(1e6, 0))
    for generation in (1, 2):
        keeper.generation_done(read_ledger(folder / "ledger.jsonl"), generation)
        keeper.close()
    assert len(said) == 1 and "cannot be renewed while the search runs" in said[0], "once is enough"


@contextmanager
def watched(folder: Path) -> Iterator[tuple[int, list[str], threading.Thread, Any]]:
    """A search that somebody is at work on, and who watches it: port, what is said, thread, and the file that is held."""
    said = list[str]()
    with (folder / "ledger.jsonl").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: watch(folder, folder / "report.html", 0, no_samples, said.append))
        thread.start()
        end = time.monotonic() + 30
        while not said and time.monotonic() < end:
            time.sleep(0.05)
        port = re.search(r"http://127\.0\.0\.1:(\d+)/", said[0])
        assert port, said
        yield int(port[1]), said, thread, held


def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"_LOOK_S": 0.05, "_LAST_S": 5.0, "_ROUND_S": 0.5, "LEAST_S": 0.0}.items():
        monkeypatch.setattr(live_report, name, seconds)
    monkeypatch.setattr(Budget.__init__, "__defaults__", (1e6, 0.0))


@pytest.mark.usefixtures("quick")
def test_the_page_follows_the_search_to_its_end(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy", "running")
    with watched(folder) as (port, said, thread, held):
        status, headers, page = ask(port)
        assert (status, headers["Dato-Search"]) == (200, "running")
        assert b"15 strategies measured, 1 failed by then" in page and b"The search runs: this page follows it." in page
        assert ask(port, **{"If-None-Match": headers["ETag"]})[::2] == (304, b"")
        held.write('{"event":"generation","at":1,"generation":2,"hypervolume":0.5}\n{"event":"gene')  # and half of another line
        held.flush()
        end = time.monotonic() + 30
        while len(said) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert "generation 3/3" in said[1]
        status, changed, _ = ask(port, **{"If-None-Match": headers["ETag"]})
        assert status == 200 and changed["ETag"] != headers["ETag"]
        fcntl.flock(held, fcntl.LOCK_UN)
        end = time.monotonic() + 30
        while ask(port, **{"If-None-Match": changed["ETag"]})[1]["Dato-Search"] != "ended" and time.monotonic() < end:
            time.sleep(0.05)
        thread.join(30)
        assert not thread.is_alive(), "who has the last page needs no server"
        assert "was stopped before its end; its report is" in said[-2] and said[-1] == str(folder / "report.html")
        with pytest.raises(OSError, match="refused"):
            ask(port)


@pytest.mark.usefixtures("quick")
def test_nothing_else_is_served_and_to_nobody_else(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy", "running")
    with watched(folder) as (port, _, thread, held):
        for path in ("/ledger.jsonl", "/../ledger.jsonl", "//etc/passwd", "/winners/", "/?x"):
            assert ask(port, path)[0] == 404
        assert ask(port, Host="evil.example:80")[0] == 403, "another name for this machine is another site's"
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(port, method=method)[0] == 501
        headers = ask(port)[1]
        assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["Cache-Control"] == "no-store"
        addresses = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"}
        assert f"0100007F:{port:04X}" in addresses and f"00000000:{port:04X}" not in addresses
        fcntl.flock(held, fcntl.LOCK_UN)
        thread.join(30)
        assert not thread.is_alive()


def test_a_ledger_that_cannot_be_read_is_said_so(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy", "running")
    page = LivePage(folder, no_samples, Budget(1e6, 0))
    assert page.content().startswith(b"<!doctype html>")
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"event": "result", "number": 999, "measurement": {}}) + "\n")
    with pytest.raises(Exception, match=r"line \d+ cannot be read"):
        page.content()


@pytest.mark.parametrize(("stop", "said"), [("running", "is not running on this machine; the same dato search command continues it"), ("finished", "is finished")])
def test_what_does_not_run_is_not_watched(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: str, said: str) -> None:
    folder = make_search(tmp_path / "toy", stop)
    assert main(["report", f"folder={folder}", "watch=true"]) == 0
    out = capsys.readouterr().out
    assert said in out and "nothing to watch" in out
    assert out.split()[-1] == str(folder / "report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder={toy}", "watch=yes"], "watch is 'yes'; allowed are true and false"),
        (["folder={toy}", "watch=true", "port=80"], "port is '80'; give a number from 1024 to 65535"),
        (["folder={toy}", "port=8080"], "port is of watch=true"),
        (["folder={toy},{other}", "watch=true"], "watch=true is for one search"),
    ],
)
def test_bad_input(make_search: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    toy, other = make_search(tmp_path / "toy", "empty"), make_search(tmp_path / "other", "empty", seed=1)
    assert main(["report", *(a.format(toy=toy, other=other) for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy", "running")
    with watched(folder) as (port, _, thread, held):
        with pytest.raises(Exception, match=rf"port is {port}, which cannot be served on .* give another one"):
            watch(folder, folder / "report.html", port, no_samples, [].append)
        fcntl.flock(held, fcntl.LOCK_UN)
        thread.join(60)
