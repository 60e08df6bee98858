"""Images of winners and of the front: each strategy once, with all that it won."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from launch.deliver import candidate_files, to_log
from launch.samples import candidate_sheet, draw_samples, write_samples
from launch.schedule_picture import schedule_picture
from search.data.datasets import FRESH_OFFSET
from search.ledger import read_ledger
from search.records import SearchRecord
from search.run.pools import InProcessPool


class Painter:
    """An evaluator that paints: as bright as a strategy is long, and a column for each image."""

    def build(self) -> Painter:
        return self

    def samples(self, strategies: list, indices: list[int]) -> list[torch.Tensor]:  # type: ignore[type-arg]
        assert indices[0] == FRESH_OFFSET
        return [torch.full((len(indices), 3, 8, 8), 5 * len(strategies[0]), dtype=torch.uint8)]


@pytest.fixture
def record(make_search: Callable[..., Path], tmp_path: Path) -> SearchRecord:
    made = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    made.winners["at-2x"] = replace(made.winners["fastest"], alias="at-2x")
    return made


def test_a_candidate_that_won_often_is_drawn_and_shown_once(record: SearchRecord, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    samples = draw_samples(InProcessPool(Painter()), record, 20)
    winners = {w.candidate.number for w in record.winners.values()}
    assert set(samples) == {-1, *winners, *(c.number for c, _ in record.front())}
    assert {len(images) for n, images in samples.items() if n in winners or n < 0} == {10}
    assert {len(images) for n, images in samples.items() if n >= 0 and n not in winners} == {4}
    write_samples(folder, record, samples)
    labels = [p.stem.partition("-")[2] for p in sorted((folder / "samples").glob("*.png"))]
    assert labels == ["unaccelerated", "quality", "balanced", "fastest, at-2x"]
    assert Image.open(folder / "samples.png").height == 4 * (16 + 4)
    assert to_log(folder) == [folder / "samples.png"]


def test_what_mlflow_shows_of_a_candidate(record: SearchRecord, tmp_path: Path) -> None:
    folder, candidate = tmp_path / "toy", record.winners["fastest"].candidate
    assert set(candidate_files(folder, record, candidate)) == {"schedule.png", "card.md"}, "no images were drawn"
    write_samples(folder, record, draw_samples(InProcessPool(Painter()), record, 20))
    other = next(c for c, _ in record.front() if c.number not in {w.candidate.number for w in record.winners.values()})
    for shown in (candidate, other):
        files = candidate_files(folder, record, shown)
        assert set(files) == {"schedule.png", "samples.png", "card.md"}
        assert all(files[name].startswith(b"\x89PNG") for name in ("schedule.png", "samples.png"))
        assert str(shown.strategy) in files["card.md"].decode()
        assert sum(map(len, files.values())) < 100_000
    assert "# Strategy fastest" in candidate_files(folder, record, candidate)["card.md"].decode()
    sheet = candidate_sheet(folder, other.number)
    assert sheet is not None
    assert sheet.height == 2 * (16 + 4)


@pytest.mark.parametrize("name", ["paper-b1", "dpmpp-5-limited-guidance", "unipc-4-limited-guidance"])
def test_the_steps_of_any_strategy_are_drawn(name: str, record: SearchRecord) -> None:
    from dato.strategy import Strategy

    candidate = replace(record.candidates[0], strategy=Strategy.load(name))
    assert schedule_picture(record, candidate).startswith(b"\x89PNG")
