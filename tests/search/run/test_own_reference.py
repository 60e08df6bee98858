"""The embedded pipeline's own images as the reference, drawn for real."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dato.strategy import Strategy
from search.data.datasets import FRESH_OFFSET, REFERENCE_OFFSET, Data, DataError, DataSpec
from search.evaluate.edit import Edit
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.generate import generate
from search.evaluate.measure import load_metrics
from search.evaluate.pipelines import ModelSpec
from search.evaluate.protocol import EvaluationProtocol
from search.metrics.quality import extract
from search.run.jobs import Job, Task
from search.run.own_reference import FILE, OwnReference, OwnReferenceError
from search.run.pools import InProcessPool

MODEL = ModelSpec(name="embedded", path="embedded", device="cpu", steps=3, guidance=3.0)
DATA = DataSpec(name="own", kind="prompts", prompts="captions", num_reference_images=10)
SPEC = EvaluatorSpec(MODEL, DATA, EvaluationProtocol(images=4, batch=4, interval_groups=0), ("fid", "kid"))
PLAIN = Strategy.full(3)


@pytest.fixture(scope="module")
def pool() -> InProcessPool:
    return InProcessPool(SPEC)


def own(folder: Path, **changes: Any) -> OwnReference:
    return OwnReference(folder, replace(SPEC, **changes))


class Counting:
    """A pool that counts the batches it draws, and is stopped after so many."""

    def __init__(self, pool: InProcessPool, most: int = 100) -> None:
        self.pool, self.most, self.drawn, self.asked = pool, most, list[int](), 0

    def map(self, jobs: Any) -> Iterator[tuple[Job, Any]]:
        for job, result in self.pool.map(jobs):
            self.asked += job.task is Task.MODEL_INFO
            if job.task is Task.REFERENCE:
                if len(self.drawn) == self.most:
                    raise KeyboardInterrupt
                self.drawn.append(job.key)
            yield job, result


@pytest.mark.filterwarnings("ignore::search.metrics.quality.FewImagesWarning")
def test_it_is_drawn_once_from_seeds_of_its_own_and_kept(pool: InProcessPool, tmp_path: Path) -> None:
    mine, counting, told = own(tmp_path / "search"), Counting(pool), list[float]()
    assert mine.fetch(counting) is None
    assert mine.kept() is None
    drawn = mine.draw(counting, PLAIN, told.append)
    assert counting.drawn == [REFERENCE_OFFSET, REFERENCE_OFFSET + 4, REFERENCE_OFFSET + 8]
    assert len(told) == 1
    assert counting.asked == 1, "what the model is, once for fetching and drawing"
    assert 0 < told[0] < 600
    evaluator = pool.evaluator
    expected = extract(evaluator.net, [generate(evaluator.pipe, MODEL, evaluator.data, range(REFERENCE_OFFSET + 8, REFERENCE_OFFSET + 10)).images])
    assert torch.allclose(drawn[8:], expected, atol=1e-4)
    kept = mine.fetch(counting)
    assert kept is not None
    assert torch.equal(kept, drawn)
    assert mine.kept() is not None
    assert torch.equal(load_file(tmp_path / "search" / FILE)["features"], drawn)
    assert not (tmp_path / "search" / "reference").exists(), "parts are gone once the whole is there"
    metrics = load_metrics(SPEC, drawn)
    assert metrics.fid is not None and metrics.fid(drawn) == pytest.approx(0, abs=1e-3)
    assert metrics.kid is not None
    neighbour = own(tmp_path / "another")
    found = neighbour.fetch(counting)
    assert found is not None
    assert torch.equal(found, drawn)
    assert (tmp_path / "another" / FILE).is_file()
    assert own(tmp_path / "third", protocol=replace(SPEC.protocol, features="clip")).kept() is None
    for other in ({"model": replace(MODEL, guidance=5.0)}, {"data": replace(DATA, num_reference_images=8)}, {"edit": Edit(strength=0.5)}):
        assert own(tmp_path / "search", **other).kept() is None
        assert own(tmp_path / "third", **other).fetch(counting) is None
    assert len(counting.drawn) == 3


def test_a_stopped_one_goes_on_where_it_was(pool: InProcessPool, tmp_path: Path) -> None:
    mine, stopped = own(tmp_path / "search"), Counting(pool, most=2)
    with pytest.raises(KeyboardInterrupt):
        mine.draw(stopped, PLAIN)
    (tmp_path / "search" / "reference" / f"{REFERENCE_OFFSET}.safetensors").write_bytes(b"torn")
    again = Counting(pool)
    whole = mine.draw(again, PLAIN)
    assert again.drawn == [REFERENCE_OFFSET, REFERENCE_OFFSET + 8]
    assert torch.equal(whole, own(tmp_path / "elsewhere" / "search").draw(pool, PLAIN))


def test_other_weights_are_another_reference(pool: InProcessPool, tmp_path: Path) -> None:
    own(tmp_path / "search").draw(pool, PLAIN)
    weight = next(pool.evaluator.pipe.unet.parameters())
    with torch.no_grad():
        weight.mul_(2)
    try:
        with pytest.raises(OwnReferenceError, match=r"reference\.safetensors was drawn by another model.*fresh_start=true"):
            own(tmp_path / "search").fetch(pool)
        assert own(tmp_path / "another").fetch(pool) is None
    finally:
        with torch.no_grad():
            weight.div_(2)


def test_a_pipeline_that_fails_is_said(pool: InProcessPool, tmp_path: Path) -> None:
    with pytest.raises(OwnReferenceError, match="the unaccelerated pipeline itself fails"):
        own(tmp_path).draw(pool, "no strategy")


@pytest.mark.parametrize(("prompts", "count"), [("captions", 350), ("imagenet", 1000)])
def test_prompts_that_ship(prompts: str, count: int) -> None:
    data = Data(DataSpec(name="x", kind="prompts", prompts=prompts, num_reference_images=500))
    assert len(data.prompts) == count
    assert len(set(data.prompts)) >= count - 2, "ImageNet has two cranes and two maillots"
    used = [data.prompt(REFERENCE_OFFSET + i) for i in range(500)]
    assert len(set(used)) >= min(count, 500) - 2, "evenly over the whole list"
    assert len({data.prompts.index(p) // 100 for p in used}) == (count + 99) // 100
    assert len({data.prompt(i) for i in range(100)} & {data.prompt(FRESH_OFFSET + i) for i in range(100)}) <= 2
    assert data.reference_in_words() == f"500 images of the unaccelerated pipeline, seeds 2000000 to 2000499, prompts {prompts}"
    with pytest.raises(DataError, match=r"data of kind 'prompts' have no real images; give data=folder"):
        list(data.reference())
    with pytest.raises(DataError, match="no real images"):
        data.real(0)


def test_the_captions_are_varied_and_free() -> None:
    text = (Path(__file__).parents[3] / "search" / "data" / "captions.txt").read_text(encoding="utf-8")
    assert "CC0" in text.split("\n\n")[0]
    captions = Data(DATA).prompts
    assert len(captions) >= 300
    assert all(5 <= len(c.split()) <= 25 and not c.startswith("#") for c in captions)
    assert len({c.split()[1] for c in captions}) > 150
    first = " ".join(captions[:100])
    assert all(word in first for word in (" a ", "two", "painting", "woman", "light")), "the first hundred are of all kinds"


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\na dog\n# three\n")
    data = Data(DataSpec(name="x", kind="prompts", prompts=str(tmp_path / "mine.txt"), num_reference_images=6))
    assert data.prompts == ["a cat", "a dog", "# three"]
    assert [data.prompt(REFERENCE_OFFSET + i) for i in range(6)] == ["a cat"] * 2 + ["a dog"] * 2 + ["# three"] * 2
    assert data.reference_in_words() == "6 images of the unaccelerated pipeline, seeds 2000000 to 2000005, prompts mine.txt"
    with pytest.raises(DataError, match=r"data\.images is 'photos', which data of kind 'prompts' does not have"):
        DataSpec(name="x", kind="prompts", prompts="captions", images="photos")
    with pytest.raises(DataError, match=r"needs data\.prompts .*captions or imagenet"):
        DataSpec(name="x", kind="prompts")
    with pytest.raises(ValueError, match=r"protocol\.offset is 999999"):
        EvaluationProtocol(offset=999_999)
