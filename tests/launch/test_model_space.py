"""A transformer of one's own is searched in the space of transformers, at depths that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dato.strategy import FULL
from launch.config import build, compose_config
from launch.model_space import fitting_depths


def _model(folder: Path, denoiser: str, **config: int) -> Path:
    (folder / denoiser).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "X", denoiser: ["diffusers", "Y"]}))
    (folder / denoiser / "config.json").write_text(json.dumps(config))
    return folder


def test_depths_follow_the_number_of_blocks(tmp_path: Path) -> None:
    path = _model(tmp_path / "flux", "transformer", num_layers=19, num_single_layers=38)
    space = build(compose_config("search", [f"model.path={path}"])).space
    assert space.depths == (0, 1, 5, 10, 19, 29, 38, FULL)
    assert space.ratios == (0.0,)
    assert fitting_depths(36) == (0, 1, 3, 6, 11, 18, 24, FULL), "no model has a depth of 12, which is FULL"
    for blocks in range(2, 80):
        found = fitting_depths(blocks)
        assert found[:2] == (0, 1) and found[-1] == FULL
        assert list(found[:-1]) == sorted({*found[:-1]}) and max(found[:-1]) < blocks


@pytest.mark.parametrize("more", [["space=paper"], ["model=embedded"], ["space.depths=[0,2,12]"]])
def test_what_is_said_stays(tmp_path: Path, more: list[str]) -> None:
    path = _model(tmp_path / "dit", "transformer", num_layers=28)
    found = compose_config("search", [*more, f"model.path={path}"])["space"]
    if more[0].startswith("space.depths"):
        assert found["depths"] == [0, 2, 12] and found["ratios"] == [0.0]
    else:
        assert found == compose_config("search", more)["space"]


def test_other_models_have_the_whole_space(tmp_path: Path) -> None:
    whole = compose_config("search", [])["space"]
    assert compose_config("search", [f"model.path={_model(tmp_path / 'unet', 'unet', num_layers=3)}"])["space"] == whole
    assert compose_config("search", ["model.path=owner/name"])["space"] == whole
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("[")
    assert compose_config("search", [f"model.path={tmp_path / 'broken'}"])["space"] == whole
