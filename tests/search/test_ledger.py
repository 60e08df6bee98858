from pathlib import Path

import pytest

from dato.strategy import Strategy
from search.ledger import Ledger, LedgerError, read_ledger
from search.records import Candidate, Measurement

CANDIDATE = Candidate(number=0, generation=0, strategy=Strategy.uniform(6, 2, prune_ratio=0.3))


def open_ledger(folder: Path, search_id: str = "a") -> Ledger:
    return Ledger(folder / "ledger.jsonl", search_id, {"seed": 0}, {"versions": {}})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask(CANDIDATE)
    ledger.result(0, Measurement(fid=1.25, latency_ms=3.5, images=4, parts_ms={"unet": 3.0}, calls_by_depth={"1": 3}))
    ledger.ask(Candidate(number=1, generation=0, strategy=Strategy.full(6)))
    ledger.result(1, Measurement(error="it broke"))
    record = read_ledger(tmp_path / "ledger.jsonl")
    assert record.candidates == ledger.record.candidates
    assert record.results[0].to_dict() == ledger.record.results[0].to_dict()
    assert record.results[1].error == "it broke"
    assert record.results[1].fid != record.results[1].fid
    assert [c.number for c, _ in record.evaluated()] == [0]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask(CANDIDATE)
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"result","numb')
    again = open_ledger(tmp_path)
    assert path.read_bytes() == whole
    again.result(0, Measurement(fid=1.0, latency_ms=1.0))
    assert read_ledger(path).results[0].fid == 1.0


def test_a_kill_before_the_first_line_is_recovered(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b'{"event":"sea')
    assert open_ledger(tmp_path).record.search_id == "a"


def test_two_drivers_on_one_ledger_are_refused(tmp_path: Path) -> None:
    held = open_ledger(tmp_path)
    with pytest.raises(LedgerError, match="in use by another dato search"):
        open_ledger(tmp_path)
    held.close()
    open_ledger(tmp_path).close()


def test_a_ledger_of_another_search_is_refused(tmp_path: Path) -> None:
    open_ledger(tmp_path, "a").close()
    with pytest.raises(LedgerError, match="belongs to search a, not b"):
        open_ledger(tmp_path, "b")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask(CANDIDATE)
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ask"', b'"ack"'))
    with pytest.raises(LedgerError, match="line 2 cannot be read"):
        read_ledger(path)


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="set output to a folder that you may write"):
        Ledger(tmp_path / "file" / "ledger.jsonl", "a", {}, {})


def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    ledger = open_ledger(tmp_path)
    with full.open("wb", buffering=0) as device:
        ledger._file.close()
        ledger._file = device
        with pytest.raises(LedgerError, match="free some space"):
            ledger.ask(CANDIDATE)
    assert 0 not in ledger.record.candidates
