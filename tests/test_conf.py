"""Every configuration file composes, and says what each key means."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dato.strategy import Step, Strategy
from launch.__main__ import main
from launch.config import CONF, ConfigError, SearchConfig, build, compose_config
from launch.keys import KEYS, KeyValueError, check_keys
from search.optimize.asynchronous import AsynchronousNsga2

GIVEN = {
    "folder": ["data.prompts=p.txt", "data.images=photos"],
    "imagenet": ["data.images=photos"],
    "coco30k": ["data.captions=c.json", "data.images=photos"],
    "coco5k": ["data.captions=c.json", "data.images=photos"],
}
"""What each data set needs to be told."""


@pytest.mark.parametrize("group", ["model", "data", "cluster"])
def test_every_choice_composes(group: str) -> None:
    for path in sorted((CONF / group).glob("*.yaml")):
        overrides = [f"{group}={path.stem}", *(GIVEN.get(path.stem, []) if group == "data" else [])]
        built = build(compose_config("search", overrides))
        assert compose_config("evaluate", overrides)["protocol"]["batch"]
        assert built.search_id


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "model").glob("*.yaml")))
@pytest.mark.parametrize("config", ["search", "evaluate"])
def test_a_model_comes_with_data_and_features_that_fit_it(name: str, config: str) -> None:
    def chosen(*overrides: str) -> tuple[str, str]:
        raw = compose_config(config, [f"model={name}", *overrides])
        return raw["data"]["kind"], raw["protocol"]["features"]

    own = ("digits", "embedded") if name == "embedded" else ("prompts", "inception")
    assert chosen() == own
    assert chosen("data=folder", *GIVEN["folder"]) == ("folder", own[1]), "what is given wins"
    assert chosen("data=digits", "protocol.features=clip") == ("digits", "clip")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_key_has_a_comment(path: Path) -> None:
    for line in path.read_text().splitlines():
        key = line.split(":")[0].strip()
        if ":" in line and not line.lstrip().startswith("#") and line.split(":", 1)[1].strip():
            assert "#" in line, f"{path.name}: {key} has no comment"
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_identity_changes_with_what_changes_results_only() -> None:
    def search_id(*overrides: str) -> str:
        return build(compose_config("search", overrides)).search_id

    assert search_id() == search_id("output=elsewhere", "cluster.workers=7", "mlflow.enabled=false")
    assert len({search_id(), search_id("seed=1"), search_id("protocol.images=50"), search_id("model.steps=10")}) == 4


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="sed"):
        compose_config("search", ["sed=1"])
    with pytest.raises(ConfigError, match="is not an override"):
        compose_config("search", ["seed"])


def built(*overrides: str) -> SearchConfig:
    return build(compose_config("search", overrides))


def test_restrictions_of_the_space_come_from_the_configuration() -> None:
    config = built("space.fixed_depths=paper-b1", "space.frozen=[[0, 12, 0.0]]", "space.steps_per_gene=2")
    paper = Strategy.preset("paper-b1").resample(20)
    strategy = config.space.decode(config.space.upper * 0)
    assert [s.cache_depth for s in strategy][1:] == [s.cache_depth for s in paper][1:]
    assert strategy[0] == Step(12, 0.0)
    half = built("space.fixed_ratios=0.5").space
    assert {s.prune_ratio for s in half.decode(half.upper)} == {0.5}
    assert isinstance(built("search.mode=asynchronous").algorithm(), AsynchronousNsga2)
    assert built("search.latency_weight=0.01").algorithm().settings["objectives"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["space.frozen=[0, 12]"], r"space.frozen is \[0, 12\] .*; write \[step, depth, ratio\] for each step"),
        (["space.fixed_depths=nobody"], "nobody"),
        (["search.engine=dask"], "search.engine is 'dask'; allowed are ray and tune"),
        (["search.engine=tune"], "set search.mode=asynchronous"),
        (["protocol.fidelities=[200]"], r"protocol.fidelities is \[200\]; give ascending numbers of images, from 2 to less than protocol.images \(100\)"),
        (["search.max_fid=-1"], "search.max_fid is -1; give a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(*overrides)


WRONG: dict[str, tuple[object, ...]] = {
    "text": (3, True, None, "", ["a"]), "flag": ("yes", 1, None), "integer": ("3", 2.5, True, None, float("nan"), -1),
    "number": ("3", True, None, float("nan"), [1.0]), "list": ("a", 3, None, {"a": 1}), "section": ("a", 3, ["a"]),
}  # fmt: skip
FREE = {"space.fixed_ratios", "strategy", "evaluation.metrics"}
"""Keys of several kinds, which whoever uses them checks."""


def raw_of(name: str) -> dict[str, Any]:
    return compose_config("search" if name.split(".")[0] not in ("evaluation", "rivals", "ablation", "figures") else "evaluate", [])


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_key_refuses_what_it_may_not_be(name: str) -> None:
    key, section = KEYS[name], name.rpartition(".")[0]
    raw = raw_of(name)
    check_keys(raw)
    wrong = [v for v in WRONG[key.kind] if not (v is None and key.null)] + (["nonsense"] if key.among else [])
    wrong += [key.least - 1] if key.least is not None else []
    wrong += [key.above] if key.above is not None else []
    for value in wrong:
        holder = raw[section] if section else raw
        if key.kind == "integer" and value == -1 and key.least is None:
            continue
        changed = {**raw, **({section: {**holder, name.rpartition(".")[2]: value}} if section else {name: value})}
        with pytest.raises(KeyValueError, match=rf"^{re.escape(name)} is {re.escape(repr(value))}; (give|allowed are) .+"):
            check_keys(changed)


def test_every_key_of_the_configuration_is_checked() -> None:
    for config in ("search", "evaluate"):
        for name, value in compose_config(config, []).items():
            inner = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
            assert {key for key in inner if key not in KEYS} <= FREE
    section = {**compose_config("search", []), "search": 3}
    with pytest.raises(KeyValueError, match=r"^search is 3; it holds the keys search.operators, "):
        check_keys(section)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.winner_speedup=fast", "search.winner_speedup is 'fast'; give a number above 0"),
        ("search.deepcache_interval=0", "search.deepcache_interval is 0; give an integer of at least 1"),
        ("search.warm_start=null", "search.warm_start is None; give a list"),
        ("search.max_candidates=0", "search.max_candidates is 0; give an integer of at least 1, at most 1,000,000,000, or null"),
        ("mlflow.uri=http://me:word@host", "mlflow.uri holds a password or token, which would be written into the ledger"),
        ("mlflow.uri=https://token@host", "set the environment variable MLFLOW_TRACKING_URI"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", override, f"output={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())
