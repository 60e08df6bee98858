import json

import pytest

from dato import schema
from dato.strategy import Step, Strategy, StrategyError

STRATEGY = Strategy.uniform(4, 2, prune_ratio=0.5).with_provenance(model={"path": "a"}, value=2.0)


def test_the_digest_survives_another_layout_of_the_same_json() -> None:
    data = json.loads(STRATEGY.to_json())
    for text in (json.dumps(data), json.dumps(data, sort_keys=True, indent=7), json.dumps({**data, "provenance": {"value": 2, "model": {"path": "a"}}})):
        assert Strategy.from_json(text) == STRATEGY


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["steps"][1].update(cache_depth=2),
        lambda d: d["steps"].reverse(),
        lambda d: d["provenance"].update(value=3.0),
        lambda d: d.pop("provenance"),
        lambda d: d.update(digest="sha256:00"),
        lambda d: d.update(digest=None),
    ],
)
def test_a_changed_file_is_refused(change: object) -> None:
    data = json.loads(STRATEGY.to_json())
    change(data)  # type: ignore[operator]
    with pytest.raises(StrategyError, match=r"mail was changed after it was written: .* Get it again"):
        Strategy.from_json(json.dumps(data), where="mail")


def test_steps_written_by_hand_need_no_digest() -> None:
    data = json.loads(STRATEGY.to_json())
    data["steps"][0]["prune_ratio"] = 0.3
    del data["digest"], data["provenance"]
    assert Strategy.from_json(json.dumps(data))[0] == Step(12, 0.3)


def test_every_older_schema_becomes_the_present_one() -> None:
    old = {"dato.strategy/0": {"schema": "dato.strategy/0", "cache_depths": [12, 1, 0], "prune_ratios": [0.3, 0.5, 0], "source": "a table"}}
    assert set(old) == set(schema.MIGRATIONS)
    s = Strategy.from_json(json.dumps(old["dato.strategy/0"]))
    assert s.steps == (Step(12, 0.3), Step(1, 0.5), Step(0, 0.0))
    assert s.provenance == {"migrated_from": "dato.strategy/0", "source": "a table"}
    assert json.loads(s.to_json())["schema"] == schema.SCHEMAS[0]  # it holds nothing that needs a later one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune_ratios": [0.3]}, "lists of one length; given 2 and 1 entries"),
        ({"prune_ratios": None}, "lists of one length; given"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"cache_depths": [12, 99]}, "step 1: cache_depth is 99"),
    ],
)
def test_broken_old_files_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        Strategy.from_json(json.dumps({"schema": "dato.strategy/0", "cache_depths": [12, 1], "prune_ratios": [0, 0.5], **changes}))


def test_deeply_nested_and_infinite_notes_are_one_error() -> None:
    nested = "[" * 400 + "]" * 400
    text = f'{{"schema": "dato.strategy/1", "digest": "x", "steps": [], "provenance": {{"a": {nested}, "b": 1e999}}}}'
    with pytest.raises(StrategyError):
        Strategy.from_json(text)
