"""The embedded pipeline, evaluated for real."""

from dataclasses import replace

import pytest
import torch

from dato.scheduler import scheduler_for
from dato.strategy import Strategy
from search.data.datasets import FRESH_OFFSET, Data, DataSpec
from search.evaluate.evaluator import EvaluatorSpec, PipelineEvaluator
from search.evaluate.generate import generate
from search.evaluate.measure import load_metrics, measure
from search.evaluate.pipelines import ModelError, ModelSpec, check_model, load_pipeline, weights_digest
from search.evaluate.protocol import EvaluationProtocol

MODEL = ModelSpec(name="embedded", path="embedded", device="cpu", steps=6, guidance=3.0)
DIGITS = DataSpec(name="digits", kind="digits")
SPEC = EvaluatorSpec(MODEL, DIGITS, EvaluationProtocol(images=8, batch=4, interval_groups=4))


@pytest.fixture(scope="module")
def evaluator() -> PipelineEvaluator:
    return SPEC.build()


def test_an_image_is_the_same_alone_and_in_a_batch(evaluator: PipelineEvaluator) -> None:
    data = Data(DIGITS)
    together = generate(evaluator.pipe, MODEL, data, [0, 1, 2]).images
    alone = generate(evaluator.pipe, MODEL, data, [1]).images
    assert (together[1].int() - alone[0].int()).abs().max() <= 1


def test_the_same_strategy_gives_the_same_fid_again(evaluator: PipelineEvaluator) -> None:
    metrics = load_metrics(SPEC)
    strategy = Strategy.uniform(6, 3, prune_ratio=0.5)
    first, other, again = (measure(evaluator.run([s], SPEC.protocol.batches()), metrics) for s in (strategy, Strategy.full(6), strategy))
    assert (again.fid, again.fid_low) == (first.fid, first.fid_low)
    assert other.fid != first.fid
    assert first.images == 8
    assert first.calls_by_depth == {"1": 4, "12": 3}
    assert 0 < first.parts_ms["unet"] < first.latency_ms


@pytest.mark.parametrize("strategy", [Strategy.full(3), Strategy.full(4, "DPM++"), Strategy.full(9, "Euler"), Strategy.full(2, "PLMS")], ids=repr)
def test_a_strategy_of_any_length_and_sampler_gives_what_such_a_pipeline_does(evaluator: PipelineEvaluator, strategy: Strategy) -> None:
    own = evaluator.pipe.scheduler
    (made,) = evaluator.samples([strategy], [0, 1])
    (shard,) = evaluator.run([strategy], [[0, 1]])
    assert evaluator.pipe.scheduler is own
    assert shard.calls_by_depth == {"12": len(strategy) + (str(strategy.sampler) in ("None", "PLMS"))}
    if strategy.sampler:
        evaluator.pipe.scheduler = scheduler_for(evaluator.pipe, own, strategy.sampler)
    try:
        expected = generate(evaluator.pipe, MODEL, Data(DIGITS), [0, 1], steps=len(strategy)).images
    finally:
        evaluator.pipe.scheduler = own
    assert torch.equal(made, expected)


def test_fewer_steps_are_compared_with_the_unaccelerated_images(evaluator: PipelineEvaluator) -> None:
    spec = replace(SPEC, metrics=("fid", "psnr"))
    few, plain = spec.build().run([Strategy.full(2), Strategy.full(6)], [[0, 1]])
    assert plain.scores == {}
    assert all(value < 60 for value in few.scores["psnr"])


def test_shards_put_together_equal_one_run(evaluator: PipelineEvaluator) -> None:
    metrics = load_metrics(SPEC)
    batches = SPEC.protocol.batches()
    whole = evaluator.run([Strategy.full(6)], batches)
    parts = [evaluator.run([Strategy.full(6)], [b])[0] for b in batches]
    assert measure(parts, metrics).fid == pytest.approx(measure(whole, metrics).fid, abs=1e-9)


def test_fresh_images_are_others() -> None:
    protocol = EvaluationProtocol(images=5, batch=2)
    assert protocol.batches() == [[0, 1], [2, 3], [4]]
    assert protocol.batches(fresh=True)[0][0] == FRESH_OFFSET


def test_prompts_go_with_indices() -> None:
    data = Data(DIGITS)
    assert data.prompt(7) == "a handwritten seven"
    assert data.prompt(FRESH_OFFSET + 3) == "a photo of a handwritten three"
    assert not {data.prompt(i) for i in range(20)} & {data.prompt(FRESH_OFFSET + i) for i in range(20)}
    assert sum(len(b) for b in data.reference()) == 500


def test_a_folder_that_is_no_model_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=r"has no model_index.json; give 'embedded'"):
        check_model(ModelSpec(name="x", path=str(tmp_path)))
    with pytest.raises(ModelError, match="does not exist"):
        check_model(ModelSpec(name="x", path="./nowhere"))
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        check_model(ModelSpec(name="x", path="nothing"))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match=r"cannot load model\.path"):
        load_pipeline(ModelSpec(name="x", path=str(tmp_path), device="cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "allowed are float32"),
        ({"steps": 0}, "model.steps is 0; give an integer of at least 1"),
        ({"scheduler": "UNet2DModel"}, "give a diffusers scheduler class"),
    ],
)
def test_bad_model_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec(**{"name": "x", "path": "embedded", **changes})


def test_a_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelError, match="which this machine does not have"):
        load_pipeline(ModelSpec(name="x", path="embedded", device="cuda"))


def test_the_embedded_model_is_the_same_code_with_another_path(tmp_path, evaluator) -> None:  # type: ignore[no-untyped-def]
    evaluator.pipe.save_pretrained(tmp_path / "copy")
    copy = ModelSpec(name="copy", path=str(tmp_path / "copy"), device="cpu", steps=6, guidance=3.0, scheduler="DDIMScheduler")
    pipe = load_pipeline(copy)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert weights_digest(copy) == weights_digest(MODEL)
    assert generate(pipe, copy, Data(DIGITS), [0, 1]).images.shape == (2, 3, 40, 40)


@pytest.mark.parametrize(
    ("given", "images", "counts"),
    [([0.5], 100, (50, 100)), ([0.25], 100, (30, 100)), ([0.5], 6, (6,)), ([0.2, 0.5], 500, (100, 250, 500)), ([100], 500, (100, 500)), ([], 5, (5,))],
)
def test_fidelities_are_numbers_or_shares_in_whole_batches(given: list[float], images: int, counts: tuple[int, ...]) -> None:
    assert EvaluationProtocol(images=images, batch=10, fidelities=given).counts == counts
