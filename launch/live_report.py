"""A report that follows a search: the file that a running search renews, and the page that ``dato report watch=true`` serves.

Both read the ledger as anybody may, and neither takes more of the machine's time than a small share: latencies are measured on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from analysis.progress import in_use, progress, read_clock
from analysis.report import live_page, write_report
from launch.arguments import ArgumentError, read_search
from search.ledger import read_ledger
from search.records import Candidate, SearchRecord
from search.run import interrupt

HOST = "127.0.0.1"
SHARE = 0.01
"""Of the time, that making pages may take."""
LEAST_S = 2.0
"""Seconds between two pages at least."""
_LOOK_S, _LAST_S, _ROUND_S = 1.0, 20.0, 5.0
"""Seconds between two looks at the ledger, for which the last page waits for those who read, and in which an open page asks at least once."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


class Budget:
    """Keeps work to a share of the time. Pure: it is told the time, in seconds.

    Args:
        share: Of the time, that the work may take.
        least_s: Seconds between two starts at least.
    """

    def __init__(self, share: float = SHARE, least_s: float = LEAST_S) -> None:
        self._share, self._least, self._due = share, least_s, -float("inf")

    def allows(self, now: float) -> bool:
        """Whether the work may be done again."""
        return now >= self._due

    def spent(self, seconds: float, now: float) -> None:
        """It was done, and took so long."""
        self._due = now + max(self._least, seconds / self._share)


class ReportKeeper:
    """Watches a search and renews its ``report.html`` after its generations, in a thread of its own, as far as the budget goes.

    Args:
        ledger: Of the search; read as it is on the disk, so that the thread shares nothing with the driver.
        target: The file.
        say: Told once where it cannot be written: the search goes on.
        budget: Of the time.
    """

    def __init__(self, ledger: Path, target: Path, say: Callable[[str], None], budget: Budget | None = None) -> None:
        self._ledger, self._target, self._say, self._budget = ledger, target, say, budget or Budget()
        self._thread: threading.Thread | None = None
        self._failed = False

    def started(self, record: SearchRecord) -> None:
        """Nothing is there that was not before."""

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """A single candidate changes little."""

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """Renew the file where the budget allows it. Returns at once."""
        if not (self._thread and self._thread.is_alive()) and self._budget.allows(time.monotonic()):
            self._thread = threading.Thread(target=self._write, name="dato report", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for what is being written, so that it replaces nothing later."""
        if self._thread:
            self._thread.join()

    def _write(self) -> None:
        begin = time.thread_time()
        try:
            write_report(read_ledger(self._ledger), self._target, quick=True)
        except Exception as error:  # whatever it is, the search goes on
            if not self._failed:
                self._say(f"warning: {self._target} cannot be renewed while the search runs ({error}); it is written when the search is over")
            self._failed = True
        self._budget.spent(time.thread_time() - begin, time.monotonic())


class LivePage:
    """The page of a search as it is now, made when somebody asks for it, there is something new and the budget allows it.

    Args:
        folder: Of the search.
        read_samples: Gives the images in it, by label.
        budget: Of the time.
    """

    def __init__(self, folder: Path, read_samples: Callable[[Path], dict[str, bytes]], budget: Budget | None = None) -> None:
        self._folder, self._read_samples, self._budget = folder, read_samples, budget or Budget()
        self._lock = threading.Lock()
        self._made: tuple[int, bool] | None = None
        self._content = b""
        self.ended = False
        """Whether the search is over: the next page is the last one."""
        self.tag, self.changed = "", ""
        """Which page it is, and the time of day when it was made."""
        self.last_asked, self.last_page_read = -float("inf"), float("inf")
        """When somebody asked, and when the last page was read first."""

    def content(self) -> bytes:
        """The page. Raises `LedgerError` or `ArgumentError` where the ledger cannot be read."""
        with self._lock:
            self.last_asked = time.monotonic()
            state = ((self._folder / "ledger.jsonl").stat().st_size, self.ended)
            if state != self._made and (self._made is None or self.ended or self._budget.allows(time.monotonic())):
                begin = time.thread_time()
                record = read_search(self._folder)
                self._content = live_page(record, self._read_samples(self._folder / "samples")).encode()
                self._made, self.tag, self.changed = state, f'"{state[0]}-{int(state[1])}"', time.strftime("%H:%M:%S")
                self._budget.spent(time.thread_time() - begin, time.monotonic())
            return self._content

    @property
    def is_last(self) -> bool:
        """Whether the page is that of a search that is over."""
        return self._made is not None and self._made[1]

    def was_read(self) -> None:
        """Somebody has the page."""
        if self.is_last:
            self.last_page_read = min(self.last_page_read, time.monotonic())

    @property
    def is_done(self) -> bool:
        """Whether all who read have had the time to get the last page, or nobody asks any more."""
        now = time.monotonic()
        return now > self.last_asked + _LAST_S or now > self.last_page_read + _ROUND_S


class _Handler(BaseHTTPRequestHandler):
    """Answers GET of ``/`` and nothing else: no other file is looked at."""

    server_version, sys_version, timeout = "dato", "", 30

    def __init__(self, *args: object, page: LivePage, **kwargs: object) -> None:
        self._page = page
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """The page, or that it has not changed."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (HOST, "localhost"):  # a name that somebody else points here would let their pages read this one
            return self._answer(HTTPStatus.FORBIDDEN, f"this page is served to http://{HOST} and localhost alone\n".encode())
        if self.path != "/":
            return self._answer(HTTPStatus.NOT_FOUND, b"there is one page here, /\n")
        try:
            content = self._page.content()
        except (OSError, ValueError, RuntimeError) as error:
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"the search cannot be read now: {error}\n".encode())
        page = self._page
        state = {"ETag": page.tag, "Dato-Search": "ended" if page.is_last else "running", "Dato-Changed": page.changed}
        page.was_read()
        if self.headers.get("If-None-Match") == page.tag:
            return self._answer(HTTPStatus.NOT_MODIFIED, b"", state)
        return self._answer(HTTPStatus.OK, content, {**state, "Content-Type": "text/html; charset=utf-8"})

    def _answer(self, status: HTTPStatus, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Type": "text/plain; charset=utf-8"} | _HEADERS | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are nobody's news."""


def watch(folder: Path, target: Path, port: int, read_samples: Callable[[Path], dict[str, bytes]], say: Callable[[str], None] = print) -> int:
    """Serve the report of a running search on this machine alone, until it ends or a signal comes; then write it.

    Args:
        folder: Of the search.
        target: Where its report is written at the end.
        port: To serve on; 0 for a free one.
        read_samples: Gives the images of a folder, by label.
        say: Told how it goes, a line each.

    Returns:
        The exit code. Raises `ArgumentError` where the port is taken.
    """
    ledger, page = folder / "ledger.jsonl", LivePage(folder, read_samples)
    record = read_search(folder)
    if not _runs(ledger, record):
        state = "is finished" if record.finished else "is not running on this machine; the same dato search command continues it"
        say(f"search {record.search_id} {state}: there is nothing to watch, and its report is")
        say(str(write_report(record, target, read_samples(folder / "samples"))))
        return 0
    try:
        server = ThreadingHTTPServer((HOST, port), partial(_Handler, page=page))
    except OSError as error:
        raise ArgumentError(f"port is {port}, which cannot be served on ({error.strerror}); give another one, or leave it out for a free one") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="dato report", daemon=True).start()
    say(f"search {record.search_id} runs; its report is at http://{HOST}:{server.server_port}/ on this machine, and follows it to its end. Ctrl-C ends this, and not the search")
    try:
        _follow(ledger, record, say)
        page.ended = True
        record = read_search(folder)
        say(f"the search {'is finished' if record.finished else 'was stopped before its end'}; its report is")
        say(str(write_report(record, target, read_samples(folder / "samples"))))
        until = time.monotonic() + _LAST_S
        while time.monotonic() < until and not page.is_done:
            time.sleep(0.2)
            interrupt.check()
        return 0
    except FileNotFoundError:
        raise ArgumentError(f"{ledger} is gone: the search was begun anew, or its folder removed; give the folder of a search that runs") from None
    except KeyboardInterrupt:
        say("stopped; the search goes on, and the same command serves its report again")
        return interrupt.exit_code()
    finally:
        server.shutdown()
        server.server_close()


def _runs(ledger: Path, record: SearchRecord) -> bool:
    """Whether somebody is at work on a search; where the system does not tell, whether it is not finished."""
    held = in_use(ledger)
    return not record.finished if held is None else held


def _follow(ledger: Path, record: SearchRecord, say: Callable[[str], None]) -> None:
    """Return when nobody is at work on the search any more; a line for each generation until then."""
    told, size = len(record.hypervolumes), ledger.stat().st_size
    while _runs(ledger, record):
        time.sleep(_LOOK_S)
        interrupt.check()
        # Reading a long ledger takes a while: only when a generation may be over.
        grown = ledger.stat().st_size
        if grown != size and _closes(ledger, size):
            record = read_search(ledger.parent)
            if len(record.hypervolumes) > told:
                told = len(record.hypervolumes)
                say(progress(record, read_clock(ledger), time.time(), running=True).lines()[0])
        size = grown


def _closes(ledger: Path, since: int) -> bool:
    """Whether a generation, or the search, came to its end in what was written since so many bytes."""
    with ledger.open("rb") as file:
        file.seek(max(0, since - 256))  # where a line was half written
        new = file.read()
    return b'"event":"generation"' in new or b'"event":"finished"' in new
