"""Every configuration file composes, and says what each key means."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from dato.files import written
from dato.sampler import Sampler
from dato.strategy import FULL, Step, Strategy
from launch.__main__ import main
from launch.config import CONF, ConfigError, SearchConfig, build, compose_config, evaluation_keys
from launch.schema import SCHEMAS, groups_of, keys
from search import old_names
from search.evaluate.geometry import geometry
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.space import SearchSpace

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

    own = ("digits", "embedded") if name.startswith("embedded") else ("prompts", "inception")
    assert chosen() == own
    assert chosen("data=folder", *GIVEN["folder"]) == ("folder", own[1]), "what is given wins"
    assert chosen("data=digits", "protocol.features=clip") == ("digits", "clip")


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "model").glob("*.yaml")))
def test_a_model_comes_with_a_space_of_what_it_has(name: str) -> None:
    space, shape = built(f"model={name}", "data=prompts").space, geometry(name)
    assert set(space.depths) <= set(shape.costs().depths)
    assert (space.guidance == ("both", "cond")) is shape.guided
    assert shape.is_unet or space.ratios == (0.0,)
    assert all(shape.samples_with(Sampler.of(sampler)) for sampler in space.samplers)
    # What it decodes to is the same strategy in a file, its complete calls written as such.
    strategy = space.decode(space.upper)
    assert Strategy.from_json(strategy.to_json()) == strategy
    assert {step["cache_depth"] for step in json.loads(strategy.to_json())["steps"]} <= {"full", *space.depths}
    deepest = max(d for d in space.depths if d != FULL)
    deep = Strategy((Step(FULL), *[Step(deepest)] * (max(space.lengths) - 1)), sampler=Sampler.of(space.samplers[0]))
    assert space.decode(space.encode(deep)) == deep and f'"cache_depth": {deepest}' in deep.to_json()


def test_a_search_of_a_transformer_begins_with_fewer_steps_of_the_own_sampler_and_of_dpm() -> None:
    config = built("model=embedded_dit")
    given = [Strategy.load(name) for name in config.keys.search.warm_start]
    assert [config.space.decode(config.space.nearest(s)) for s in given] == [s.canonical() for s in given]
    assert {str(s.sampler) for s in given} == {"Euler", "DPM++"}
    assert compose_config("search", ["model=embedded_dit", "search.warm_start=[euler-5]"])["search"]["warm_start"] == ["euler-5"], "what is given wins"


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
    config = built("space=paper", "space.fixed_depths=paper-b1", "space.frozen=[[0, 12, 0.0]]", "space.steps_per_gene=2")
    paper = Strategy.preset("paper-b1").resample(20)
    strategy = config.space.decode(config.space.upper * 0)
    assert [s.cache_depth for s in strategy][1:] == [s.cache_depth for s in paper][1:]
    assert strategy[0] == Step(12, 0.0)
    half = built("space=paper", "space.fixed_ratios=0.5").space
    assert {s.prune_ratio for s in half.decode(half.upper)} == {0.5}
    assert isinstance(built("search.mode=asynchronous").algorithm(), AsynchronousNsga2)
    assert built("search.latency_weight=0.01").algorithm().settings["objectives"] == 1


def test_the_default_space_is_the_whole_schedule_and_every_gene_of_it_can_be_frozen() -> None:
    space = built().space
    assert {len(space.samplers), len(space.lengths), len(space.guidance), len(space.orders)} == {5, 8, 2}
    assert space.lengths == (3, 4, 5, 6, 8, 10, 14, 20)
    for strategy in (Strategy.full(4, sampler="DPM++"), Strategy.full(14, sampler="Euler"), Strategy.full(20), Strategy.uniform(20, 3)):
        assert space.decode(space.encode(strategy)) == strategy
    frozen = built("space.samplers=[null]", "space.steps=[]", "space.guidance=[both]", "space.orders=[0]", "space.ratios=[0.3,0.4,0.5,0.6,0.7]").space
    assert frozen == built("space=paper").space == SearchSpace(steps=20)
    assert built("model.guidance=1.0").space.guidance == ("both",), "what does not guide has no halves to choose from"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["space.frozen=[0, 12]"], r"space.frozen is \[0, 12\] .*; write \[step, depth, ratio\] for each step"),
        (["space.fixed_depths=nobody"], "nobody"),
        (["space.frozen=[[0, 12, 0.0]]"], r"space.frozen .* space.steps"),
        (["space.samplers=[nobody]"], "nobody"),
        (["space.steps=[0]"], r"space.steps is \[0\]"),
        (["search.engine=dask"], "search.engine is 'dask'; allowed are ray and tune"),
        (["search.engine=tune"], "set search.mode=asynchronous"),
        (["protocol.fidelities=[200]"], r"protocol.fidelities is \[200\]; give ascending numbers of images, from 2 to less than protocol.images \(100\)"),
        (["search.max_fid=-1"], "search.max_fid is -1; give a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(*overrides)


WRONG: dict[type, tuple[object, ...]] = {
    str: (3, True, ["a"]), bool: ("yes", 1), int: ("3", 2.5, True, float("nan")), float: ("3", True, float("nan"), float("inf"), [1.0]), tuple: (3, {"a": 1}), dict: (3, "a", ["a"]),
}  # fmt: skip
"""Values of no kind but perhaps another."""
NAMES = [(config, key) for config in SCHEMAS for key in keys(config) if config == "search" or key not in keys("search")]
RAW = {config: compose_config(config, []) for config in SCHEMAS}
BUILD = {"search": build, "evaluate": evaluation_keys}


def changed(config: str, key: str, value: object) -> dict[str, Any]:
    section, _, inner = key.rpartition(".")
    raw = RAW[config]
    return {**raw, section: {**raw[section], inner: value}} if section else {**raw, key: value}


@pytest.mark.parametrize(("config", "key"), NAMES)
def test_every_key_refuses_what_it_may_not_be(config: str, key: str) -> None:
    BUILD[config](RAW[config])
    kind = keys(config)[key]
    assert kind.of, f"{key} takes any value"
    wrong: list[object] = [v for t in WRONG for v in WRONG[t] if not kind.allows(tuple(v) if isinstance(v, list) else v)]
    wrong += [v for t in kind.of for v in WRONG[t] if len(kind.of) == 1]
    wrong += ["nonsense"] if kind.limits.among else [""] if kind.of == (str,) else []
    wrong += [] if kind.null else [None]
    wrong += [kind.limits.least - 1] if kind.limits.least is not None else []
    wrong += [kind.limits.above] if kind.limits.above is not None else []
    wrong += [2 * kind.limits.most] if {int, float} & set(kind.of) else []
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^{re.escape(key)} is ") as refused:
            BUILD[config](changed(config, key, value))
        said = str(refused.value)
        assert f"{key} is {written(int(value) if isinstance(value, float) and value.is_integer() else value)}; " in said
        assert re.search(r"; (give|allowed are) .+", said)


def test_numbers_and_items_of_lists_are_checked_too() -> None:
    for key, value, named in [
        ("space.depths", [0, "1", 12], "space.depths holds '1'; each must be an integer"),
        ("protocol.similarity", [3], "protocol.similarity holds 3; each must be a text"),
        ("search.winner_speedups", [2, float("inf")], "search.winner_speedups holds inf; give finite numbers"),
        ("space.frozen", [[[[[[[[0]]]]]]]], "space.frozen is nested deeper than any value"),
    ]:
        with pytest.raises(ValueError, match=re.escape(named)):
            build(changed("search", key, value))


def test_a_section_holds_its_keys_and_no_others() -> None:
    with pytest.raises(ConfigError, match=r"^search is 3; it holds the keys search\.\w+, "):
        build({**RAW["search"], "search": 3})
    with pytest.raises(ConfigError, match=r"search\.popluation is no key here.*search\.population"):
        build(changed("search", "search.popluation", 3))
    with pytest.raises(ConfigError, match=r"model\.path is not given; set model\.path=<.*hub id"):
        build({**RAW["search"], "model": {"name": "x"}})


def test_defaults_stand_once() -> None:
    """A file says what differs from the defaults of the classes, and of the primary configurations that it changes."""
    primary = {key for name in SCHEMAS for section, values in yaml.safe_load((CONF / f"{name}.yaml").read_text()).items() if section != "defaults" for key in (f"{section}.{k}" for k in values)}
    groups = {name: group for schema in SCHEMAS.values() for name, group in groups_of(schema).items()}
    for path in CONF.rglob("*.yaml"):
        whole = yaml.safe_load(path.read_text())
        sections = {path.parent.name: whole} if path.parent.name in ("model", "data", "cluster") else {k: v for k, v in whole.items() if k in groups}
        for section, values in sections.items():
            defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(groups[section])}
            again = [k for k, v in values.items() if k in defaults and v == defaults[k] and type(v) is type(defaults[k]) and f"{section}.{k}" not in primary]
            assert path.name == "local.yaml" or not again, f"{path}: {section}.{again} repeats the default"


def test_an_old_name_is_refused_with_the_new_one() -> None:
    for old, new in old_names.KEYS.items():
        config = "evaluate" if old.startswith("evaluation.") else "search"
        with pytest.raises(ConfigError, match=rf"{re.escape(old)} is now called {re.escape(new)}; write {re.escape(new)}="):
            compose_config(config, [f"{old}=1"])
        assert new in keys(config)
    for (key, value), new in old_names.VALUES.items():
        with pytest.raises(ConfigError, match=f"{key}={value} is now called {key}={new}"):
            compose_config("search", [f"{key}={value}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.winner_speedup=fast", "search.winner_speedup is 'fast'; give a number above 0"),
        ("search.deepcache_interval=0", "search.deepcache_interval is 0; give an integer of at least 1"),
        ("search.warm_start=null", "search.warm_start is null; give a list"),
        ("search.max_candidates=0", "search.max_candidates is 0; give an integer of at least 1, at most 1,000,000,000, or null"),
        ("protocol.images=x", "protocol.images is 'x'; give an integer of at least 2"),
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
