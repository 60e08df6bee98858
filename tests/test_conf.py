"""Every configuration file composes, and says what each key means."""

from pathlib import Path

import pytest
import yaml

from launch.config import CONF, ConfigError, build, compose_config

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
