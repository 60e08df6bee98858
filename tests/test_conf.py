"""Every configuration file composes, and says what each key means."""

from pathlib import Path

import pytest
import yaml

from dato.strategy import Step, Strategy
from launch.config import CONF, ConfigError, SearchConfig, build, compose_config
from search.steady import SteadyNsga2

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
    config = built("space.fixed_depths=paper-b1", "space.frozen=[[0, 12, 0.0]]", "space.group=2")
    paper = Strategy.preset("paper-b1").resample(20)
    strategy = config.space.decode(config.space.upper * 0)
    assert [s.cache_depth for s in strategy][1:] == [s.cache_depth for s in paper][1:]
    assert strategy[0] == Step(12, 0.0)
    half = built("space.fixed_ratios=0.5").space
    assert {s.prune_ratio for s in half.decode(half.upper)} == {0.5}
    assert isinstance(built("search.mode=steady").algorithm(), SteadyNsga2)
    assert built("search.score_weight=0.01").algorithm()._problem.n_obj == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["space.frozen=[0, 12]"], r"space.frozen is \[0, 12\] .*; write \[step, depth, ratio\] for each step"),
        (["space.fixed_depths=nobody"], "nobody"),
        (["search.engine=dask"], "search.engine is 'dask'; allowed are ray and tune"),
        (["search.engine=tune"], "set search.mode=steady"),
        (["search.mode=steady", "search.surrogate=true"], "set search.mode=generational"),
        (["protocol.fidelities=[200]"], r"protocol.fidelities is \[200\]; give ascending numbers of images, from 2 to less than protocol.images \(100\)"),
        (["search.max_fid=-1"], "search.max_fid is -1; give a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(*overrides)
