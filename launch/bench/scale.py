"""``dato bench scale``: how busy a search keeps its workers, by way of scheduling, on this machine and on simulated ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune

from launch.bench.measured_search import driver_of_features
from launch.bench.simulated_search import STEPS, driver_alone, search_toys
from launch.bench.timing import parse, print_table, write_result
from launch.config import ConfigError
from search.optimize.space import SearchSpace
from search.records import Candidate, SearchRecord
from search.run.jobs import Job
from search.run.ray_cluster import connect
from search.run.ray_pool import RayPool
from search.run.simulate import duration, sleeper, toy_measurement
from search.run.simulated_pool import SimulatedPool
from search.run.tune import NSGA2Search
from search.run.weather import Weather

DEFAULTS = {
    "workers": "1,8,64", "seconds": "20,60,120", "mean_s": "2", "population": "20", "batches": "5", "modes": "generational,sharded,steady,steady-sharded,tune", "tune_workers": "8",
    "simulated_workers": "1000", "simulated_candidates": "100000", "simulated_mean_s": "36", "shorter_s": "16,8,4,2", "memory_candidates": "10000",
    "measured_candidates": "1000", "features": "2048", "images": "500", "measured_workers": "2", "output": "analysis/results",
}
GROWTH = ((0.0, 0.125), (600.0, 1.0), (3000.0, 0.5), (3600.0, 0.25), (4200.0, 1.0))
"""From when on which share of the workers there is: one machine of eight at first, all of them when the autoscaler has brought them, and spot machines that go and come back."""
STORM = Weather(fail_s=3600.0, preempt_s=6 * 3600.0, away_s=600.0, reload_s=60.0, late=0.1, poison_s=6 * 3600.0, broken=0.01)


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file."""
    if arguments[:1] == ["driver=alone"]:
        print(json.dumps(driver_alone(int(arguments[1].split("=")[1]))))
        return 0
    if arguments[:1] == ["driver=measured"]:
        print(json.dumps(driver_of_features(**{name: int(value) for name, value in (a.split("=") for a in arguments[1:])})))
        return 0
    given = parse(list(arguments), DEFAULTS, "scale")
    modes = [m for m in given["modes"].split(",") if m]
    unknown = set(modes) - {*MODES, "tune"}
    if unknown:
        raise ConfigError(f"modes holds {', '.join(sorted(unknown))}; allowed are {', '.join([*MODES, 'tune'])}")
    workers, seconds = [int(w) for w in given["workers"].split(",") if w], [float(s) for s in given["seconds"].split(",")]
    if workers and len(seconds) not in (1, len(workers)):
        raise ConfigError(f"seconds is {given['seconds']}; give one number, or one for each of workers={given['workers']}")
    result: dict[str, Any] = {"real": [], "simulated": [], "driver": None, "measured": None}

    def write(geometry: str, *parts: str) -> Path:
        return write_result("scale", {**given, "geometry": geometry}, torch.device("cpu"), {p: result[p] for p in parts}, given["output"])

    for count, about in zip(workers, seconds * len(workers) if len(seconds) == 1 else seconds, strict=False):
        for found in _real(count, about, modes, given):
            result["real"].append(found)
            path = write("sleeping", "real")  # each time: a later part may be killed
    if result["real"]:
        headings = ["workers", "mode", "candidates", "a minute", "ideal", "utilisation", "before the tail", "idle, ms each"]
        print_table(f"sleeping {given['mean_s']} s a candidate", headings, [_real_row(r) for r in result["real"]])
        print(path)
    if int(given["simulated_candidates"]):
        for found in _simulated(modes, given):
            result["simulated"].append(found)
            write("simulated", "simulated")
        headings = ["mode", "candidates", "utilisation", "hours", "done twice", "driver, ms each"]
        print_table(f"{given['simulated_workers']} simulated workers", headings, [_simulated_row(s) for s in result["simulated"]])
    if int(given["memory_candidates"]):
        result["driver"] = _in_a_process("driver=alone", f"candidates={given['memory_candidates']}")
        print(f"driver of {given['memory_candidates']} candidates: {result['driver']['peak_mib']:.0f} MiB at most, {result['driver']['growth_mib']:.0f} MiB of it since it began, {result['driver']['driver_ms_per_candidate']:.1f} ms a candidate")
    if result["simulated"] or result["driver"]:
        print(write("simulated", "simulated", "driver"))
    if int(given["measured_candidates"]):
        keys = {"candidates": "measured_candidates", "features": "features", "images": "images", "batches": "batches", "workers": "measured_workers"}
        m = result["measured"] = _in_a_process("driver=measured", *(f"{name}={given[key]}" for name, key in keys.items()))
        print(
            f"driver of {m['candidates']} candidates with {m['images']} x {m['features']} features: {m['driver_cpu_ms_per_candidate']:.1f} CPU-ms a candidate, "
            f"{m['driver_ms_per_candidate']:.1f} ms by the clock, of {m['seconds']:.0f} s in all"
        )
        print(write("measured", "measured"))
    return 0


def _in_a_process(*arguments: str) -> Any:
    """What this command prints of a driver that has a process of its own."""
    done = subprocess.run([sys.executable, "-m", "launch", "bench", "scale", *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _real_row(r: dict[str, Any]) -> list[str]:
    idle = "" if r["idle_ms_per_candidate"] is None else f"{r['idle_ms_per_candidate']:.0f}"
    return [
        str(r["workers"]), r["mode"], str(r["candidates"]), f"{r['per_minute']:.0f}", f"{r['ideal_per_minute']:.0f}", _percent(r["utilisation"]),
        _percent(r["utilisation_until_last_dispatch"]), idle,
    ]  # fmt: skip


def _simulated_row(s: dict[str, Any]) -> list[str]:
    return [
        f"{s['mode']}, {s['weather']}, {s['mean_s']:g} s", str(s["candidates"]), _percent(s["utilisation"]), f"{s['hours']:.2f}", _percent(s["repeated_share"]),
        f"{s['driver_ms_per_candidate']:.2f}",
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


class _Source:
    """Strategies that nothing was learned from, or how long they take; and when the last one was handed out."""

    def __init__(self, count: int, batches: int, seed: int, mean_s: float | None = None) -> None:
        self._left, self._batches, self._mean = count, batches, mean_s
        self._space, self._chance = SearchSpace(steps=STEPS), np.random.default_rng(seed)
        self.last = 0.0

    def jobs(self, limit: float = math.inf) -> Iterator[Job]:
        """Up to `limit` jobs, made when they are taken."""
        taken = 0
        while self._left and taken < limit:
            self._left, taken = self._left - 1, taken + 1
            self.last = time.monotonic()
            strategy = self._space.decode(self._chance.integers(0, self._space.upper + 1))
            what: Any = strategy if self._mean is None else duration(strategy, self._mean)
            yield Job(self._left, [what], list(range(self._batches)))


def _sum_seconds(parts: Sequence[Any]) -> list[list[float]]:
    return [[seconds for part in parts for seconds in part[0]]]


def _generations(pool: Any, source: _Source, population: int) -> Iterator[tuple[Job, Any]]:
    while jobs := list(source.jobs(population)):
        yield from pool.map(jobs)


def _steady(pool: Any, source: _Source, population: int) -> Iterable[tuple[Job, Any]]:
    return pool.map(source.jobs())


MODES = {"generational": _generations, "sharded": _generations, "steady": _steady, "steady-sharded": _steady}
"""How candidates are handed out; sharded: idle workers help with others' batches, as they do in every search."""


def _real(workers: int, seconds: float, modes: Sequence[str], given: dict[str, str]) -> Iterator[dict[str, Any]]:
    mean, population = float(given["mean_s"]), int(given["population"])
    connect(None, cpus=workers)
    try:
        for mode in modes:
            if mode == "tune" and workers > int(given["tune_workers"]):
                continue
            sharded = mode.endswith("sharded")
            batches = int(given["batches"]) if sharded else 1
            busy = min(workers, population) if mode == "generational" else workers
            count = max(round(seconds * busy / mean), 2 * busy)
            if MODES.get(mode) is _generations:
                count = max(2, round(count / population)) * population
            print(f"{workers} workers, {mode}: {count} candidates of {mean:g} s", file=sys.stderr, flush=True)
            if mode == "tune":
                begin, last, slept = _under_tune(workers, count, mean)
            else:
                pool = RayPool(sleeper(batches), workers=workers, cpus=1, join=_sum_seconds if sharded else None)
                source, slept = _Source(count, batches, seed=workers, mean_s=mean), []
                begin = time.monotonic()
                for _, result in MODES[mode](pool, source, population):
                    slept.append((time.monotonic(), sum(result[0])))
                pool.close()
                last = source.last
            yield {"workers": workers, "mode": mode, **_utilisation(workers, begin, last, slept, known=not sharded)}
    finally:
        ray.shutdown()


def _utilisation(workers: int, begin: float, last: float, slept: Sequence[tuple[float, float]], *, known: bool) -> dict[str, Any]:
    """Shares of the workers' time, from when each candidate ended and how long it slept.

    Where it is known who slept when, also until the last dispatch: after that there is nothing left to give to who is free.
    """
    end, work = max(finish for finish, _ in slept), sum(s for _, s in slept)
    before = sum(max(0.0, min(finish, last) - (finish - s)) for finish, s in slept)
    until_last = before / (workers * (last - begin)) if known and last > begin else None
    return {
        "candidates": len(slept), "seconds": end - begin, "per_minute": 60 * len(slept) / (end - begin), "ideal_per_minute": 60 * len(slept) * workers / work,
        "utilisation": work / (workers * (end - begin)), "utilisation_until_last_dispatch": until_last,
        "idle_ms_per_candidate": None if until_last is None else 1000 * (1 - until_last) * workers * (last - begin) / len(slept),
    }  # fmt: skip


def _under_tune(workers: int, count: int, mean_s: float) -> tuple[float, float, list[tuple[float, float]]]:
    """A Tune experiment of candidates that sleep: when the first one began, when the last one was asked for, and (end, seconds) of each."""
    searcher = NSGA2Search(SearchSpace(steps=STEPS), population=20)
    asked: list[float] = []
    searcher.asked = lambda strategy, trial: asked.append(time.monotonic())

    class Sleeping(tune.Trainable):  # in a function, so that Ray sends it by value and its processes import nothing of ours
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            import random
            import zlib

            chance = random.Random(zlib.crc32(new_config["strategy"].encode()))
            self._seconds, self._figures = mean_s * chance.lognormvariate(-0.125, 0.5), (chance.random(), chance.random())
            return True

        def step(self) -> dict[str, Any]:
            import time

            time.sleep(self._seconds)
            return {"fid": self._figures[0], "latency_ms": self._figures[1], "slept": self._seconds, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            slept.append((time.monotonic(), trial.last_result["slept"]))

    slept: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(Sleeping, {"cpu": 1}),
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=count, max_concurrent_trials=workers, reuse_actors=True),
            run_config=tune.RunConfig(name="scale", storage_path=folder, callbacks=[Clock()], verbose=0),
        ).fit()
    return min(finish - seconds for finish, seconds in slept), asked[-1], slept


def _simulated(modes: Sequence[str], given: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The same scheduling, and the search's real driver, on a simulated clock; each as soon as it is there."""
    count, mean = int(given["simulated_candidates"]), float(given["simulated_mean_s"])
    runs = [(mode, "calm", mean, count) for mode in modes if mode in MODES]
    runs += [(mode, weather, mean, count) for mode in modes if mode.endswith("sharded") for weather in ("storm", "growth")]
    runs += [("steady-sharded", "calm", float(s), max(1, count // 5)) for s in given["shorter_s"].split(",") if s]
    workers, batches = int(given["simulated_workers"]), int(given["batches"])
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        for done in as_completed([processes.submit(_simulate, workers, batches, *run) for run in runs]):
            yield done.result()


def _weather(name: str, workers: int) -> Weather:
    sizes = tuple((at, max(1, round(share * workers))) for at, share in GROWTH)
    return {"calm": Weather(), "storm": STORM, "growth": Weather(sizes=sizes, reload_s=STORM.reload_s)}[name]


def _simulate(workers: int, batches: int, mode: str, weather: str, mean_s: float, count: int) -> dict[str, Any]:
    sharded = mode.endswith("sharded")
    pool = SimulatedPool(
        workers, lambda s: duration(s, mean_s), toy_measurement, weather=_weather(weather, workers), join=(lambda parts: parts[0]) if sharded else None,
        batches=batches if sharded else 1, overhead_s=0.005, caller_takes_time=True,
    )  # fmt: skip
    begin = time.perf_counter()
    said = _Progress(f"{workers} simulated workers, {mode}, {weather}, {mean_s:g} s a candidate", count)
    record = search_toys(pool, count, population=workers, batches=batches if sharded else 1, steady=mode.startswith("steady"), watchers=[said])
    real, done, tally = time.perf_counter() - begin, len(record.results), pool.settle()
    return {
        "mode": mode, "weather": weather, "mean_s": mean_s, "candidates": done, "utilisation": tally.utilisation,
        "hours": tally.clock_s / 3600, "ideal_hours": tally.busy_s / workers / 3600, "lost_pieces": tally.losses,
        "repeated_share": tally.wasted_s / tally.busy_s, "driver_ms_per_candidate": 1000 * (real - tally.pool_s) / done, "real_seconds": real,
    }  # fmt: skip


class _Progress:
    """Says every half minute how far a simulated search is."""

    def __init__(self, what: str, candidates: int) -> None:
        self._what, self._candidates, self._said = what, candidates, time.monotonic()

    def started(self, record: SearchRecord) -> None:
        """Nothing to say yet."""

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """One more."""
        if time.monotonic() > self._said + 30:
            self._said = time.monotonic()
            print(f"{self._what}: {len(record.results)} of {self._candidates}", file=sys.stderr, flush=True)

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """The candidates are counted."""
