import json
from pathlib import Path

import pytest

from dato.card import FILES, card_json, card_markdown, write_card
from dato.strategy import Strategy, StrategyError

MEASURED = Strategy.uniform(6, 3, prune_ratio=0.5).with_provenance(
    alias="fastest",
    validated=True,
    model={"name": "m", "path": "owner/m", "dtype": "float16", "weights": {"float16": "ab" * 32}},
    sampler={"scheduler": "PNDMScheduler", "steps": 6, "guidance": 7.5},
    quality={"metric": "FID, inception features", "value": 20.5, "baseline": 21.0, "difference": -0.5, "difference_interval": [-1.25, 0.25], "images": 500, "reference": "photos"},
    latency={"value": 100.0, "baseline": 512.0, "speedup": 5.12, "speedup_range": [4.9, 5.3], "unit": "ms per image", "device": "a GPU", "batch": 8},
    reproduce="dato search seed=0",
)  # fmt: skip


def test_all_three_files_give_the_strategy_back(tmp_path: Path) -> None:
    write_card(MEASURED, tmp_path / "card")
    assert sorted(p.name for p in (tmp_path / "card").iterdir()) == sorted(FILES)
    for name in FILES:
        found = Strategy.load(tmp_path / "card" / name)
        assert found == MEASURED
        assert found.provenance == MEASURED.provenance
    (tmp_path / "card" / "strategy.json").unlink()
    assert Strategy.load(tmp_path / "card") == MEASURED


def test_the_card_says_what_a_user_asks(tmp_path: Path) -> None:
    text = card_markdown(MEASURED)
    for said in ("5.12x faster (batches: 4.90 .. 5.30)", "-0.50 (95 %: -1.25 .. 0.25)", "500 images", "owner/m", "float16 abababab", "PNDMScheduler 6 steps, guidance 7.5",
                 "a GPU", "dato.accelerate(pipe, strategy)", "num_inference_steps=6", "dato search seed=0", "never saw"):  # fmt: skip
        assert said in text
    summary = json.loads(card_json(MEASURED))
    assert summary["schema"] == "dato.card/1"
    assert summary["summary"]["calls_by_depth"] == {"full": 2, "1": 4}
    assert summary["summary"]["latency"]["speedup"] == 5.12


def test_a_card_without_measurements_says_so() -> None:
    text = card_markdown(Strategy.preset("paper-b1"))
    assert "Not measured" in text
    assert "arXiv 2501.00375, Table 6" in text


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    write_card(MEASURED, tmp_path)
    write_card(MEASURED, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(StrategyError, match=r"is another strategy; give another folder, or replace=true"):
        write_card(Strategy.full(3), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_card(Strategy.full(3), tmp_path, replace=True)
    assert Strategy.load(tmp_path / "card.md") == Strategy.full(3)


def test_a_tampered_card_is_refused(tmp_path: Path) -> None:
    write_card(MEASURED, tmp_path)
    for name in ("card.json", "card.md"):
        path = tmp_path / name
        path.write_text(path.read_text().replace('"value": 20.5', '"value": 10.5'))
        with pytest.raises(StrategyError, match="was changed after it was written"):
            Strategy.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# A readme\n\nno strategy here\n", "Markdown with 0 json blocks"),
        ('{"schema": "dato.card/7"}', "has schema 'dato.card/7'; this version reads 'dato.card/1'"),
        ('{"schema": "dato.card/1"}', "a card without its strategy"),
        ('{"schema": "dato.card/1", "strategy": {"schema": "x"}}', "has schema 'x'"),
    ],
)
def test_what_is_no_card(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card").write_text(text)
    with pytest.raises(StrategyError, match=message):
        Strategy.load(tmp_path / "card")


@pytest.mark.parametrize("name", ["card.json", "card.md"])
def test_a_card_whose_digest_was_taken_away_is_refused(tmp_path: Path, name: str) -> None:
    write_card(MEASURED, tmp_path)
    path = tmp_path / name
    digest = next(line for line in path.read_text().splitlines() if '"digest"' in line)
    path.write_text(path.read_text().replace(digest + "\n", "").replace('"value": 20.5', '"value": 10.5'))
    with pytest.raises(StrategyError, match=r"has no digest, so it was changed after it was written; get it again .* or give the steps alone"):
        Strategy.load(path)


def test_a_card_whose_summary_says_something_else_is_refused(tmp_path: Path) -> None:
    write_card(MEASURED, tmp_path)
    whole = json.loads((tmp_path / "card.json").read_text())
    whole["summary"]["latency"]["speedup"] = 50.0
    (tmp_path / "card.json").write_text(json.dumps(whole))
    with pytest.raises(StrategyError, match="its summary's latency is not what its strategy holds"):
        Strategy.load(tmp_path / "card.json")


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    write_card(MEASURED, tmp_path)
    for name in FILES:
        path = tmp_path / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
        assert Strategy.load(path) == MEASURED
