import hashlib
import json
from pathlib import Path

import pytest

from dato.card import FILES, card_json, card_markdown, write_card
from dato.strategy import Step, Strategy, StrategyError
from search.evaluate.sources import read_given

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


def test_a_card_says_guidance_orders_and_what_the_unaccelerated_pipeline_ran_with(tmp_path: Path) -> None:
    # The first step's order is without effect: nothing is there to reuse.
    steps = (Step(12, 0, "both", 2), Step(12, 0.5), Step(12, 0, "cond"), Step(0, 0, "cond", 1), Step(1, 0.3, "cond", 2))
    ran = {"scheduler": "DPMSolverMultistepScheduler", "steps": 5, "guidance": 7.5, "unaccelerated": {"scheduler": "PNDMScheduler", "steps": 20}}
    strategy = Strategy(steps, {**MEASURED.provenance, "sampler": ran}, sampler="DPM++")
    write_card(strategy, tmp_path)
    text = (tmp_path / "card.md").read_text()
    for said in ("5 steps of DPM++", "3 of them compute the conditional half of guidance alone", "2 of them extrapolate", "F++FF'0'+1'++", "' the conditional half alone",
                 "sampler: DPMSolverMultistepScheduler 5 steps, guidance 7.5", "unaccelerated: PNDMScheduler 20 steps", "num_inference_steps=5", "puts it back"):  # fmt: skip
        assert said in text
    summary = json.loads((tmp_path / "card.json").read_text())["summary"]
    assert (summary["steps"], summary["conditional_half_alone"], summary["extrapolated"], summary["sampler"]) == (5, 3, 2, ran)
    for name in FILES:
        found = Strategy.load(tmp_path / name)
        assert (found, found.provenance) == (strategy, strategy.provenance)
    (tmp_path / "card.md").write_text(text.replace("3 of them compute", "1 of them compute"))
    with pytest.raises(StrategyError, match=r"was changed after it was written"):
        Strategy.load(tmp_path / "card.md")


@pytest.mark.parametrize(
    ("strategy", "digest"),
    [(MEASURED, "340a2aee3258e7af"), (Strategy.preset("paper-b1"), "df07587bcdc61931"), (Strategy.full(10, sampler="DPM++"), "e0e5751db21dbea6")],
)  # fmt: skip
def test_a_card_of_depths_and_ratios_alone_is_what_it_was_before_there_was_more_to_say(strategy: Strategy, digest: str) -> None:
    # A card that is read is compared with the one that is written today: a change of its text would refuse all that are there.
    assert hashlib.sha256((card_json(strategy) + card_markdown(strategy)).encode()).hexdigest()[:16] == digest


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
    with pytest.raises(StrategyError, match=r"was changed after it was written.*'summary.latency' is not what its strategy says"):
        Strategy.load(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("title",), "Strategy fastest for another model"), (("steps",), "F" * 6), (("use",), "import os"), (("reproduce",), "rm -rf /"), (("summary", "calls_by_depth"), {"full": 1, "1": 5}),
        (("summary", "steps"), 7), (("summary", "model"), {"name": "x"}), (("summary", "more"), "1"), (("summary",), []), (("extra",), 1), (("title",), None), (("summary", "quality"), None),
    ],
)  # fmt: skip
def test_a_json_card_says_only_what_follows_from_its_strategy(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    write_card(MEASURED, tmp_path)
    whole = json.loads((tmp_path / "card.json").read_text())
    holder = whole[path[0]] if len(path) > 1 else whole
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    (tmp_path / "card.json").write_text(json.dumps(whole))
    with pytest.raises(StrategyError, match=rf"was changed after it was written.*{'.'.join(path)}' is not what its strategy says; .* give strategy.json"):
        Strategy.load(tmp_path / "card.json")
    (tmp_path / "list.json").write_text(json.dumps([whole]))  # and as an entry of a list to begin a search with
    with pytest.raises(StrategyError, match=r"entry 0 was changed after it was written"):
        read_given([str(tmp_path / "list.json")], 8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("5.12x faster", "9.12x faster"), ("-0.50 (95 %", "-4.50 (95 %"), ("| 100.00 |", "| 10.00 |"), ("500 images", "50000 images"), ("2 computed in full", "1 computed in full"), ("`F11F11`", "`F00F00`"),
        ("owner/m", "owner/other"), ("num_inference_steps=6", "num_inference_steps=9"), ("dato search seed=0\n", "rm -rf /\n"), ("## Use it", "Endorsed by all.\n\n## Use it"), ("- device: a GPU\n", ""),
    ],
)  # fmt: skip
def test_a_markdown_card_says_only_what_follows_from_its_strategy(tmp_path: Path, old: str, new: str) -> None:
    write_card(MEASURED, tmp_path)
    before, fence, block = (tmp_path / "card.md").read_text().partition("## The strategy")
    assert old in before
    (tmp_path / "card.md").write_text(before.replace(old, new, 1) + fence + block)
    with pytest.raises(StrategyError, match=r"was changed after it was written.* is not what its strategy says; .* give strategy.json"):
        Strategy.load(tmp_path / "card.md")


@pytest.mark.parametrize("name", ["card.json", "card.md"])
def test_a_card_of_an_older_strategy_schema_is_refused(tmp_path: Path, name: str) -> None:
    write_card(MEASURED, tmp_path)
    old = {"schema": "dato.strategy/0", "cache_depths": [12, 0, 0, 0, 0, 0], "prune_ratios": [0.0] * 6}
    text = (tmp_path / name).read_text()
    if name == "card.json":
        text = json.dumps({**json.loads(text), "strategy": old})
    else:
        text = text[: text.index("```json")] + f"```json\n{json.dumps(old)}\n```\n"
    (tmp_path / name).write_text(text)
    with pytest.raises(StrategyError, match="has no digest, so it was changed after it was written"):
        Strategy.load(tmp_path / name)


def test_another_layout_of_a_card_changes_nothing(tmp_path: Path) -> None:
    for strategy in (MEASURED, Strategy.preset("paper-b1"), Strategy.full(3), Strategy.full(10, sampler="DPM++")):
        write_card(strategy, tmp_path, replace=True)
        whole = json.loads((tmp_path / "card.json").read_text())
        (tmp_path / "card.json").write_text(json.dumps(whole, sort_keys=True))
        (tmp_path / "card.md").write_bytes((tmp_path / "card.md").read_text().replace("\n", "\r\n").encode())
        for name in ("card.json", "card.md"):
            found = Strategy.load(tmp_path / name)
            assert (found, found.provenance) == (strategy, strategy.provenance)


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    write_card(MEASURED, tmp_path)
    for name in FILES:
        path = tmp_path / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
        assert Strategy.load(path) == MEASURED
