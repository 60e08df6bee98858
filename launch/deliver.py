"""What a search hands on: its runs in MLflow, winners, report, samples, and how to use them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from analysis.progress import progress
from analysis.report import front_page, write_report
from dato.card import write_card
from dato.sources import without_credentials
from dato.strategy import Strategy
from launch.config import SearchConfig
from launch.image_grid import grid, write_row
from launch.terminal import SearchView
from search.data.datasets import FRESH_OFFSET
from search.publish.strategies import read_model_info, winner_strategies
from search.records import UNACCELERATED, SearchRecord, prediction_error
from search.run.jobs import Job, Task
from search.run.pools import Pool


def make_tracker(config: SearchConfig) -> Any:
    """The tracker that a configuration asks for, or None."""
    settings = config.keys.mlflow
    if not settings.enabled:
        return None
    from search.publish.mlflow_runs import Tracker  # MLflow takes seconds to import

    return Tracker(
        experiment=settings.experiment, uri=settings.uri, children=settings.children, front_page=front_page, summary=_summary(config), flush_s=settings.flush_s
    )


def _summary(config: SearchConfig) -> Callable[[SearchRecord], dict[str, float]]:
    """What the parent run shows after each generation; speedup is 1, the unaccelerated one, until a candidate reaches its FID."""
    gpus = config.keys.cluster.gpus

    def summary(record: SearchRecord) -> dict[str, float]:
        now = progress(record)
        found: dict[str, float] = {"front_size": now.front, "evaluations": now.done, "failures": now.failures, "device_hours": now.device_hours}
        return found | ({"gpu_hours": gpus * now.device_hours} if gpus else {}) | {"speedup": now.speedup or 1.0}

    return summary


def deliver(config: SearchConfig, record: SearchRecord, tracker: Any, view: SearchView) -> None:
    """Write winners as JSON, the report, and the registry's versions; all of it again when run again."""
    strategies = winner_strategies(record, read_model_info(config.folder))
    folder = config.folder / "winners"
    for alias, strategy in strategies.items():
        write_card(strategy, folder / alias, replace=True)
        strategy.save(folder / f"{alias}.json")
    samples = {p.stem.split("-", 1)[1]: p.read_bytes() for p in sorted((config.folder / "samples").glob("*.png"))}
    report = write_report(record, config.folder / "report.html", samples)
    name, versions, stayed = config.keys.registry.name, dict[str, str](), dict[str, str]()
    if tracker:
        from search.publish.registry import RegistryError, register

        tracker.finished(record, {"": report})
        if tracker.trouble or tracker.run_id is None:
            view.say(f"warning: MLflow does not have this search yet ({tracker.trouble}); once it answers, {_script('dato')} sync folder={config.folder}")
            view.say("         completes it and registers the winners")
        else:
            try:
                made = register(name, strategies, tracker.run_id, replace=config.keys.registry.replace)
                versions, stayed = made.versions, made.stayed
            except RegistryError as error:
                view.say(f"warning: {error}")
    view.winners(record)
    if (apart := prediction_error(record)) is not None:
        view.say(f"latency   of candidates is the cost table's, {apart:.1%} from their own times (median); winners are timed beside the unaccelerated pipeline")
    view.say(f"report    {report}")
    view.say("winners   none, so that there is nothing to export" if not strategies else f"winners   {folder}/*.json" + (f", and models:/{name} in the MLflow registry" if versions else ""))
    if tracker:
        view.say("browse    " + _mlflow_command())
    for alias, why in stayed.items():
        view.say(f"          models:/{name}@{alias} stays where it was: {why}. The new one is version {versions[alias]}; registry.replace=true moves the alias")
    if not strategies:
        return
    alias = "fastest" if "fastest" in strategies else next(iter(strategies))
    source = f"models:/{name}@{alias}" if versions and alias not in stayed else str(folder / f"{alias}.json")
    view.say(f"rivals    {_script('dato')} evaluate 'strategy=[{config.folder}]' compares the front with other ways to be fast, on the same images;")
    view.say(f"          {_script('dato')} report folder={config.folder} evaluation=<the folder it names> shows them in the report")
    view.say("use one   import dato")
    view.say(f'          strategy = dato.Strategy.load("{source}")')
    view.say("          with dato.accelerate(pipe, strategy):")
    view.say("              image = pipe(prompt, num_inference_steps=len(strategy)).images[0]")


def _mlflow_command() -> str:
    import mlflow

    return f"{_script('mlflow')} ui --backend-store-uri {without_credentials(mlflow.get_tracking_uri())}"


def _script(name: str) -> str:
    """A command of this environment, as one types it here."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() and shutil.which(name) != str(beside) else name


def draw_samples(pool: Pool, record: SearchRecord, steps: int) -> dict[str, torch.Tensor]:
    """Ten images of the unaccelerated pipeline and of each winner, same prompts and seeds."""
    strategies = {UNACCELERATED: Strategy.full(steps), **{alias: w.candidate.strategy for alias, w in record.winners.items()}}
    indices = list(range(FRESH_OFFSET, FRESH_OFFSET + 10))
    jobs = [Job(label, [s], indices, Task.SAMPLES) for label, s in strategies.items()]
    made = {job.key: pictures[0] for job, pictures in pool.map(jobs) if pictures is not None}
    return {label: made[label] for label in strategies if label in made}


def write_samples(config: SearchConfig, record: SearchRecord, samples: dict[str, torch.Tensor]) -> None:
    """A row of images for each, and ``samples.png`` with all rows named."""
    folder, rows = config.folder / "samples", []
    for i, (label, images) in enumerate(samples.items()):
        path = folder / f"{i}-{label}.png"
        write_row(path, images)
        won = record.winners.get(label)
        rows.append((f"{label}, {won.speedup:.1f}x" if won else label, path))
    if rows:
        small = min(images.shape[-1] for images in samples.values()) < 128
        grid(rows, scale=2 if small else 1).save(config.folder / "samples.png")
