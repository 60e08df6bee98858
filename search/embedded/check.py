"""How good the embedded model is, unaccelerated or by a strategy: classified as prompted, and FID against the held-out digits.

    python -m search.embedded.check --images 500
    python -m search.embedded.check --strategy outputs/<search>/winners/fastest.json   # FID does not see which digit was asked for
    python -m search.embedded.check --pipeline /tmp/other/pipeline   # another one that was trained

The judge is a support vector machine on 8 x 8 scans, fitted to the training digits: it shares nothing with the feature
net that a search's FID is taken on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from sklearn.svm import SVC

from dato.accelerate import accelerate
from dato.strategy import Strategy
from search.data.datasets import Data, DataSpec
from search.embedded.digits import load_split, scan
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.generate import generate
from search.evaluate.measure import load_metrics
from search.evaluate.pipelines import ModelSpec, load_pipeline
from search.evaluate.protocol import EvaluationProtocol
from search.metrics.intervals import Groups
from search.metrics.quality import extract, load_features

MODEL = ModelSpec(name="embedded", path="embedded", device="cpu", steps=20, guidance=3.0)
DIGITS = DataSpec(name="digits", kind="digits")


def fit_judge() -> SVC:
    """A classifier of (B, 64) scans in [0, 1], fitted to the training digits."""
    images, labels = load_split(reference=False)
    return SVC(C=10, gamma="scale").fit(scan(images).flatten(1).numpy(), labels.numpy())


def judge(model: SVC, images: torch.Tensor, labels: Sequence[int]) -> float:
    """Share of (B, 3, 40, 40) uint8 images that are classified as their label."""
    found = model.predict(scan(images / 255).flatten(1).numpy())
    return float((torch.from_numpy(found) == torch.tensor(labels)).float().mean())


def make_images(count: int, batch: int = 25, model: ModelSpec = MODEL, strategy: Strategy | None = None) -> torch.Tensor:
    """(count, 3, 40, 40) uint8 images of the pipeline, unaccelerated or by a strategy, image i of digit i mod 10."""
    pipe, data = load_pipeline(model), Data(DIGITS)
    indices = [list(range(i, min(i + batch, count))) for i in range(0, count, batch)]
    with accelerate(pipe, strategy) if strategy else nullcontext():
        return torch.cat([generate(pipe, model, data, part, steps=len(strategy) if strategy else None, strategy=strategy).images for part in indices])


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--pipeline", default=MODEL.path, help="folder of another pipeline for the digits")
    parser.add_argument("--strategy", help="a preset, a file, models:/<name>@<alias>")
    arguments = parser.parse_args()
    count = arguments.images
    strategy = Strategy.load(arguments.strategy) if arguments.strategy else None
    images = make_images(count, model=replace(MODEL, path=arguments.pipeline), strategy=strategy)
    real, truth = load_split(reference=True)
    judged = fit_judge()
    print(f"real held-out digits classified correctly: {judge(judged, real * 255, truth.tolist()):.3f}")
    print(f"generated images classified as prompted:   {judge(judged, images, [i % 10 for i in range(count)]):.3f} of {count}")
    fid = load_metrics(EvaluatorSpec(MODEL, DIGITS, EvaluationProtocol())).fid
    assert fid is not None
    features = extract(load_features("embedded"), images.split(50))
    found = fid.value(features, Groups(turn=10))
    print(f"FID against 500 held-out digits:           {found.value:.2f} (95 %: {found.low:.2f} .. {found.high:.2f})")


if __name__ == "__main__":
    main()
