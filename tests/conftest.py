"""Tiny real pipelines with Stable Diffusion v1.5's block layout and random weights."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from dato.strategy import Step, Strategy
from launch.config import compose_config
from search.embedded.train import BETAS, make_autoencoder, make_text_encoder, make_tokenizer
from search.ledger import Ledger
from search.measurements import Measurement
from search.records import Candidate, Winner

# Ray reads this once in a process, and `connect` sets it where ~/.ray holds a token: one mode for all tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
torch.set_num_threads(1)  # the tiny models gain nothing from more, and two processes with two threads each crawl


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=["shared", "alone"], help="tests that run well beside many others, or those that start Ray or whole commands")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests of searches and commands start Ray, whose workers starve where every core is taken: they come by themselves."""
    part = config.getoption("--part")
    if part:
        root = Path(__file__).parent
        alone = [i for i in items if i.get_closest_marker("slow") and i.path.is_relative_to(root / "search") | i.path.is_relative_to(root / "launch")]
        kept = set(alone) if part == "alone" else set(items) - set(alone)
        config.hook.pytest_deselected(items=[i for i in items if i not in kept])
        items[:] = [i for i in items if i in kept]


def make_unet(**changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "cross_attention_dim": 64,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**settings, **changes}).eval()


@pytest.fixture(scope="session")
def make_pipe() -> Callable[..., StableDiffusionPipeline]:
    """A factory of pipelines; keyword arguments change the UNet."""

    def make(**changes: Any) -> StableDiffusionPipeline:
        tokenizer = make_tokenizer()
        torch.manual_seed(1)
        pipe = StableDiffusionPipeline(
            vae=make_autoencoder().eval(),
            text_encoder=make_text_encoder(tokenizer).eval(),
            tokenizer=tokenizer,
            unet=make_unet(**changes),
            scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def pipe(make_pipe: Callable[..., StableDiffusionPipeline]) -> StableDiffusionPipeline:
    return make_pipe()


@pytest.fixture(scope="session")
def make_search() -> Callable[..., Path]:
    """A factory of search folders: real ledgers of toy measurements, `stop` one of "empty", "running", "finished"."""

    def make(folder: Path, stop: str = "finished", seed: int = 0, population: int = 8, generations: int = 3, name: str = "embedded") -> Path:
        config = compose_config("search", [f"seed={seed}", f"search.population={population}", f"search.generations={generations}", f"model.name={name}"])
        folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(folder / "ledger.jsonl", f"{name}-digits-{seed:010x}", config, {"versions": {"torch": torch.__version__}, "machine": {"cpus": 2}, "git": {"commit": "abc", "changed": False}})
        chance, steps = random.Random(seed), config["model"]["steps"]
        if stop != "empty":
            for label, s in {"unaccelerated": Strategy.full(steps), "DeepCache-like, every 3": Strategy.uniform(steps, 3)}.items():
                ledger.baseline(Candidate(number=-1, generation=-1, strategy=s, origin=label), toy_measurement(s))
            for number in range(population * (generations if stop == "finished" else generations - 1)):
                entries = [Step(chance.choice((0, 1, 12)), chance.choice((0.3, 0.5, 0.7))) for _ in range(steps)]
                candidate = Candidate(number=number, generation=number // population, strategy=Strategy((Step(12, 0.3), *entries[1:])).canonical())
                ledger.ask(candidate)
                failed = number == 1
                ledger.result(number, Measurement(error="RuntimeError: out of memory") if failed else toy_measurement(candidate.strategy))
                if number % population == population - 1:
                    ledger.append("generation", generation=number // population, hypervolume=0.3 + 0.1 * (number // population))
        if stop == "finished":
            front = ledger.record.front()
            for alias, (candidate, m) in zip(("quality", "balanced", "fastest"), (front[-1], front[len(front) // 2], front[0]), strict=True):
                plain = ledger.record.baselines["unaccelerated"][1]
                ledger.winner(Winner(alias=alias, candidate=candidate, searched=m, fresh=replace(m, fid=m.fid + 1), fresh_baseline=plain))
            ledger.append("finished")
        ledger.close()
        return folder

    return make


def toy_measurement(strategy: Strategy) -> Measurement:
    """Deterministic: less computed is faster and worse."""
    cost = sum({0: 0.02, 1: 0.1, 12: 1.0}[s.cache_depth] * (1 - 0.3 * s.prune_ratio) for s in strategy) / len(strategy)
    fid, ms = 30 + 60 * (1 - cost) ** 2 + 5 * sum(s.prune_ratio for s in strategy) / len(strategy), 500 * cost
    return Measurement(
        fid=fid, fid_low=fid - 3, fid_high=fid + 3, images=20, latency_ms=ms, latency_low_ms=0.95 * ms, latency_high_ms=1.1 * ms,
        calls_by_depth={str(d): n for d, n in strategy.calls_by_depth.items()}, seconds=ms / 50, device="toy device", batch=10,
        feature_distance=1 - cost, feature_distance_low=0.9 * (1 - cost), feature_distance_high=1.1 * (1 - cost), similarity={"psnr": (20.0, 19.0, 21.0)},
    )  # fmt: skip
