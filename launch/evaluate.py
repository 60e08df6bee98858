"""``dato evaluate``: strategies and their rivals on one model and data set, as a table like its Tables 1, 2 and 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from analysis.bias import write_bias_page
from analysis.quoted import quoted
from analysis.tables import comparison_table, equal_latency_block, quoted_block, similarity_note, write_tables
from launch.evaluation import Evaluation, build_evaluation, evaluate, say
from launch.hydra_app import run_with_hydra
from launch.image_grid import grid
from search.evaluate.model_files import EMBEDDED_MODELS
from search.evaluate.results import at_speedups
from search.evaluate.variants import Variant


def run(overrides: Sequence[str]) -> int:
    """Evaluate, or continue, and write the tables; returns 1 where one failed."""
    return run_with_hydra("evaluate", "evaluate", overrides, lambda raw: _run(build_evaluation("evaluate", raw)))


def _run(evaluation: Evaluation) -> int:
    key = evaluation.keys.evaluation.quoted
    if key is not None:
        quoted(key)
    variants = [*evaluation.rivals(say), *evaluation.strategies()]
    outcome = evaluate(evaluation, variants)
    head, rows = comparison_table([r.to_dict() for r in outcome.results], key)
    against = {kind: {s: asdict(v) if v else None for s, v in row.items()} for kind, row in at_speedups(outcome.results).items()}
    below = [b for b in (similarity_note(m for r in outcome.results for m in r.metrics), equal_latency_block(against), quoted_block(key) if key else "") if b]
    path = write_tables(evaluation.folder, "table", head, rows, caption(evaluation, outcome.about), "\n".join(below))
    write_grid(evaluation, variants)
    if outcome.about.get("fid_by_images"):
        write_bias_page(evaluation.folder / "images.html", outcome.about["fid_by_images"], caption(evaluation, outcome.about))
    say(path.read_text(encoding="utf-8"))
    say(f"tables    {path.with_suffix('')}.md, .csv, .tex; all numbers in {evaluation.folder / 'evaluation.json'}; images in samples.png")
    return 1 if any(r.error for r in outcome.results) else 0


def caption(evaluation: Evaluation, about: Mapping[str, Any] | None = None) -> str:
    """What a table's numbers are of; `about` an outcome, against what."""
    model, protocol = evaluation.spec.model, evaluation.spec.protocol
    size = f", {model.width} x {model.height}" if model.width and model.height else ""
    sampler = model.scheduler or "the model's own sampler"
    against = f", against {about['reference']}" if about and about.get("reference") else ""
    if against and evaluation.spec.data.own_reference:
        against += " (the unaccelerated pipeline's own FID is the noise floor)"
    return (
        f"{model.name} on {evaluation.spec.data.name}: {protocol.images} images, {model.steps} steps of {sampler}, "
        f"guidance {model.guidance:g}{size}, {model.dtype}, {protocol.features.partition(':')[0]} features{against}; compare values of this table only."
    )


def write_grid(evaluation: Evaluation, variants: Sequence[Variant]) -> None:
    """Figure 2: a row of images for every variant."""
    folder = evaluation.folder / "samples"
    rows = [(v.name, folder / f"{v.digest}.png") for v in variants if (folder / f"{v.digest}.png").is_file()]
    if rows:
        grid(rows, scale=2 if evaluation.spec.model.path in EMBEDDED_MODELS else 1).save(evaluation.folder / "samples.png")
