"""Variants compared on the embedded model: kept by shard, continued, and compared with the unaccelerated one."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from analysis.tables import comparison_table, equal_latency_block
from dato.baselines import limited_guidance
from dato.options import Options
from dato.sampler import SAMPLERS
from dato.scheduler import scheduler_for
from dato.strategy import Strategy
from search.data.datasets import DataSpec
from search.evaluate.edit import Edit
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.generate import generate
from search.evaluate.measure import Metrics
from search.evaluate.pipelines import ModelSpec
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.results import Result, at_equal_latency, at_speedups, compare_to_plain, fid_by_images, speedup
from search.evaluate.rivals import RivalSettings, rival_variants
from search.evaluate.shard_store import ShardStore
from search.evaluate.shards import Shard
from search.evaluate.variants import Variant, VariantError, strategy_variants, unique
from search.metrics.intervals import Groups, Value
from search.metrics.moments import Moments
from search.metrics.quality import Fid
from search.run.comparison import compare, kept
from search.run.pools import InProcessPool, Job

STEPS = 4
MODEL = ModelSpec(name="embedded", path="embedded", device="cpu", steps=STEPS, guidance=3.0)
DIGITS = DataSpec(name="digits", kind="digits")
SPEC = EvaluatorSpec(MODEL, DIGITS, EvaluationProtocol(images=4, batch=2, interval_groups=2, similarity=()))
SHARDS = [[b] for b in SPEC.protocol.batches()]


@pytest.fixture(scope="module")
def pool() -> InProcessPool:
    return InProcessPool(SPEC)


PLAIN = Variant.unaccelerated(STEPS)
CACHED = Variant.of(Strategy.uniform(STEPS, 2, prune_ratio=0.5), "cached")


def kept_of(store: ShardStore, *variants: Variant) -> dict[str, list[Shard]]:
    return {v.digest: kept(store, v, 2) for v in variants}


def test_what_is_there_is_not_computed_again(pool: InProcessPool, tmp_path: Path) -> None:
    lines: list[str] = []
    variants = [PLAIN, CACHED]
    assert compare(pool, variants, SHARDS, ShardStore(tmp_path, "first"), lines.append) == {}
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 4
    before = {f: f.stat().st_mtime_ns for f in files}
    assert compare(pool, variants, SHARDS, ShardStore(tmp_path, "second"), lines.append) == {}
    assert {f: f.stat().st_mtime_ns for f in files} == before
    assert lines[-1] == "2 variants, 2 shards, of which 2 are there already"
    lost = ShardStore(tmp_path).path(CACHED.digest, 1)
    lost.write_bytes(lost.read_bytes()[:100])  # a copy that was cut short
    compare(pool, variants, SHARDS, ShardStore(tmp_path, "third"), lines.append)
    assert [f for f in files if f.stat().st_mtime_ns != before[f]] == [lost]
    shards = kept_of(ShardStore(tmp_path), PLAIN, CACHED)
    assert [s.session for s in shards[PLAIN.digest]] == ["first", "first"]
    assert [s.session for s in shards[CACHED.digest]] == ["first", "third"]
    assert shards[CACHED.digest][1].indices == [2, 3]


def test_a_failing_variant_is_a_row_and_its_neighbours_go_on(pool: InProcessPool, tmp_path: Path) -> None:
    bad = Variant.of(Strategy.uniform(STEPS, 2, prune_ratio=0.5), "bad", Options(layers=("nowhere",)))
    store = ShardStore(tmp_path, "now")
    errors = compare(pool, [PLAIN, bad, CACHED], SHARDS, store, lambda _line: None)
    assert list(errors) == ["bad"]
    assert "no self-attention layer" in errors["bad"]
    shards = kept_of(store, PLAIN, CACHED)
    assert [len(found) for found in shards.values()] == [2, 2]
    metrics = Metrics(names=("fid",), groups=Groups(most=4), fid=Fid(torch.randn(100, 32, generator=torch.Generator().manual_seed(0))))
    plain, failed, cached = compare_to_plain([PLAIN, bad, CACHED], shards, metrics, errors)
    assert failed.error is not None
    assert plain.speedup.value == 1
    assert plain.differences == {}
    assert cached.images == 4
    assert cached.differences["fid"].value == cached.metrics["fid"].value - plain.metrics["fid"].value
    assert cached.differences["fid"].low < cached.differences["fid"].value < cached.differences["fid"].high
    assert cached.calls_by_depth == {"1": 2, "12": 3}
    assert "left_out" not in str(cached.to_dict())


def test_an_error_stays_in_its_shard_unless_nothing_works(pool: InProcessPool) -> None:
    bad, worse = (Variant.of(Strategy.uniform(STEPS, 2, prune_ratio=0.5), name, Options(layers=("nowhere",))) for name in ("bad", "worse"))
    jobs = [Job(0, [bad, CACHED], SHARDS[0]), Job(1, [bad], SHARDS[0]), Job(2, [bad, worse], SHARDS[0])]
    (beside, found), (alone, nothing), (both, neither) = pool.map(jobs)
    assert "no self-attention layer" in found[0].error
    assert (found[1].error, found[1].indices) == (None, [0, 1])
    assert beside.errors == []
    assert nothing is neither is None
    assert all("no self-attention layer" in job.errors[0] for job in (alone, both))


def test_an_image_does_not_depend_on_its_shard(pool: InProcessPool, tmp_path: Path) -> None:
    one, two = ShardStore(tmp_path / "1"), ShardStore(tmp_path / "2")
    compare(pool, [CACHED], SHARDS, one, lambda _line: None)
    compare(pool, [CACHED], [[[3], [0, 1, 2]]], two, lambda _line: None)
    by_shards = torch.cat([s.features for s in kept(one, CACHED, 2)])
    (together,) = kept(two, CACHED, 1)
    torch.testing.assert_close(together.features[[1, 2, 3, 0]], by_shards, rtol=0.05, atol=0.05)


def test_rivals_and_token_merging_leave_no_trace(pool: InProcessPool, tmp_path: Path) -> None:
    keys = RivalSettings(fewer_steps=("DDIM-2", "DPM++-2"), limited_guidance=("DPM++-3",), tomesd=(0.5,), deepcache=(2,), naive=((2, 0.5),))
    rivals = rival_variants(STEPS, keys)
    assert [(e.name, e.family) for e in rivals] == [
        ("unaccelerated", "plain"), ("DDIM-2", "fewer"), ("DPM++-2", "fewer"), ("DPM++-3, limited guidance", "limited"), ("ToMeSD, 0.5", "tomesd"),
        ("DeepCache, every 2", "deepcache"), ("DeepCache, every 2 + ToMeSD, 0.5", "naive"),
    ]
    store, again = ShardStore(tmp_path / "a"), ShardStore(tmp_path / "b")
    assert compare(pool, rivals, SHARDS[:1], store, lambda _line: None) == {}
    compare(pool, rivals[:1], SHARDS[:1], again, lambda _line: None)
    features = {v.name: kept(store, v, 1)[0].features for v in rivals}
    (plain,) = kept(again, rivals[0], 1)
    assert torch.equal(plain.features, features["unaccelerated"])
    assert all(not torch.equal(features["unaccelerated"], f) for name, f in features.items() if name != "unaccelerated")


def test_images_are_compared_with_the_unaccelerated_ones_of_their_batch(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, metrics=("fid", "psnr", "ssim"))
    pool = InProcessPool(spec)
    store, alone = ShardStore(tmp_path / "a"), ShardStore(tmp_path / "b")
    compare(pool, [PLAIN, CACHED], SHARDS, store, lambda _line: None)
    compare(pool, [CACHED], SHARDS, alone, lambda _line: None)  # as when the unaccelerated one was done before
    shards = kept_of(store, PLAIN, CACHED)
    assert all(s.scores == {} for s in shards[PLAIN.digest])
    assert [list(s.scores) for s in shards[CACHED.digest]] == [["psnr", "ssim"]] * 2
    assert [s.scores for s in kept(alone, CACHED, 2)] == [s.scores for s in shards[CACHED.digest]]
    metrics = Metrics(names=spec.metrics, groups=Groups(most=2), fid=Fid(torch.randn(100, 32, generator=torch.Generator().manual_seed(0))))
    plain, cached = compare_to_plain([PLAIN, CACHED], shards, metrics, {})
    assert list(plain.metrics) == ["fid"]
    assert list(cached.metrics) == ["fid", "psnr", "ssim", "feature distance"]
    assert list(cached.differences) == ["fid"]
    for name in ("psnr", "ssim", "feature distance"):
        assert cached.metrics[name].low < cached.metrics[name].value < cached.metrics[name].high
    assert 0 < cached.metrics["feature distance"].value < 1
    heads, rows = comparison_table([plain.to_dict(), cached.to_dict()], None)
    told = dict(zip(heads, rows[1], strict=True))
    assert told["PSNR, dB (higher is closer) [95 %]"].startswith(f"{cached.metrics['psnr'].value:.2f} [")
    assert told["feature distance (lower is closer) [95 %]"].startswith(f"{cached.metrics['feature distance'].value:.3f} [")
    assert dict(zip(heads, rows[0], strict=True))["SSIM (higher is closer) [95 %]"] == "-"


def test_image_to_image_starts_from_the_models_own_images(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, edit=Edit(strength=0.5, size=48), metrics=("is",))
    evaluator = spec.build()
    ten = dataclasses.replace(spec, protocol=EvaluationProtocol(images=10, batch=10)).protocol.batches()
    plain, cached = evaluator.run([PLAIN, CACHED], ten)
    assert (plain.error, cached.error) == (None, None)
    # PNDM's list of 4 steps has 5 timesteps, of which diffusers takes those from the third on: entries 1, 2, 3, the first one full.
    assert cached.calls_by_depth == {"1": 1, "12": 2}
    (pictures,) = evaluator.samples([PLAIN], [0])
    assert pictures.shape == (1, 3, 48, 48)
    metrics = Metrics(names=("is",), groups=Groups(most=0), net=evaluator.net)
    assert 1 <= metrics.of([plain])["is"].value <= 10
    real = dataclasses.replace(spec, edit=Edit(inputs="real")).build()
    assert real.samples([PLAIN], [0])[0].shape == (1, 3, 40, 40)


def test_image_to_image_runs_the_last_steps_of_a_strategys_own_schedule() -> None:
    evaluator = dataclasses.replace(SPEC, edit=Edit(strength=0.5), metrics=("is",)).build()
    assert evaluator.editor is not None
    own, (before,) = evaluator.editor.pipe.scheduler, evaluator.samples([PLAIN], [0, 1])
    strategy = Strategy((*Strategy.full(3).steps, *Strategy.uniform(3, 2).steps), sampler="DPM++")  # type: ignore[arg-type]
    shard, one = evaluator.run([strategy, Strategy.full(1)], [[0, 1]])
    assert shard.calls_by_depth == {"1": 1, "12": 2}, "the last three of six steps"
    assert one.error is not None and "strength" in one.error, "nothing is left of one step"
    (made,) = evaluator.samples([Strategy.full(6, "DPM++")], [0, 1])
    assert evaluator.editor.pipe.scheduler is own and evaluator.pipe.scheduler is own
    evaluator.editor.pipe.scheduler = scheduler_for(evaluator.pipe, own, SAMPLERS["DPM++"])
    expected = generate(evaluator.editor, MODEL, evaluator.data, [0, 1], steps=6).images
    evaluator.editor.pipe.scheduler = own
    assert torch.equal(made, expected)
    assert torch.equal(evaluator.samples([PLAIN], [0, 1])[0], before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"strength": 0}, "edit.strength is 0"), ({"inputs": "noise"}, "allowed are 'generated' and 'real'"), ({"size": 30}, "give a multiple of 8")],
)
def test_bad_edits_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edit(**settings)


def test_variants_by_name() -> None:
    (mine,) = strategy_variants(["paper-b1"], 20)
    assert mine.name == "paper-b1 (50 steps resampled to 20)"
    assert len(mine.baseline.strategy or ()) == 20
    assert strategy_variants(["paper-b1"], 50)[0].digest != mine.digest
    assert Variant.of(Strategy.uniform(STEPS, 2, prune_ratio=0.5), "other name").digest == CACHED.digest
    assert Variant.of(Strategy.uniform(STEPS, 2, prune_ratio=0.5), "cached", Options(align="none")).digest != CACHED.digest
    with pytest.raises(VariantError, match="'cached' is given twice"):
        unique([CACHED, CACHED])


@pytest.mark.parametrize(
    ("rivals", "message"),
    [
        ({"fewer_steps": ["Heun-5"]}, "names 'Heun-5'; write a sampler and its steps"),
        ({"fewer_steps": [5]}, "rivals.fewer_steps"),
        ({"naive": [3]}, "has the wrong form"),
        ({"tomesd": [0.9]}, "merge_ratio is 0.9"),
        ({"fewer_steps": ["DDIM-0"]}, "rivals.fewer_steps names 'DDIM-0'"),
        ({"limited_guidance": ["DDIM-1001"]}, "rivals.limited_guidance names 'DDIM-1001'"),
        ({"limited_guidance": ["LMS-10"]}, "samplers are DDIM"),
    ],
)
def test_bad_rivals_are_refused(rivals: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rival_variants(STEPS, RivalSettings(**{name: tuple(values) for name, values in rivals.items()}))


def test_a_strategy_runs_as_it_says_and_presets_without_a_sampler_are_for_the_pipelines_own_steps(tmp_path: Path) -> None:
    given = {"short": Strategy.full(2), "other": Strategy.uniform(6, 2, sampler="DPM++"), "same": Strategy.full(STEPS)}
    for name, strategy in given.items():
        strategy.save(tmp_path / f"{name}.json")
    found = strategy_variants([*(str(tmp_path / f"{name}.json") for name in given), "deepcache-2"], STEPS)
    assert [v.baseline.strategy for v in found[:3]] == list(given.values())
    assert [v.baseline.steps for v in found] == [2, 6, STEPS, STEPS]
    assert [v.is_plain(STEPS) for v in found] == [False, False, True, False]
    assert "resampled" in found[3].name
    assert not any("resampled" in v.name for v in found[:3])


def test_identity_of_what_needs_no_sampler_is_what_it_was_before_there_were_any() -> None:
    assert (PLAIN.digest, CACHED.digest) == ("e8931e68b57d19ed", "5b8f14083a77b801"), "shards that are kept of them are found"
    same = [Strategy.full(3), Strategy.full(3, "DDIM"), Strategy.full(3, "DPM++"), Strategy.full(4, "DDIM"), limited_guidance(3, "DDIM")]
    assert len({Variant.of(s, "x").digest for s in same}) == len(same)


def test_speedup_is_of_the_same_batches() -> None:
    found = speedup([100, 200, 400, 100], [50, 100, 200, 50])
    assert (found.value, found.low, found.high) == (2, 2, 2)
    spread = speedup([100] * 9, [50, 40, 60, 50, 45, 55, 50, 52, 48])
    assert spread.low < spread.value == 2 < spread.high
    few = speedup([100, 100], [50, 25])
    assert few.value == 3 and few.low != few.low


def result(name: str, family: str, ms: float, fid: float, left_out: tuple[float, ...] = ()) -> Result:
    return Result(name=name, family=family, metrics={"fid": Value.around(fid, left_out)}, latency=Value(value=ms))


def test_equal_latency_is_read_between_the_rivals() -> None:
    rivals = [
        result("unaccelerated", "plain", 100, 20, (19, 21, 20)), result("DDIM-5", "fewer", 10, 50, (49, 51, 50)),
        result("DDIM-10", "fewer", 20, 30, (29, 31, 30)), result("DPM++-8", "fewer", 18, 60, (1, 2, 3)),
    ]

    def at(ms: float, fid: float = 25) -> Value | None:
        mine = result("mine", "strategy", ms, fid, (24, 26, 25))
        return at_equal_latency(mine, [*rivals, mine])

    half = at(15)
    assert half is not None and half.value == pytest.approx(25 - 40)
    assert half.low == pytest.approx(half.high)  # these groups move together
    between = at(60)
    assert between is not None and between.value == pytest.approx(0)
    assert at(9) is None
    assert at(101) is None
    assert at_equal_latency(rivals[1], rivals) is None
    rivals[0] = result("unaccelerated", "plain", 100, 40, (39, 41, 40))  # worse than 10 steps of DDIM, and slower
    slow = at(80)
    assert slow is not None and slow.value == pytest.approx(-5)


def test_the_front_is_compared_at_given_speedups() -> None:
    results = [
        result("unaccelerated", "plain", 100, 20, (19, 21, 20)), result("DDIM-5", "fewer", 40, 50, (49, 51, 50)), result("PLMS-10", "fewer", 50, 30, (29, 31, 30)),
        result("DDIM-5, limited guidance", "limited", 30, 40, (39, 41, 40)), result("DeepCache, every 3", "deepcache", 50, 24, (23, 25, 24)),
        result("a", "strategy", 60, 21, (20, 22, 21)), result("b", "strategy", 45, 22, (21, 23, 22)), result("c", "strategy", 30, 60, (59, 61, 60)),
    ]  # fmt: skip
    found = at_speedups(results, (1.5, 2, 2.5, 3))

    def values(kind: str) -> list[float | None]:
        return [v.value if v else None for v in found[kind].values()]

    assert list(found) == ["DDIM, fewer steps", "PLMS, fewer steps", "DDIM, limited guidance", "DeepCache"]
    assert values("PLMS, fewer steps") == [pytest.approx(21 - (30 - 10 / 3)), pytest.approx(22 - 30), None, None]
    assert values("DeepCache") == [pytest.approx(21 - (24 - 4 / 3)), pytest.approx(22 - 24), None, None]
    assert values("DDIM, fewer steps") == [pytest.approx(21 - (20 + 30 / 1.8)), pytest.approx(22 - 45), pytest.approx(60 - 50), None]
    text = equal_latency_block({k: {s: asdict(v) if v else None for s, v in row.items()} for k, row in found.items()})
    assert "| DeepCache | -1.67 [-1.67, -1.67] | -2.00 [-2.00, -2.00] | none | none |" in text


def test_a_shard_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "shards", "now")
    shard = Shard(torch.rand(1, 3), [1.0], [{"unet": 1.0}], {"12": 5}, 1.0, "here", 1, [0], {"clip": [float(torch.tensor(0.1))]})
    assert store.get(PLAIN.digest, 0) is None
    assert store.put(PLAIN.digest, 0, [shard])
    assert os.listdir(tmp_path / "shards") == [f"{PLAIN.digest}-0.safetensors"]
    (loaded,) = store.get(PLAIN.digest, 0) or ()
    assert torch.equal(loaded.features, shard.features)
    assert dataclasses.replace(loaded, features=shard.features) == dataclasses.replace(shard, session="now")
    assert store.has(PLAIN.digest, 0) and not store.has(PLAIN.digest, 1)
    save_file({"features_0": shard.features}, store.path(PLAIN.digest, 1), metadata={"shards": '[{"of": "another version"}]'})
    assert store.get(PLAIN.digest, 1) is None and not store.has(PLAIN.digest, 1)


def test_few_images_raise_the_fid() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = Moments.of(torch.randn(2000, 16, generator=generator))
    shards = [Shard(torch.randn(200, 16, generator=generator)) for _ in range(2)]
    found = fid_by_images(shards, reference, least=25)
    assert list(found) == [25, 50, 100, 200, 400]
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found[400] == pytest.approx(Fid(reference)(torch.cat([s.features for s in shards])), abs=1e-6)
