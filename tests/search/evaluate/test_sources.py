import json
from pathlib import Path

import pytest

from dato.card import write_card
from dato.strategy import Strategy, StrategyError
from search.evaluate.sources import read_given
from search.evaluate.variants import strategy_variants
from search.ledger import Ledger
from search.records import Candidate, Measurement


def test_presets_files_and_lists(tmp_path: Path) -> None:
    one, other = Strategy.uniform(10, 3), Strategy.uniform(10, 5, prune_ratio=0.4)
    one.save(tmp_path / "one.json")
    (tmp_path / "both.json").write_text(json.dumps([json.loads(s.to_json()) for s in (one, other)]))
    found = read_given(["paper-b1", str(tmp_path / "one.json"), str(tmp_path / "both.json")], most=10)
    assert found == [Strategy.preset("paper-b1"), one, one, other]


def test_the_front_of_a_search_thinned_evenly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl", "other", {}, {})
    for n in range(9):
        ledger.ask(Candidate(number=n, generation=0, strategy=Strategy.uniform(20, n + 2)))
        ledger.result(n, Measurement(fid=1.0 + n, images=10, latency_ms=100.0 - n))
    ledger.close()
    assert len(read_given([str(tmp_path)], most=20)) == 9
    names = [variant.name for variant in strategy_variants(["paper-b1", str(tmp_path)], 20)]
    assert names == ["paper-b1 (50 steps resampled to 20)", *(f"{tmp_path.name}, candidate {n}" for n in range(8, -1, -1))]
    assert read_given([str(tmp_path)], most=3) == [Strategy.uniform(20, n + 2) for n in (8, 4, 0)], "both ends of the front are kept"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("paper-b1", r"search.warm_start is 'paper-b1'; give a list"),
        ([3], r"search.warm_start is \[3\]; give a list"),
        (["nobody"], "nobody"),
        (["{folder}"], "holds neither a search's ledger.jsonl nor a strategy"),
        (["{folder}/broken.json"], "cannot be read as JSON"),
        (["{folder}/list.json"], "list.json, entry 0"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, sources: object, message: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text('[{"schema": "no"}]')
    if isinstance(sources, list):
        sources = [s.format(folder=tmp_path) if isinstance(s, str) else s for s in sources]
    with pytest.raises(StrategyError, match=message):
        read_given(sources, most=4)  # type: ignore[arg-type]


def test_the_folder_of_a_strategy_handed_over(tmp_path: Path) -> None:
    strategy = Strategy.uniform(10, 3)
    write_card(strategy, tmp_path / "fastest")
    assert read_given([str(tmp_path / "fastest")], most=4) == [strategy]


def test_an_empty_search_gives_nothing_to_begin_with(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.jsonl", "other", {}, {}).close()
    with pytest.raises(StrategyError, match="measured nothing yet"):
        read_given([str(tmp_path)], most=4)
