"""``dato transfer strategy=[...] targets=[...]``: strategies on several models, as a matrix."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.tables import number, write_tables
from launch.config import CONF, ConfigError, compose_config
from launch.evaluation import Evaluation, build_evaluation, evaluate, say
from launch.hydra_app import run_with_hydra
from search.evaluate.sources import read_sources
from search.evaluate.variants import Variant


def run(arguments: Sequence[str]) -> int:
    """Evaluate every strategy on every target, or continue, and write the matrix; returns 1 where something failed."""
    given = [a.removeprefix("targets=") for a in arguments if a.startswith("targets=")]
    rest = [a for a in arguments if not a.startswith("targets=")]
    if len(given) != 1:
        raise ConfigError(f"dato transfer was given {list(arguments)}; it takes strategy=[...], targets=[...] and overrides: a target is {_ALLOWED}")
    targets = [t.strip() for t in given[0].strip("[]").split(",") if t.strip()]
    if not targets:
        raise ConfigError(f"targets is {given[0]!r}; write targets=[embedded,sd2_coco]: a target is {_ALLOWED}")
    more = [w for w in rest if "=" in w and not w.startswith("-")]
    return run_with_hydra("transfer", "evaluate", rest, lambda raw: _run(targets, more))


def _run(targets: Sequence[str], overrides: Sequence[str]) -> int:
    evaluations = [(t, build_evaluation("transfer", compose_config("evaluate", [*target_overrides(t), *overrides]))) for t in targets]
    if not evaluations[0][1].strategies():
        raise ConfigError("strategy is empty; give what to transfer, such as strategy=[paper-b1]")
    columns = {target: _evaluate(target, evaluation) for target, evaluation in evaluations}
    names = [name for name, _ in read_sources(evaluations[0][1].keys.strategy, "strategy")]
    failed = False
    rows: list[list[str]] = []
    for name in names:
        row = [name]
        for results in columns.values():
            r = next(r for r in results if r["name"].split(" (")[0] == name)
            failed |= bool(r["error"])
            metric = next(iter(r["differences"]), "fid")
            apart = " (timed in another run)" if r["timed_apart"] else ""
            row.append(f"failed: {r['error']}" if r["error"] else f"{metric} {number(r['differences'].get(metric), sign=True)}, {number(r['speedup'], unit='x')}{apart}")
        rows.append(row)
    folder = Path(evaluations[0][1].keys.output).absolute() / "transfer"
    against = "; ".join(f"{t}: against {e.reference}" for t, e in evaluations)
    note = f"Each cell: metric less the unaccelerated model's own on the same prompts and seeds [95 %], speedup [95 %]. {against}."
    path = write_tables(folder, "matrix", ["strategy", *columns], rows, note)
    (folder / "matrix.json").write_text(json.dumps(columns, indent=1) + "\n", encoding="utf-8")
    say(path.read_text(encoding="utf-8"))
    say(f"matrix    {path.with_suffix('')}.md, .csv, .tex, .json")
    return 1 if failed else 0


_ALLOWED = "a model of conf/model (embedded, sd15, ...), one with another folder (embedded:/path/to/pipeline), or an experiment of conf/experiment"


def target_overrides(target: str) -> list[str]:
    """A target as overrides of an evaluation's configuration. Raises `ConfigError`."""
    kind, _, path = target.partition(":")
    if re.fullmatch(r"\w+", kind) and os.path.isfile(CONF / "experiment" / f"{kind}.yaml"):
        return [f"experiment={kind}", *([f"model.path={path}", f"model.name={Path(path).name}"] if path else [])]
    if re.fullmatch(r"\w+", kind) and os.path.isfile(CONF / "model" / f"{kind}.yaml"):
        return [f"model={kind}", *([f"model.path={path}", f"model.name={Path(path).name}"] if path else [])]
    raise ConfigError(f"the target {target!r} is unknown; give {_ALLOWED}")


def _evaluate(target: str, evaluation: Evaluation) -> list[dict[str, Any]]:
    say(f"target {target}")
    variants = [Variant.unaccelerated(evaluation.steps), *map(_stranger, evaluation.strategies())]
    return [r.to_dict() for r in evaluate(evaluation, variants).results]


def _stranger(variant: Variant) -> Variant:
    """The variant without its strategy's provenance, which would refuse any model but the one it was found on."""
    strategy = variant.baseline.strategy
    assert strategy is not None
    return Variant.of(replace(strategy, provenance={}), variant.name)
