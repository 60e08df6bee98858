"""Feature differences recorded from a real tiny pipeline."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from PIL import Image

import dato
from analysis.dynamics import Series, distribution_figure, heat_maps, means_figure, write_page
from dato.strategy import FULL, Step, Strategy
from dato.unet.units import Layout, unit_output
from search.evaluate.dynamics import BINS, HIGHEST, LOWEST, Dynamics, Recorder

STEPS = 4
SETTINGS = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "latent"}


def record(pipe: Any, strategy: Strategy | None, name: str = "x", runs: int = 1) -> Dynamics:
    recorder = Recorder(name, keep_images=1, keep_calls=[1, 3])
    for _ in range(runs):
        with dato.accelerate(pipe, strategy or Strategy.full(STEPS)), recorder.recording(pipe):
            pipe(["one", "two"], generator=[torch.Generator().manual_seed(i) for i in (0, 1)], **SETTINGS)
    return recorder.dynamics


def test_differences_equal_those_of_a_kept_history(pipe: Any) -> None:
    history: list[torch.Tensor] = []
    handle = Layout.of(pipe.unet).outputs[0].last.register_forward_hook(lambda _m, _a, out: history.append(unit_output(out).chunk(2)[1].clone()))
    pipe(["one", "two"], generator=[torch.Generator().manual_seed(i) for i in (0, 1)], **SETTINGS)
    handle.remove()
    expected = [(b - a).abs().mean(1) for a, b in pairwise(history)]
    found = record(pipe, None)
    assert len(found.means) == len(expected) == STEPS  # PNDM makes one call more than it has steps
    assert found.means == pytest.approx([float(e.mean()) for e in expected], rel=1e-4)
    assert found.histogram.sum(1).tolist() == [2 * 16 * 16] * STEPS
    assert sorted(found.maps) == [1, 3]
    torch.testing.assert_close(found.maps[3], expected[2][:1])
    assert 10 ** found.median() == pytest.approx(float(torch.stack(expected).quantile(0.5)), rel=0.15)
    assert found.images == 2


def test_runs_add_up(pipe: Any) -> None:
    once, twice = record(pipe, None), record(pipe, None, runs=2)
    assert torch.equal(twice.histogram, 2 * once.histogram)
    assert twice.means == pytest.approx(once.means)
    assert twice.images == 4


def test_a_replayed_call_changes_nothing(pipe: Any) -> None:
    found = record(pipe, Strategy((Step(FULL), Step(FULL), Step(0), Step(FULL))))
    assert found.means[2] == 0
    assert found.histogram[2, 0] == found.histogram[2].sum()
    assert min(found.means[0], found.means[1], found.means[3]) > 0


def test_the_conditional_half_is_recorded_where_it_is_computed_alone(pipe: Any) -> None:
    guided, whole = record(pipe, Strategy((Step(FULL), Step(FULL, 0.0, "cond"), Step(FULL, 0.0, "cond"), Step(FULL)))), record(pipe, None)
    assert guided.images == 2
    assert guided.histogram.sum(1).tolist() == whole.histogram.sum(1).tolist() == [2 * 16 * 16] * STEPS
    assert guided.means[:2] == pytest.approx(whole.means[:2], rel=1e-4), "what the first guided calls lead to is the same"
    assert guided.means[3] != pytest.approx(whole.means[3], rel=1e-3)


def test_the_distance_of_distributions() -> None:
    def at(place: int) -> Dynamics:
        histogram = torch.zeros(1, BINS, dtype=torch.int64)
        histogram[0, place] = 10
        return Dynamics("x", histogram)

    assert at(20).distance(at(20)) == 0
    assert at(20).distance(at(40)) == pytest.approx(20 * (HIGHEST - LOWEST) / BINS)
    assert at(0).median() == pytest.approx(LOWEST + 0.5 * (HIGHEST - LOWEST) / BINS)


def test_hooks_are_removed(make_pipe: Callable[..., Any]) -> None:
    pipe = make_pipe()
    before = sum(len(m._forward_hooks) for m in pipe.unet.modules())
    record(pipe, None)
    assert sum(len(m._forward_hooks) for m in pipe.unet.modules()) == before


def test_the_page_is_self_contained(pipe: Any, tmp_path: Any) -> None:
    import numpy as np

    found = [record(pipe, s, name) for s, name in ((None, "plain"), (Strategy.uniform(STEPS, 2), "cache <only>"))]
    series = [
        Series(
            name=d.name, family=family, edges=np.linspace(LOWEST, HIGHEST, BINS + 1), histogram=d.histogram.numpy(), means=d.means,
            maps={f"call {c}": m.numpy() for c, m in d.maps.items()}, median=d.median(), distance=d.distance(found[0]),
        )
        for d, family in zip(found, ("plain", "deepcache"), strict=True)
    ]
    series.append(replace(series[1], name="DaTo", family="strategy"))
    for figure in (distribution_figure(series), means_figure(series)):
        assert len({trace.line.color for trace in figure.data}) == len({trace.line.dash for trace in figure.data}) == 3, "each its own"
    maps = heat_maps(series)
    assert maps.count("<img") == 3 * len(series[0].maps)
    first = Image.open(io.BytesIO(base64.b64decode(re.findall("base64,([^\"]+)", maps)[0])))
    assert first.size == next(iter(series[0].maps.values()))[0].shape[::-1], "a pixel for each value: what enlarges it keeps it square"
    path = write_page(tmp_path / "a" / "figures.html", "Title", "note", series, {"plain <x>": b"\x89PNG"})
    text = path.read_text()
    assert "cache &lt;only&gt;" in text
    assert "<script src" not in text and "https://cdn" not in text.split("</script>")[-1]
    assert [p.name for p in path.parent.iterdir()] == ["figures.html"]
