import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dato.sampler import Sampler
from dato.strategy import FULL, Step, Strategy
from search import old_names
from search.ledger import Ledger, LedgerError, read_ledger, set_aside
from search.measurements import Measurement
from search.records import Candidate

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


def test_what_is_written_together_waits_for_the_disk_once_and_after_it_each_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, waits = open_ledger(tmp_path), []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (waits.append(len(ledger.record.candidates)), sync(file)))
    with ledger.together():
        for number in range(3):
            ledger.ask(Candidate(number=number, generation=0, strategy=Strategy.full(6 + number)))
    assert waits == [3]
    ledger.ask(Candidate(number=3, generation=0, strategy=Strategy.full(3)))
    assert waits == [3, 3]
    assert read_ledger(tmp_path / "ledger.jsonl").candidates == ledger.record.candidates


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


def test_parents_are_kept_and_ledgers_without_them_are_read(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask(CANDIDATE)
    ledger.ask(Candidate(number=1, generation=1, strategy=Strategy.full(6), origin="offspring", parents=(0,)))
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert "parents" not in rows[1]["candidate"]  # as every ask of an older ledger
    assert [c.parents for c in read_ledger(tmp_path / "ledger.jsonl").candidates.values()] == [(), (0,)]


@pytest.mark.parametrize("event", ["result", "promotion", "winner"])
def test_a_result_of_a_candidate_that_was_never_asked_for_is_refused_with_its_line(tmp_path: Path, event: str) -> None:
    open_ledger(tmp_path).close()
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "number": 7, "images": 4, "measurement": {}}) + "\n")
    with pytest.raises(LedgerError, match=f"line 2 cannot be read .a {event} of candidate 7, which was never asked for.; restore the file"):
        read_ledger(tmp_path / "ledger.jsonl")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from dato.sampler import Sampler
from dato.strategy import FULL, Step, Strategy
from search.ledger import Ledger, LedgerError
from search.measurements import Measurement
from search.records import Candidate

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]), "a", {"seed": 0}, {"versions": {}})
ledger.ask(Candidate(number=0, generation=0, strategy=Strategy.uniform(6, 2, prune_ratio=0.3)))
resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1]).stat().st_size + 30, resource.RLIM_INFINITY))
try:
    ledger.result(0, Measurement(fid=1.0, latency_ms=1.0))
except LedgerError as error:
    print(error)
assert 0 not in ledger.record.results
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if len(sys.argv) > 2:
    ledger.result(0, Measurement(fid=2.0, latency_ms=1.0))
"""


@pytest.mark.parametrize("then", [[], ["space is freed"]])
def test_a_full_disk_is_said_and_leaves_a_whole_ledger(tmp_path: Path, then: list[str]) -> None:
    path = tmp_path / "ledger.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path), *then], capture_output=True, text=True, check=True, timeout=120)
    assert f"cannot write {path} (File too large); free some space, then run the same command again" in done.stdout
    record = read_ledger(path)
    assert list(record.candidates) == [0]
    assert [m.fid for m in record.results.values()] == ([2.0] if then else [])
    again = open_ledger(tmp_path)
    if not then:
        again.result(0, Measurement(fid=3.0, latency_ms=1.0))
    assert read_ledger(path).results[0].fid == (2.0 if then else 3.0)


def test_a_search_that_runs_is_not_set_aside(tmp_path: Path) -> None:
    held = open_ledger(tmp_path / "search")
    with pytest.raises(LedgerError, match="in use by another dato search"):
        set_aside(held.path)
    assert held.path.exists()
    held.close()
    aside = set_aside(held.path)
    assert aside.name.startswith("search.before-")
    assert (aside / "ledger.jsonl").exists()
    assert not held.path.parent.exists()


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


def test_the_kept_search_of_an_earlier_version_is_read_by_the_names_of_this_one() -> None:
    path = Path(__file__).parents[2] / "analysis/results/search_paper/ledger.jsonl"
    wrote, config = json.loads(path.read_text().splitlines()[0])["config"], read_ledger(path).config
    assert wrote["search"]["promoted_ranks"] == config["search"]["promote_ranks"]
    assert wrote["cluster"]["deadline_s"] == config["cluster"]["batch_timeout_s"]
    assert wrote["restart"] is config["fresh_start"]
    names = {f"{section}.{key}" if isinstance(keys, dict) else section for section, keys in config.items() for key in (keys if isinstance(keys, dict) else [""])}
    assert not names & set(old_names.KEYS)
    assert config["model"] == wrote["model"], "what was not renamed is as it was"


def test_old_values_have_new_names_too() -> None:
    found = old_names.by_current_names({"search": {"mode": "steady", "operators": "steady"}, "cluster": {"code": "ship"}})
    assert found == {"search": {"mode": "asynchronous", "operators": "steady"}, "cluster": {"code": "upload"}}


WHOLE = Strategy((Step(FULL), Step(1, 0.5, "cond", 1), Step(0, order=2)), sampler="DPM++")  # type: ignore[arg-type]


def test_a_candidate_keeps_its_whole_strategy_and_a_plain_one_is_written_as_ever(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    karras = Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
    asked = [CANDIDATE.strategy, WHOLE, Strategy.full(3, sampler="PLMS"), Strategy(WHOLE.steps), Strategy.full(2, sampler=karras)]
    for number, strategy in enumerate(asked):
        ledger.ask(Candidate(number=number, generation=0, strategy=strategy))
    found = [c.strategy for c in read_ledger(tmp_path / "ledger.jsonl").candidates.values()]
    assert found == asked
    assert [s.digest for s in found] == [s.digest for s in asked]
    rows = [json.loads(line)["candidate"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()[1:]]
    assert rows[0]["steps"] == [[12, 0.3], [1, 0.3]] * 3 and "sampler" not in rows[0]
    assert rows[1]["steps"] == [[12, 0.0], [1, 0.5, "cond", 1], [0, 0.0, "both", 2]]
    assert "sampler" not in rows[3]
    assert rows[4]["sampler"] == karras.document()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("steps", [[12, 0.0, "cond"]], "step 0"),
        ("steps", [[12, 0.0], [1, 0.5, "uncond", 0]], "uncond"),
        ("steps", [[12, 0.0, "both", 3]], "order is 3"),
        ("steps", [[12, 0.0, "both", 0, 1]], "step 0"),
        ("steps", [12, 12], "step 0"),
        ("steps", "FFF", "steps"),
        ("steps", {"0": [12, 0.0]}, "steps"),
        ("steps", None, "steps"),
        ("steps", [], "0 steps"),
        ("sampler", {"scheduler": 5}, "sampler"),
        ("sampler", {"class": "DDIMScheduler"}, "sampler"),
        ("sampler", {"scheduler": "DDIMScheduler", "settings": [1]}, "settings"),
    ],
)
def test_a_broken_strategy_is_refused_with_its_line(tmp_path: Path, key: str, value: object, named: str) -> None:
    ledger = open_ledger(tmp_path)
    ledger.ask(Candidate(number=0, generation=0, strategy=WHOLE))
    ledger.close()
    path = tmp_path / "ledger.jsonl"
    head, ask = path.read_text().splitlines()
    row = json.loads(ask)
    row["candidate"][key] = value
    path.write_text(f"{head}\n{json.dumps(row)}\n")
    with pytest.raises(LedgerError, match="line 2 cannot be read") as caught:
        read_ledger(path)
    assert named in str(caught.value)
