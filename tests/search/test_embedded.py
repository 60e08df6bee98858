from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dato import Strategy
from search.embedded import digits
from search.embedded.check import DIGITS, MODEL, fit_judge, judge, make_images
from search.embedded.features import load_digit_features
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.measure import load_metrics
from search.evaluate.protocol import EvaluationProtocol

PACKAGE = Path(digits.__file__).parent


def test_the_split_is_fixed_and_disjoint() -> None:
    train, _ = digits.load_split(reference=False)
    reference, labels = digits.load_split(reference=True)
    assert (len(train), len(reference)) == (1297, 500)
    assert torch.bincount(labels).min() >= 45
    assert reference.shape[1:] == (3, 40, 40)
    assert 0 <= float(reference.min()) < float(reference.max()) <= 1


def test_scans_undo_rendering_well_enough_to_judge() -> None:
    images, labels = digits.load_split(reference=True)
    assert judge(fit_judge(), images * 255, labels.tolist()) > 0.97


def test_the_feature_net_knows_the_held_out_digits() -> None:
    images, labels = digits.load_split(reference=True)
    net = load_digit_features()
    with torch.inference_mode():
        assert float((net.logits(images).argmax(1) == labels).float().mean()) > 0.95
        as_bytes = (images * 255).round().to(torch.uint8)
        assert torch.allclose(net(as_bytes), net(images), atol=0.1)


def test_it_ships_small_and_without_code() -> None:
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    second = [p for p in files if (PACKAGE / "transformer") in p.parents]
    assert sum(p.stat().st_size for p in second) < 8e6
    assert sum(p.stat().st_size for p in files if p not in second) < 12e6
    assert {p.suffix for p in files} == {".safetensors", ".json"}


@pytest.mark.slow
def test_no_visible_noise_is_left() -> None:
    images = make_images(20)
    dark = images[images < 40].float()
    assert len(dark) > images.numel() / 2
    assert float(dark.std()) < 8


@pytest.mark.slow
def test_images_are_of_the_digit_in_their_prompt() -> None:
    images = make_images(60, batch=20)
    assert judge(fit_judge(), images, [i % 10 for i in range(60)]) >= 0.95


@pytest.mark.slow
def test_pruned_images_alone_or_in_a_batch_have_one_quality() -> None:
    """Near-ties between tokens may flip with the batch: FID must not move by more than its own uncertainty."""
    strategy = Strategy.uniform(20, 3, prune_ratio=0.5)
    spec = EvaluatorSpec(model=MODEL, data=DIGITS, protocol=EvaluationProtocol(), threads=1)
    evaluator, metrics = spec.build(), load_metrics(spec)
    fid = metrics.fid
    assert fid is not None
    features = []
    for size in (20, 4):
        (shard,) = evaluator.run([strategy], [list(range(i, i + size)) for i in range(0, 100, size)])
        features.append(shard.features)
    first = fid.value(features[0], metrics.groups)
    assert first.low < fid(features[1]) < first.high
    assert abs(first.value - fid(features[1])) < (first.high - first.low) / 4


@pytest.mark.slow
def test_images_of_the_transformer_are_of_the_digit_in_their_prompt() -> None:
    images = make_images(60, batch=20, model=replace(MODEL, path="embedded_dit"))
    assert judge(fit_judge(), images, [i % 10 for i in range(60)]) >= 0.9
