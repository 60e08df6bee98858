"""What a search hands on: its runs in MLflow, winners, report, samples, and how to use them."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from analysis.report import front_page, write_report
from dato.card import card_markdown, write_card
from dato.sources import without_credentials
from launch.config import SearchConfig
from launch.image_grid import png
from launch.samples import candidate_sheet
from launch.schedule_picture import schedule_picture
from launch.terminal import SearchView
from search.data.datasets import Data
from search.optimize.winners import aliases_of
from search.publish.curves import latest
from search.publish.strategies import candidate_strategy, read_model_info, winner_strategies
from search.records import Candidate, SearchRecord, prediction_error


def make_tracker(config: SearchConfig, folder: Path) -> Any:
    """The tracker that a configuration asks for, of the search in a folder, or None."""
    settings = config.keys.mlflow
    if not settings.enabled:
        return None
    from search.publish.mlflow_runs import Tracker  # MLflow takes seconds to import

    return Tracker(
        experiment=settings.experiment, uri=settings.uri, children=settings.children, front_page=front_page, candidate_files=partial(candidate_files, folder),
        data=partial(Data, config.evaluator.data), flush_s=settings.flush_s,
    )  # fmt: skip


def candidate_files(folder: Path, record: SearchRecord, candidate: Candidate) -> dict[str, bytes]:
    """What there is to see of a candidate that won or is on the front, by file name: its steps, its images where some were drawn, its card."""
    m = latest(record, candidate.number)
    won, info = aliases_of(record).get(candidate.number), read_model_info(folder)
    strategy = winner_strategies(record, info)[won[0]] if won else candidate_strategy(record, candidate, m, info)
    found = {"schedule.png": schedule_picture(record, candidate), "card.md": card_markdown(strategy).encode()}
    if (sheet := candidate_sheet(folder, candidate.number)) is not None:
        found["samples.png"] = png(sheet)
    return found


def to_log(folder: Path) -> list[Path]:
    """Files of a finished search that MLflow shows with its run."""
    return [path for name in ("report.html", "samples.png") if (path := folder / name).is_file()]


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
        from search.publish.mlflow_runs import TrackingError
        from search.publish.registry import RegistryError, register

        tracker.finished(record, to_log(config.folder))
        if tracker.trouble or tracker.run_id is None:
            view.say(f"warning: MLflow does not have this search yet ({tracker.trouble}); once it answers, {_script('dato')} sync folder={config.folder}")
            view.say("         completes it and registers the winners")
        else:
            try:
                made = register(name, strategies, tracker.run_id, replace=config.keys.registry.replace)
                versions, stayed = made.versions, made.stayed
                tracker.registered(record, name, versions, to_log(config.folder))
            except (RegistryError, TrackingError) as error:
                view.say(f"warning: {error}")
    view.winners(record)
    if (apart := prediction_error(record)) is not None:
        view.say(f"latency   of candidates is the cost table's, {apart:.1%} from their own times (median); winners are timed beside the unaccelerated pipeline")
    view.say(f"report    {report}")
    view.say("winners   none, so that there is nothing to export" if not strategies else f"winners   {folder}/*.json" + (f", and models:/{name} in the MLflow registry" if versions else ""))
    if tracker:
        view.say("browse    " + _mlflow_command())
        if tracker.run_id and not tracker.trouble:
            view.say(f"          then {_mlflow_address()}/{tracker.page}")
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

    address = without_credentials(mlflow.get_tracking_uri())
    return address if address.startswith("http") else f"{_script('mlflow')} ui --backend-store-uri {address}"


def _mlflow_address() -> str:
    """Where MLflow's pages are: of a server its own address, of a database that which its own server would have."""
    import mlflow

    address = without_credentials(mlflow.get_tracking_uri()).rstrip("/")
    return address if address.startswith("http") else "http://127.0.0.1:5000"


def _script(name: str) -> str:
    """A command of this environment, as one types it here."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() and shutil.which(name) != str(beside) else name
