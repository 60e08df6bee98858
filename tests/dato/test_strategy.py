import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dato.strategy import FULL, Step, Strategy, StrategyError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "paper_tables.json"


def test_a_uniform_strategy() -> None:
    s = Strategy.uniform(steps=7, interval=3, depth=1, prune_ratio=0.5)
    assert str(s) == "F11F11F"
    assert s[0].cache_depth == FULL
    assert s[1] == Step(1, 0.5)
    assert len(s) == 7
    assert s.calls_by_depth == {12: 3, 1: 4}


@pytest.mark.parametrize("depth", [-1, 1000, 1.0, True, "1", None])
def test_wrong_depths(depth: object) -> None:
    with pytest.raises(StrategyError, match="allowed are the integers 0 to 999"):
        Step(depth)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [-0.1, 0.75, 1, 10**400, float("nan"), float("inf"), "0.3", True])
def test_wrong_ratios(ratio: object) -> None:
    with pytest.raises(StrategyError, match=r"allowed is 0 <= prune_ratio < 0.75"):
        Step(1, ratio)  # type: ignore[arg-type]


def test_wrong_lengths() -> None:
    with pytest.raises(StrategyError, match="0 steps; allowed are 1 to 1000"):
        Strategy(())
    with pytest.raises(StrategyError, match="steps is 0"):
        Strategy.full(0)
    with pytest.raises(StrategyError, match="interval is 0"):
        Strategy.uniform(10, 0)


def test_json_goes_round() -> None:
    s = Strategy.uniform(5, 2, prune_ratio=0.3).with_provenance(model="a", value=1.5)
    again = Strategy.from_json(s.to_json())
    assert again == s
    assert again.provenance == {"model": "a", "value": 1.5}
    assert again.digest == s.digest
    assert json.loads(s.to_json())["steps"][0] == {"cache_depth": 12, "prune_ratio": 0.3}


def test_the_digest_tells_strategies_apart() -> None:
    digests = {Strategy.uniform(6, i, prune_ratio=r).digest for i in (2, 3) for r in (0.0, 0.3)}
    assert len(digests) == 4
    assert Strategy.full(6).with_provenance(x=1).digest == Strategy.full(6).digest
    assert Strategy((Step(1, -0.0),)).digest == Strategy((Step(1, 0.0),)).digest
    assert Strategy.full(2).digest == "d02d98bca8e4cef9"  # the same in every version: ledgers hold digests


def test_canonical_drops_ratios_without_effect() -> None:
    one, other = Strategy((Step(12, 0.3), Step(0, 0.5))), Strategy((Step(12, 0.3), Step(0, 0.7)))
    assert one != other
    assert one.canonical() == other.canonical()
    assert one.canonical()[0] == Step(12, 0.3)
    assert Strategy((Step(12, 0.3), Step(1, 0.5))).canonical(inert=(0, 1))[1] == Step(1, 0.0)


def test_resample_keeps_the_shape() -> None:
    s = Strategy.preset("paper-b1")
    assert s.resample(50) == s
    assert s.resample(100).resample(50) == s
    assert str(Strategy((Step(12), Step(1))).resample(6)) == "FFF111"
    assert len(s.resample(20)) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema 'list'"),
        ("{}", "has schema None; this version reads 'dato.strategy/1'"),
        ('{"schema": "dato.strategy/9", "steps": []}', "has schema 'dato.strategy/9'"),
        ('{"schema": "dato.strategy/1", "steps": []}', "0 steps"),
        ('{"schema": "dato.strategy/1", "steps": {}}', "steps must be a list"),
        ('{"schema": "dato.strategy/1", "steps": [{"cache_depth": 13, "prune_ratio": 0}]}', "step 0: cache_depth is 13"),
        ('{"schema": "dato.strategy/1", "steps": [{"cache_depth": 1, "prune_ratio": 0.9}]}', "step 0: prune_ratio is 0.9"),
        ('{"schema": "dato.strategy/1", "steps": [{"cache_depth": 1}]}', "expected an object with cache_depth and prune_ratio"),
        ('{"schema": "dato.strategy/1", "steps": [{"cache_depth": 1, "prune_ratio": NaN}]}', "every number must be finite"),
        ('{"schema": "dato.strategy/1", "steps": [], "extra": 1}', r"unknown keys \['extra'\]"),
        ("[" * 100_000, "nested deeper than 64"),
        ('{"schema": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"schema": "dato.strategy/1", "steps": [{"cache_depth": 1, "prune_ratio": 1e999}]}', "every number must be finite"),
        ('{"schema": "dato.strategy/1", "steps": [], "steps": []}', "has the key 'steps' twice"),
        ('{"schema": "dato.strategy/1", "steps": [], "provenance": {"a": ' + "9" * 400 + "}}", "an integer of more than 64 bits"),
    ],
)
def test_broken_files_are_refused_with_one_message(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(StrategyError, match=message) as caught:
        Strategy.load(path)
    assert "s.json" in str(caught.value) or "finite" in str(caught.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="or a preset: paper-b1"):
        Strategy.load("paper-b9")
    (tmp_path / "huge.json").write_text(" " * (2 << 20))
    with pytest.raises(StrategyError, match="more than the 1048576 bytes"):
        Strategy.load(tmp_path / "huge.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StrategyError, match="cannot read a strategy"):
        Strategy.load(tmp_path / "binary.json")


def test_save_and_load(tmp_path: Path) -> None:
    s = Strategy.uniform(4, 2, prune_ratio=0.5)
    s.save(tmp_path / "strategy.json")
    assert Strategy.load(tmp_path / "strategy.json") == s
    assert Strategy.load(tmp_path) == s
    assert [p.name for p in tmp_path.iterdir()] == ["strategy.json"]
    with pytest.raises(StrategyError, match="give a writable path"):
        s.save(tmp_path / "missing" / "s.json")


def test_paper_b1_in_the_order_of_execution() -> None:
    assert str(Strategy.preset("paper-b1")) == "011111F11111111100F110F1011111F0011111111F11111111"
    assert Strategy.preset("paper-b1-reversed").steps == Strategy.preset("paper-b1").steps[::-1]
    with pytest.raises(StrategyError, match="no preset is named 'b1'; there are paper-b1"):
        Strategy.preset("b1")


def test_paper_b1_equals_table_6() -> None:
    if not SHARED.exists():
        pytest.skip(f"the paper's tables are not at {SHARED}")
    table = json.loads(SHARED.read_text())["table6_ours_b1"]
    b1 = Strategy.preset("paper-b1")
    ratios = table[next(key for key in table if "ratio" in key)]
    rows = list(zip(table["timestep_label"], table["cache_id"], ratios, strict=True))
    assert len(rows) == 50
    assert all(b1[label] == Step(depth, ratio) for label, depth, ratio in rows)


@pytest.mark.parametrize("place", [".", "file"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "strategy.json"
    Strategy.full(2).save(path)
    (tmp_path / "file").write_text("not a folder")

    def no_space(self: Path, text: str, **_: object) -> int:
        self.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", no_space)
    with pytest.raises(StrategyError, match=r"cannot write the strategy to .*; give a writable path"):
        Strategy.full(3).save(tmp_path / place / "strategy.json")
    assert Strategy.load(path) == Strategy.full(2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "strategy.json"]


def test_numbers_of_numpy_and_pairs_are_what_they_say() -> None:
    assert Step(np.int64(12), np.float32(0.3)) == Step(12, 0.3)
    assert Strategy(((12, 0.5), [np.int8(1), np.float16(0.25)])) == Strategy((Step(12, 0.5), Step(1, 0.25)))
    assert Strategy.uniform(np.int64(6), np.int32(2), np.uint8(1), np.float64(0.5)) == Strategy.uniform(6, 2, 1, 0.5)
    assert Strategy.full(4).resample(np.int64(2)) == Strategy.full(2)
    assert Strategy((Step(np.int64(1), np.float32(0.3)),)).digest == Strategy((Step(1, 0.3),)).digest
    noted = Strategy.full(2).with_provenance(a=np.float32(0.5), b=[np.int64(3)])
    assert Strategy.from_json(noted.to_json()).provenance == {"a": 0.5, "b": [3]}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Strategy((12,)), ("step 0 is 12", "dato.Step(12, 0.5)")),
        (lambda: Strategy(((12, 0.5, 1),)), ("step 0 is (12, 0.5, 1) of type tuple", "dato.Step")),
        (lambda: Strategy(((1000, 0.5),)), ("step 0: cache_depth is 1000",)),
        (lambda: Strategy("F11"), ("steps is 'F11'", "dato.Strategy.load")),
        (lambda: Strategy(None), ("steps is None",)),
        (lambda: Strategy({0: Step(12)}), ("of type dict",)),
        (lambda: Strategy((Step(12),), "a note"), ("provenance is 'a note'", "mapping")),
        (lambda: Strategy.load(3), ("3 of type int", "a JSON file or a card", "paper-b1")),
        (lambda: Strategy.load(None), ("None of type NoneType",)),
        (lambda: Strategy.preset(3), ("3 is of type int", "paper-b1")),
        (lambda: Strategy.from_json(3), ("3 of type int", "JSON text")),
        (lambda: Step(np.array([1])), ("array([1]) of type ndarray", "integers 0 to 999")),
        (lambda: Step(1, 10**5000), ("prune_ratio is a huge int",)),
        (lambda: Strategy.full(np.float64(3.0)), ("of type float64", "integers 1 to 1000")),
        (lambda: Strategy.full(3).with_provenance(a={1}).to_json(), ("{1}, a set", "lists and mappings")),
        (lambda: Strategy.full(3).with_provenance(a=float("nan")).to_json(), ("nan", "finite")),
    ],
)
def test_what_is_no_strategy_is_refused_with_type_value_and_fix(make: Callable[[], object], named: tuple[str, ...]) -> None:
    with pytest.raises(StrategyError) as caught:
        make()
    assert all(words in str(caught.value) for words in named), str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no /dev/null here")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(StrategyError, match="/dev/null: it is a device, not a file; give the path of a file"):
        Strategy.full(2).save("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_a_strategy_prints_in_a_line_and_its_summary_is_a_table() -> None:
    strategy = Strategy.preset("paper-b1").with_provenance(environment={"a": "x" * 5000})
    shown = repr(strategy)
    assert len(shown) < 300
    assert all(words in shown for words in ("50 steps", str(strategy), "0.3 to 0.7", strategy.digest, "arXiv 2501.00375"))
    table = Strategy((Step(12, 0.5), Step(12, 0.5), Step(1), Step(0, 0.3))).summary().splitlines()
    assert [line.split() for line in table[1:]] == [
        ["steps", "cache", "depth", "prune", "ratio"], ["0-1", "full", "0.5"], ["2", "depth", "1", "0"], ["3", "replayed", "-"],
    ]  # fmt: skip
    assert "x" * 10 not in strategy.summary()


def test_guidance_and_order_are_of_a_step_and_survive_every_form() -> None:
    strategy = Strategy(((12, 0.0), (0, 0.3, "cond", 1), Step(1, 0.5, "both", 2), Step(2, order=1)))
    assert strategy.steps[1] == Step(0, 0.3, guidance="cond", order=1)
    assert str(strategy) == "F0'+1++2+"
    assert Strategy.from_json(strategy.to_json()) == strategy
    assert json.loads(strategy.to_json())["schema"] == "dato.strategy/2"
    plain = Strategy(tuple(Step(s.cache_depth, s.prune_ratio) for s in strategy))
    assert json.loads(plain.to_json())["schema"] == "dato.strategy/1"
    assert len({strategy.digest, plain.digest, Strategy(strategy.steps[:2]).digest}) == 3
    assert "guidance" in strategy.summary() and "guidance" not in plain.summary()


def test_canonical_form_drops_guidance_and_order_where_they_have_no_effect() -> None:
    given = Strategy((Step(0, 0.0, "cond", 2), Step(12, 0.3, "cond", 1), Step(0, 0.3, "both", 1)))
    assert given.canonical() == Strategy((Step(0, 0.0, "cond"), Step(12, 0.3, "cond"), Step(0, order=1)))
    assert given.canonical(guided=False) == Strategy((Step(0), Step(12, 0.3), Step(0, order=1)))


@pytest.mark.parametrize("wrong", [{"guidance": "none"}, {"guidance": 1}, {"order": 3}, {"order": -1}, {"order": True}, {"order": 1.5}])
def test_a_guidance_or_order_that_cannot_be_is_refused_with_what_can(wrong: dict[str, object]) -> None:
    (key,) = wrong
    with pytest.raises(StrategyError, match=key) as caught:
        Step(1, **wrong)  # type: ignore[arg-type]
    assert "allowed" in str(caught.value)


def test_schema_1_knows_no_guidance() -> None:
    text = '{"schema": "dato.strategy/1", "steps": [{"cache_depth": 12, "prune_ratio": 0.0, "guidance": "cond"}]}'
    with pytest.raises(StrategyError, match=r"dato\.strategy/2"):
        Strategy.from_json(text)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("0 F", "F F"),  # nothing is kept before a first call
        ("0' 1' 0", "F' 1' F"),  # nor of the unconditional half before it was computed
        ("F' 1 0", "F' F 0"),
        ("F 0' 0", "F 0' 0"),
        ("F 0++ 1+", "F 0 1"),  # an order needs as many values, of what is reused
        ("F 1 0++ 1+", "F 1 0+ 1"),
        ("F F 0++ 1++", "F F 0+ 1+"),
        ("F' F 0'++ 0++", "F' F 0'+ 0+"),
    ],
)
def test_with_a_sampler_of_one_call_a_step_what_cannot_be_otherwise_is_written_so(given: str, canonical: str) -> None:
    def steps(text: str) -> tuple[Step, ...]:
        return tuple(Step(FULL if w[0] == "F" else int(w[0]), 0.0, "cond" if "'" in w else "both", w.count("+")) for w in text.split())

    for sampler in ("DDIM", "DPM++", "Euler", "UniPC"):
        assert Strategy(steps(given), sampler=sampler).canonical() == Strategy(steps(canonical), sampler=sampler)
    for sampler in (None, "PLMS", "HeunDiscreteScheduler"):  # these call the model more than once at a step
        assert Strategy(steps("0 F"), sampler=sampler).canonical() == Strategy(steps("0 F"), sampler=sampler)


def test_a_first_call_keeps_its_ratio_where_it_computes_anything() -> None:
    assert Strategy((Step(1, 0.5), Step(1, 0.5)), sampler="DDIM").canonical((0, 1)) == Strategy((Step(FULL, 0.5), Step(1)), sampler="DDIM")
    assert Strategy((Step(0, 0.5), Step(1, 0.5)), sampler="DDIM").canonical() == Strategy((Step(FULL), Step(1, 0.5)), sampler="DDIM")
