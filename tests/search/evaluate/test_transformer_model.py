"""The embedded transformer is measured, priced and described as the embedded UNet is."""

from __future__ import annotations

import pytest
import torch

from dato import FULL, Step, Strategy
from search.data.datasets import DataSpec
from search.evaluate.evaluator import EvaluatorSpec, PipelineEvaluator
from search.evaluate.latency import CostTable, calibration
from search.evaluate.pipelines import ModelSpec, load_pipeline, weights_digest
from search.evaluate.protocol import EvaluationProtocol

MODEL = ModelSpec(name="embedded_dit", path="embedded_dit", device="cpu", steps=6, guidance=3.0)
FAST = Strategy((Step(FULL), Step(2), Step(4, order=1), Step(0, guidance="cond")), sampler="DPM++")


@pytest.fixture(scope="module")
def evaluator() -> PipelineEvaluator:
    return EvaluatorSpec(MODEL, DataSpec(name="digits", kind="digits"), EvaluationProtocol(images=4, batch=2), threads=1).build()


def test_its_images_are_measured(evaluator: PipelineEvaluator) -> None:
    plain, fast = evaluator.run([Strategy.full(6), FAST], [[0, 1], [2, 3]])
    assert plain.error is None and fast.error is None
    assert plain.features.shape == fast.features.shape and torch.isfinite(fast.features).all()
    assert not torch.equal(plain.features, fast.features)
    assert set(plain.parts_ms[0]) == {"text_encoder", "transformer", "vae"} and all(ms > 0 for ms in plain.parts_ms[0].values())
    assert plain.calls_by_depth == {} or plain.calls_by_depth == {str(FULL): 6}
    assert fast.calls_by_depth == {"0": 1, "2": 1, "4": 1, str(FULL): 1}


def test_its_calls_have_prices(evaluator: PipelineEvaluator) -> None:
    runs = calibration(steps=(6,), depths=(0, 2, 4, FULL), ratios=(0.0,), guidance=("both", "cond"), samplers=(None, "DPM++"))
    table = CostTable.from_dict(evaluator.costs(runs, [[0, 1]], rounds=1))
    assert table.predict(FAST) > 0
    steps = [Strategy((Step(FULL), *[Step(d)] * 5)) for d in (0, 4, FULL)]
    prices = [table.predict(s) for s in steps]
    assert prices == sorted(prices)


def test_it_is_described_by_its_architecture_and_weights(evaluator: PipelineEvaluator) -> None:
    told = evaluator.model_info([], [])
    assert told["pipeline"] == "StableDiffusion3Pipeline" and told["transformer"]["num_layers"] == 12 and told["weights"]["float32"]
    assert weights_digest(MODEL) is not None
    assert load_pipeline(MODEL).text_encoder_3 is None
