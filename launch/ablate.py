"""``dato ablate table=<name>``: the paper's Tables 3 and 4, and ablations of our own, each by one command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from analysis.quoted import quoted, source
from analysis.tables import comparison_table, markdown, matrix_table, write_tables
from dato.options import Options
from dato.step import ORDERS
from dato.strategy import FULL, Strategy
from launch.config import ConfigError
from launch.evaluate import caption
from launch.evaluation import Evaluation, build_evaluation, evaluate, say
from launch.hydra_app import run_with_hydra
from search.evaluate.variants import Variant

TABLES = {
    "3": "base tokens of the two guidance halves aligned or not (the paper's Table 3)",
    "4": "base tokens by DiffScore or at random (the paper's Table 4)",
    "source": "DiffScore of the UNet's predictions or of the last unit's features",
    "plan": "tokens planned once a call or in every layer",
    "patch": "side of a patch",
    "align": "base tokens of the conditional half for both, of the unconditional half for both, or each its own",
    "order": "the paper's Table 6 read from its label 0 or from its label 49",
    "extrapolation": "what is reused, predictions or features, as it was or extrapolated by order 1 or 2",
    "genes": "searches without one kind of gene each (sampler, steps, guidance, order, depth, ratio): dato bench search, whose keys it takes",
    "search": "depths and ratios searched together or in two stages, the paper's operators or ours: dato bench search, whose keys it takes",
}
"""Each ablation with its line of help."""
_SEARCHES = ("default", "two stages", "paper", "random")
_GENES = ("default", *(f"without {gene}" for gene in ("sampler", "steps", "guidance", "order", "depth", "ratio")), "random")
_OPTIONS: dict[str, list[tuple[str, Options]]] = {
    "3": [("aligned", Options()), ("unaligned", Options(align="none"))],
    "4": [("with DiffScore", Options()), ("without", Options(use_score=False))],
    "source": [("predictions", Options()), ("features", Options(diff_source="feature"))],
    "plan": [("once a call", Options()), ("in every layer", Options(plan_per="layer"))],
    "align": [("conditional", Options()), ("unconditional", Options(align="uncond")), ("each its own", Options(align="none"))],
}


def run(arguments: Sequence[str]) -> int:
    """Run an ablation, or continue it; without arguments, list them. Returns 1 where a variant failed."""
    tables = [a.removeprefix("table=") for a in arguments if a.startswith("table=")]
    if not arguments:
        say("\n".join(f"  dato ablate table={name:<8} {line}" for name, line in TABLES.items()))
        return 0
    if len(tables) != 1 or tables[0] not in TABLES:
        raise ConfigError(f"dato ablate was given {list(arguments)}; it takes one table=, of {', '.join(TABLES)}, and overrides")
    table = tables[0]
    if table in ("search", "genes"):
        from launch.bench.search import run as compare_searches  # its rivals need packages that nothing else here does

        methods, space = (_SEARCHES, "paper") if table == "search" else (_GENES, "whole")
        return compare_searches([f"methods={';'.join(methods)}", f"space={space}", "tables=with", *(a for a in arguments if not a.startswith("table="))])
    return run_with_hydra("ablate", "evaluate", [a for a in arguments if not a.startswith("table=")], lambda raw: _run(table, build_evaluation("ablate", raw)))


def _run(table: str, evaluation: Evaluation) -> int:
    outcome = evaluate(evaluation, ablation_variants(table, evaluation))
    results = [r.to_dict() for r in outcome.results]
    metric = evaluation.spec.metrics[0]
    text = f"{TABLES[table]}. {caption(evaluation, outcome.about)}"
    head, rows = matrix_table("" if table in ("order", "extrapolation") else "prune ratio", results, metric)
    below = _effects(table, outcome.results, metric) + markdown(*comparison_table(results, None)) + _quoted(table)
    path = write_tables(evaluation.folder, f"ablation-{table}", head, rows, text, below)
    say(path.read_text(encoding="utf-8"))
    say(f"tables    {path.with_suffix('')}.md, .csv, .tex")
    return 1 if any(r.error for r in outcome.results) else 0


def ablation_variants(table: str, evaluation: Evaluation) -> list[Variant]:
    """The unaccelerated pipeline and the ablation's variants, each with its place in the table."""
    steps, settings = evaluation.steps, evaluation.keys.ablation
    found = [Variant.unaccelerated(steps)]
    if table == "order":
        for name in ("paper-b1", "paper-b1-reversed"):
            label = name if steps == 50 else f"{name} (50 steps resampled to {steps})"
            found.append(Variant.of(_fit(Strategy.load(name), steps), label, row=(label, evaluation.spec.metrics[0])))
        return found
    if table == "extrapolation":
        for interval in settings.caches:
            for depth in (0, 1):
                for order in ORDERS:
                    label = f"order {order}" if order else "as it was"
                    reused = Strategy(tuple(replace(s, order=order if s.cache_depth != FULL else 0) for s in _every(interval, steps, depth)))
                    what = "predictions" if depth == 0 else "features"
                    found.append(Variant.of(reused, f"every {interval}, {what}, {label}", row=(f"{what} reused between calls {interval} steps apart", label)))
        return found
    choices = _OPTIONS.get(table) or [(f"{p} x {p}", Options(patch=int(p))) for p in settings.patches]
    caches: list[tuple[str, Callable[[float], Strategy]]] = [_cache(c, steps) for c in settings.caches]
    for ratio in settings.ratios:
        for cache, make in caches:
            for label, options in choices:
                name = f"{cache}, r={ratio:g}, {label}"
                found.append(Variant.of(make(float(ratio)), name, options, (f"{ratio:g}", f"{cache}, {label}")))
    return found


def _cache(setting: int | str, steps: int) -> tuple[str, Callable[[float], Strategy]]:
    if isinstance(setting, int):
        return f"every {setting}", lambda ratio: Strategy.uniform(steps, setting, prune_ratio=ratio)
    base = _fit(Strategy.load(setting), steps)
    return setting, lambda ratio: replace(base, steps=tuple(replace(s, prune_ratio=ratio) for s in base))


def _every(interval: int | str, steps: int, depth: int) -> Strategy:
    if not isinstance(interval, int):
        raise ConfigError(f"ablation.caches names {interval!r}; table=extrapolation takes intervals, such as [2,3]")
    return Strategy.uniform(steps, interval, depth)


def _fit(strategy: Strategy, steps: int) -> Strategy:
    return strategy if len(strategy) == steps or strategy.sampler is not None else strategy.resample(steps)


def _effects(table: str, results: Sequence, metric: str) -> str:
    """The effect of each variant against the first, with intervals over the same images."""
    by_name = {r.name: r for r in results if not r.error}
    labels = [label for label, _ in _OPTIONS.get(table, [])] or (["as it was", "order 1", "order 2"] if table == "extrapolation" else [])
    lines = []
    for r in by_name.values():
        for label in labels[1:]:
            if r.name.endswith(f", {label}"):
                first = by_name.get(r.name.removesuffix(label) + labels[0])
                if first is not None:
                    effect = replace(r.metrics[metric].minus(first.metrics[metric]), left_out=())
                    lines.append([r.name, f"{effect.value:+.3f}", f"{effect.low:+.3f} .. {effect.high:+.3f}" if effect.low == effect.low else "-"])
    if not lines:
        return ""
    return f"Against '{labels[0]}', {metric} on the same prompts and seeds:\n\n" + markdown(["setting", "difference", "95 %"], lines) + "\n"


def _quoted(table: str) -> str:
    if table not in ("3", "4"):
        return ""
    rows = quoted(f"table{table}")
    body = [[f"{v:g}" for v in row.values()] for row in rows]
    return f"\nQuoted from {source()} (Table {table}; SD v1.5 on ImageNet, FID; what its two caches are is not printed):\n\n" + markdown(list(rows[0]), body)
