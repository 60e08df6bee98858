"""The strategies that a search is compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dato.strategy import Strategy
from search.evaluate.shards import Shard
from search.records import UNACCELERATED, Measurement
from tests.search.run.searches import Images, Stops, Toy, search, search_in_steps


def test_baseline_images_that_were_made_are_not_made_again(tmp_path: Path) -> None:
    class StopsAt20(Images):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Shard]:
            if sum(map(len, batches)) + self.made.get(strategies[0].digest, 0) >= 20:
                raise KeyboardInterrupt  # while the second number of images is measured
            return super().run(strategies, batches)

    with pytest.raises(KeyboardInterrupt):
        search_in_steps(tmp_path, StopsAt20())
    again = Images()
    record = search_in_steps(tmp_path, again)
    assert set(record.baselines_at[UNACCELERATED]) == {8, 20, 40}
    calm = Images()
    whole = search_in_steps(tmp_path / "calm", calm)
    full = Strategy.full(8).digest
    assert again.made[full] == calm.made[full] - 8
    assert {i: m.fid for i, m in record.baselines_at[UNACCELERATED].items()} == {i: m.fid for i, m in whole.baselines_at[UNACCELERATED].items()}
    assert not (tmp_path / "kept-baselines").exists()


def test_a_baseline_that_failed_is_tried_again_only_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Stops(4))
    ledger = tmp_path / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    (rival,) = [i for i, x in enumerate(lines) if '"event":"baseline"' in x and '"origin":"rival"' in x]
    row = json.loads(lines[rival])
    lines[rival] = json.dumps({**row, "measurement": Measurement(error="no luck").to_dict()}, separators=(",", ":")) + "\n"
    ledger.write_text("".join(lines))
    for retry in (False, True):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, Stops(4), retry_failed=retry)
        tries = sum('"event":"baseline"' in x and '"origin":"rival"' in x for x in ledger.read_text().splitlines())
        assert tries == 1 + retry


def test_a_rival_that_fails_is_a_row_and_the_search_goes_on(tmp_path: Path) -> None:
    class Sick(Toy):
        def run(self, strategies: Sequence[Strategy], batches: Sequence[Sequence[int]]) -> list[Measurement]:
            if Strategy.uniform(8, 3) in strategies:
                raise RuntimeError("no luck with the rival")
            return super().run(strategies, batches)

    record = search(tmp_path, Sick())
    assert record.finished
    assert "no luck with the rival" in (record.baselines["rival"][1].error or "")
    assert record.baselines[UNACCELERATED][1].ok
