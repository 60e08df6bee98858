"""The append-only file that a search resumes from: one JSON object a line, on disk before the next step depends on it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import astuple
from io import FileIO
from pathlib import Path
from typing import Any

from dato.files import FileError, decode, parse_json, read_bytes, refuse_target, shown
from dato.strategy import Strategy
from search.measurements import Measurement, is_count, is_number
from search.old_names import by_current_names
from search.records import SCHEMA, Candidate, SearchRecord, Winner, check_notes

MAX_BYTES = 1 << 32
"""Of a ledger: a candidate takes one or two kilobytes."""
_SECTIONS = ("model", "data", "protocol", "space", "search", "cluster", "mlflow", "registry")


class LedgerError(RuntimeError):
    """A ledger that cannot be continued: the message says why and what to do."""


class Ledger:
    """Opens or continues a ledger, for one driver at a time; `record` is what it says so far.

    Raises:
        LedgerError: It belongs to another configuration or version, another driver holds it, or it cannot be written.
    """

    def __init__(self, path: Path, search_id: str, config: dict[str, Any], environment: dict[str, Any]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if why := refuse_target(path):
                raise LedgerError(f"cannot write {path}: {why}; set output to a folder of your own")
            # Unbuffered: what a full disk refused must not be tried again when the file is closed.
            self._held, self._file = False, path.open("a+b", buffering=0)
        except OSError as error:
            raise LedgerError(f"cannot write {path} ({error.strerror}); set output to a folder that you may write") from None
        _lock(self._file, path)
        self._drop_torn_line()
        self.record = read_ledger(path) if path.stat().st_size else SearchRecord(search_id=search_id, config=config, environment=environment)
        if self.record.search_id != search_id:
            raise LedgerError(f"{path} belongs to search {self.record.search_id}, not {search_id}; set another output")
        if not path.stat().st_size:
            self.append("search", schema=SCHEMA, search_id=search_id, config=config, environment=environment)

    def _drop_torn_line(self) -> None:
        # A kill in the middle of a write leaves a last line without its newline: nothing depended on it yet.
        self._file.seek(0)
        whole = self._file.readall()
        end = whole.rfind(b"\n") + 1
        if end != len(whole):
            self._file.truncate(end)

    def append(self, event: str, **data: Any) -> None:
        """Write one event and wait until it is on the disk, then take it into `record`."""
        row = {"event": event, "at": round(time.time(), 3), **data}
        _check_row(self.record, row)  # before it is on the disk, where it could not be read back
        line = json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            if not self._held:
                os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)  # nothing half-written
            raise self._unwritable(error) from None
        _apply(self.record, row)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within the block events wait for the disk together, at its end: nothing may depend on them before."""
        self._held = True
        try:
            yield
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        finally:
            self._held = False

    def _unwritable(self, error: OSError) -> LedgerError:
        return LedgerError(f"cannot write {self.path} ({error.strerror}); free some space, then run the same command again")

    def ask(self, candidate: Candidate) -> None:
        """Note that a candidate will be evaluated."""
        self.append("ask", candidate=_candidate_row(candidate))

    def result(self, number: int, measurement: Measurement) -> None:
        """Note a candidate's measurement."""
        self.append("result", number=number, measurement=measurement.to_dict())

    def retried(self, number: int, measurement: Measurement) -> None:
        """Note a failed candidate's measurement from another try, after the algorithm was told of the failure."""
        self.append("retried", number=number, measurement=measurement.to_dict())

    def promotion(self, number: int, images: int, measurement: Measurement) -> None:
        """Note a candidate's measurement on more images."""
        self.append("promotion", number=number, images=images, measurement=measurement.to_dict())

    def baseline(self, candidate: Candidate, measurement: Measurement) -> None:
        """Note the measurement of a named strategy that the search is compared with."""
        self.append("baseline", candidate=_candidate_row(candidate), measurement=measurement.to_dict())

    def fresh(self, number: int, images: int, measurement: Measurement, plain_ms: tuple[float, float, float] | None = None) -> None:
        """Note a candidate's measurement on fresh images, -1 for the unaccelerated pipeline, and that one's latencies in turn with it."""
        timed = [None if ms != ms else ms for ms in plain_ms] if plain_ms else None
        self.append("fresh", number=number, images=images, measurement=measurement.to_dict(), plain_ms=timed)

    def winner(self, winner: Winner) -> None:
        """Note a winner."""
        measured = {"images": winner.searched.images, "fresh": winner.fresh.to_dict(), "fresh_baseline": winner.fresh_baseline.to_dict()}
        self.append("winner", alias=winner.alias, number=winner.candidate.number, **measured)

    def close(self) -> None:
        """Let another driver have it."""
        self._file.close()


def set_aside(path: Path) -> Path:
    """Rename the folder of a ledger that no driver holds, so that a search begins anew; the folder's new path.

    Raises `LedgerError` where a driver holds it.
    """
    aside = path.parent.with_name(f"{path.parent.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
    if not path.exists():
        return path.parent.rename(aside)
    with path.open("rb", buffering=0) as file:
        _lock(file, path)
        return path.parent.rename(aside)


def _lock(file: FileIO, path: Path) -> None:
    """Take a ledger for this process; closes the file and raises `LedgerError` where another holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        process = holder(path)
        raise LedgerError(f"{path} is in use by another dato search{f' (process {process})' if process else ''}; wait for it, or set another seed or output") from None


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep searches from a ledger. Raises `LedgerError`, with its process, where one is at work on it."""
    with path.open("rb", buffering=0) as file:
        _lock(file, path)
        yield


def holder(path: Path) -> int | None:
    """The process on this machine that holds the ledger, 0 for one that cannot be seen; None for nobody, or where the system does not tell (only Linux does)."""
    try:
        locks = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = path.stat()
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return next((max(0, int(line.split()[4])) for line in locks if "FLOCK" in line and "->" not in line and f" {name} " in line), None)


def read_ledger(path: Path) -> SearchRecord:
    """The record of a search, finished or not. Raises `LedgerError` naming the line that cannot be read."""
    record: SearchRecord | None = None
    try:
        lines = read_bytes(path, MAX_BYTES).split(b"\n")[:-1]
    except FileError as error:
        raise LedgerError(f"cannot read {path} ({error}); give the folder of a search") from None
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(decode(line))
            if not isinstance(row, dict):
                raise ValueError(f"it is {shown(row)}, no object")
            if record is None:
                if row.get("schema") != SCHEMA:
                    raise LedgerError(f"{path} has schema {shown(row.get('schema'))}; this version reads {SCHEMA!r}: set another output")
                _check_head(row)
                record = SearchRecord(search_id=row["search_id"], config=by_current_names(row["config"]), environment=row["environment"])
            else:
                _check_row(record, row)
                _apply(record, row)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise LedgerError(f"{path}, line {number} cannot be read ({why}); restore the file or set another output") from None
    if record is None:
        raise LedgerError(f"{path} is empty; run dato search again")
    return record


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    steps = [[s.cache_depth, s.prune_ratio] if (s.guidance, s.order) == ("both", 0) else list(astuple(s)) for s in candidate.strategy]
    row = {"number": candidate.number, "generation": candidate.generation, "origin": candidate.origin, "steps": steps}
    row |= {"sampler": candidate.strategy.sampler.document()} if candidate.strategy.sampler else {}
    return {**row, "parents": list(candidate.parents)} if candidate.parents else row


def _candidate(row: dict[str, Any]) -> Candidate:
    strategy, parents = Strategy(row["steps"], sampler=row.get("sampler")), tuple(row.get("parents", ()))
    return Candidate(number=row["number"], generation=row["generation"], strategy=strategy, origin=row["origin"], parents=parents)


def _check_head(row: dict[str, Any]) -> None:
    """Refuse a first line that tells of no search. Raises ValueError or KeyError."""
    if not isinstance(row["search_id"], str) or not row["search_id"]:
        raise ValueError(f"search_id is {shown(row['search_id'])}, no text")
    for key in ("config", "environment"):
        if not isinstance(row[key], dict):
            raise ValueError(f"{key} is {shown(row[key])}, no object")
    for section in _SECTIONS:
        if row["config"].get(section) is not None and not isinstance(row["config"][section], dict):
            raise ValueError(f"{section} of its config is {shown(row['config'][section])}, no object")


def _check_row(record: SearchRecord, row: dict[str, Any]) -> None:
    """Refuse an event that cannot have happened, so that whoever reads a record need not. Raises ValueError or KeyError."""
    event = row["event"]
    if event in ("result", "retried", "promotion", "winner", "fresh") and (event, row["number"]) != ("fresh", -1):
        number = row["number"]
        if not is_count(number) or number not in record.candidates:
            raise ValueError(f"a {event} of candidate {shown(number)}, which was never asked for")
        if event != "result" and number not in record.results:
            raise ValueError(f"a {event} of candidate {number}, which has no result")
    for key in {"result": ("measurement",), "retried": ("measurement",), "promotion": ("measurement",), "fresh": ("measurement",), "baseline": ("measurement",), "winner": ("fresh", "fresh_baseline")}.get(event, ()):
        Measurement.from_dict(row[key])
    if event in ("ask", "baseline"):
        candidate = row["candidate"]
        if not is_count(candidate["number"], -1) or not is_count(candidate["generation"], -1) or not isinstance(candidate["origin"], str):
            raise ValueError(f"an {event} of number {shown(candidate['number'])}, generation {shown(candidate['generation'])} and origin {shown(candidate['origin'])}")
        if not isinstance(candidate.get("parents", []), list) or not all(map(is_count, candidate.get("parents", []))):
            raise ValueError(f"parents is {shown(candidate['parents'])}, no list of numbers")
        if event == "ask" and candidate["number"] < 0:
            raise ValueError(f"an ask of candidate {candidate['number']}; they are numbered from 0")
    if event in ("promotion", "fresh") and not is_count(row["images"], 1):
        raise ValueError(f"images is {shown(row['images'])}, no number of images")
    timed = row.get("plain_ms") if event == "fresh" else None
    if timed is not None and not (isinstance(timed, list) and len(timed) == 3 and all(ms is None or (is_number(ms) and ms > 0) for ms in timed)):
        raise ValueError(f"plain_ms is {shown(timed)}, no three times")
    if event == "generation" and not (is_number(row["hypervolume"]) and row["hypervolume"] >= 0):
        raise ValueError(f"hypervolume is {shown(row['hypervolume'])}, no number from 0")
    if event == "winner" and not (isinstance(row["alias"], str) and is_count(row.get("images", 0))):
        raise ValueError(f"a winner of alias {shown(row['alias'])} on {shown(row.get('images'))} images")
    if event == "costs" and not (isinstance(row["table"], dict) and isinstance(row["table"].get("device"), str)):
        raise ValueError(f"table is {shown(row['table'])}, no cost table of a device")
    if event == "notes":
        check_notes(row["notes"])


def _apply(record: SearchRecord, row: dict[str, Any]) -> None:
    match row["event"]:
        case "search":
            pass
        case "ask":
            candidate = _candidate(row["candidate"])
            record.candidates[candidate.number] = candidate
            record.events.append(("ask", candidate.number))
        case "result":
            record.results[row["number"]] = Measurement.from_dict(row["measurement"])
            record.events.append(("result", row["number"]))
        case "retried":
            # What followed from the failure still does: a replay goes through the same candidates.
            record.told.setdefault(row["number"], record.results[row["number"]])
            record.results[row["number"]] = Measurement.from_dict(row["measurement"])
        case "promotion":
            record.promotions.setdefault(row["number"], {})[row["images"]] = Measurement.from_dict(row["measurement"])
        case "baseline":
            candidate, measurement = _candidate(row["candidate"]), Measurement.from_dict(row["measurement"])
            record.baselines_at.setdefault(candidate.origin, {})[measurement.images] = measurement
            if candidate.origin not in record.baselines or measurement.images >= record.baselines[candidate.origin][1].images:
                record.baselines[candidate.origin] = (candidate, measurement)
        case "notes":
            record.notes |= row["notes"]
        case "costs":
            record.costs = row["table"]
        case "generation":
            record.hypervolumes.append(row["hypervolume"])
        case "fresh":
            record.fresh.setdefault(row["number"], {})[row["images"]] = Measurement.from_dict(row["measurement"])
            if row["plain_ms"]:
                median, low, high = (float("nan") if ms is None else float(ms) for ms in row["plain_ms"])
                record.fresh_plain_ms[row["number"], row["images"]] = (median, low, high)
        case "winner":
            number, fresh, plain = row["number"], *(Measurement.from_dict(row[key]) for key in ("fresh", "fresh_baseline"))
            searched = record.promotions.get(number, {}).get(row.get("images", 0), record.results[number])
            record.winners[row["alias"]] = Winner(alias=row["alias"], candidate=record.candidates[number], searched=searched, fresh=fresh, fresh_baseline=plain)
        case "finished":
            record.finished = True
        case other:
            raise ValueError(f"unknown event {shown(other)}")
