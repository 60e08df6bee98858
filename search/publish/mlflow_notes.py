"""Descriptions that MLflow shows of a search, its candidates, a registered model and its versions: Markdown, with links between their pages.

MLflow takes what looks like HTML out of Markdown, and Markdown takes ``_``, ``*`` and ``|`` for its own: every text that is not ours
goes through `code`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from dato.card_text import what_it_does
from dato.strategy import Strategy
from search.measurements import Measurement, difference_in_words
from search.optimize.importance import TARGETS, Importance
from search.optimize.winners import aliases_of, closest_in_words, in_words, tolerance_of
from search.publish.curves import latest
from search.records import UNACCELERATED, Candidate, SearchRecord

LONGEST = 5000
"""Characters that every version of MLflow takes."""
NOTE = "mlflow.note.content"
"""The tag that MLflow's page shows as a run's description."""
WORKFLOW = "workflowType=machine_learning"
"""Has MLflow's page, which begins with a menu for traces and prompts, show that for runs and models."""


@dataclass(frozen=True, kw_only=True)
class Pages:
    """Where MLflow shows what belongs to a search.

    Attributes:
        experiment: Its experiment's id.
        parent: The search's run.
        runs: Run of each candidate that has one, by number.
        model: The registered model, or None where nothing is registered.
        versions: Its versions by the aliases that name them.
        artifacts: Files of the parent run that are there, by what they show.
    """

    experiment: str
    parent: str
    runs: Mapping[int, str] = field(default_factory=dict)
    model: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)

    def run(self, run_id: str, artifact: str = "") -> str:
        """Address of a run's page, or of a file of it."""
        return run_page(self.experiment, run_id, artifact)

    def version(self, alias: str) -> str | None:
        """Link to the version of an alias, or None where there is none."""
        found = self.versions.get(alias)
        return f"[version {found}](#/models/{quote(self.model or '', safe='')}/versions/{found})" if found else None


def run_page(experiment: str, run_id: str, artifact: str = "") -> str:
    """Address of a run's page within MLflow, or of a file of it."""
    return f"#/experiments/{experiment}/runs/{run_id}{f'/artifacts/{quote(artifact)}' if artifact else ''}?{WORKFLOW}"


def experiment_page(experiment: str) -> str:
    """Address of an experiment's runs within MLflow."""
    return f"#/experiments/{experiment}/runs?{WORKFLOW}"


def code(text: object) -> str:
    """A text as it is, on one line, in Markdown: within more backticks than it holds next to each other."""
    plain = " ".join(str(text).split()) or " "
    ticks, longest = 0, 0
    for letter in plain:
        ticks = ticks + 1 if letter == "`" else 0
        longest = max(longest, ticks)
    fence, edge = "`" * (longest + 1), " " if "`" in plain else ""
    return f"{fence}{edge}{plain}{edge}{fence}"


def search_note(record: SearchRecord, pages: Pages, importances: Sequence[Importance] = ()) -> str:
    """Of the parent run: what was searched, what won, how to go on, and where the report is."""
    parts = [*_winners(record, pages), _what_was_searched(record), *_go_on(record, pages)]
    files = ", ".join(f"[{what}]({pages.run(pages.parent, path)})" for what, path in pages.artifacts.items())
    parts.append(f"See {files}." if files else "")
    matters = [f"{TARGETS[one.target]} {one.r2:.2f}" for one in importances if one.genes]
    parts.append(f"Which steps and genes matter is in `importance.csv`; R2 on candidates not seen: {', '.join(matters)}." if matters else "")
    return _short(parts)


def candidate_note(record: SearchRecord, candidate: Candidate, pages: Pages) -> str:
    """Of the run of a candidate on the front, or that won: what it does, its figures, and the lines that use it."""
    aliases = aliases_of(record).get(candidate.number, [])
    title = f"**{', '.join(aliases) or 'On the front'}** of [search {code(record.search_id)}]({pages.run(pages.parent)})"
    won, m = record.winners[aliases[0]] if aliases else None, latest(record, candidate.number)
    parts = [f"{title}: {_headline(won.fresh, won.fresh_baseline)}." if won else title, what_it_does(candidate.strategy)]
    if won:
        parts += [_figures(won.fresh, won.fresh_baseline, "fresh images, which chose nothing"), f"It is {in_words(won, tolerance_of(record.config))}."]
    if m.ok and UNACCELERATED in record.baselines:
        plain = record.plain(m.images)
        parts[0] += "" if won else f": {_headline(m, plain)}."
        parts.append(_figures(m, plain, "images of the search"))
    models = {link: [a for a in aliases if pages.version(a) == link] for alias in aliases if (link := pages.version(alias))}
    parts += [f"Registered as {code(pages.model)}, {link} ({', '.join(names)})." for link, names in models.items()]
    registered = next((a for a in aliases if a in pages.versions), None)
    source = f"models:/{pages.model}/{pages.versions[registered]}" if registered else f"runs:/{pages.runs[candidate.number]}/strategy.json"
    return _short([*parts, use(source, len(candidate.strategy))])


def model_note(name: str, aliases: Sequence[str]) -> str:
    """Of a registered model, with an alias that it has or is about to have."""
    address = f"models:/{name}@{aliases[0]}"
    return (
        f"Strategies that make a diffusion pipeline faster, found by `dato search`: a version for each, aliases for the best. "
        f"{code(f'dato.Strategy.load({address!r})')} gives the strategy, {code(f'mlflow.pyfunc.load_model({address!r})')} the pipeline with it."
    )


def version_note(strategy: Strategy, name: str, aliases: Sequence[str], experiment: str, run_id: str) -> str:
    """Of a model version: what the strategy does, its figures, the run it comes from, and the lines that use it."""
    notes = strategy.provenance
    quality, latency = _part(notes, "quality"), _part(notes, "latency")
    source = f"[its run]({run_page(experiment, run_id)})"
    model = _part(notes, "model")
    title = f"**{', '.join(aliases)}**" + (f" for {code(model.get('name') or model.get('path'))}" if model else "") + f"; from {source}"
    parts = [title, what_it_does(replace(strategy, provenance={}))]  # without its source, which is a text of others
    if quality and latency:
        interval, speeds = quality.get("difference_interval"), latency.get("speedup_range")
        rows = [
            ("ms per image", latency.get("value"), latency.get("baseline"), f"{_number(latency.get('speedup'))}x faster{_ends(speeds, 'batches ')}"),
            ("FID, lower is better", quality.get("value"), quality.get("baseline"), f"{_number(quality.get('difference'), '+')}{_ends(interval, '95 % ')}"),
        ]
        where = "fresh images" if quality.get("fresh") else "images of the search"
        said = f"; {quality['in_words']}" if quality.get("in_words") else ""
        parts += [
            _table(("", "this strategy", "unaccelerated", "difference"), [(what, _number(a), _number(b), c) for what, a, b, c in rows]),
            f"Measured on {quality.get('images')} {where}, on {code(latency.get('device'))}, against {code(quality.get('reference'))}{said}.",
        ]
    return _short([*parts, use(f"models:/{name}@{aliases[0]}", len(strategy)), "`card.md` among the files of its model says more, such as how to reproduce it."])


def use(source: str, steps: int) -> str:
    """The lines that use a strategy, as Markdown."""
    return (
        f'```python\nimport dato\n\nstrategy = dato.Strategy.load("{source}")\nwith dato.accelerate(pipe, strategy):  # pipe: the diffusers pipeline\n'
        f"    image = pipe(prompt, num_inference_steps={steps}).images[0]\n```"
    )


def _what_was_searched(record: SearchRecord) -> str:
    config, space = record.config, record.config.get("space") or {}
    model = config.get("model") or {}
    samplers = ", ".join("its own" if s is None else str(s) for s in space.get("samplers") or [])
    ways = {
        "samplers": samplers,
        "steps": ", ".join(f"{s:.0%}" if s <= 1 else f"{s:g}" for s in space.get("steps") or []),
        "guidance": ", ".join(map(str, space.get("guidance") or [])),
        "cache depths": ", ".join(map(str, space.get("depths") or [])),
        "prune ratios": ", ".join(f"{r:g}" for r in space.get("ratios") or []),
    }
    tried = "; ".join(f"{what} {code(given)}" for what, given in ways.items() if given)
    failed = sum(not m.ok for m in record.results.values())
    state = "" if record.finished else ", so far"
    counts = f"{len(record.evaluated())} strategies measured{state}" + (f", {failed} failed" if failed else "") + f"; {len(record.front())} are on the front of FID and time"
    return (
        f"How to run {code(model.get('name', 'a model'))} faster at the same quality. {counts}. "
        f"FID is against {code(record.reference)}." + (f"\n\nSearched: {tried}." if tried else "")
    )


def _winners(record: SearchRecord, pages: Pages) -> list[str]:
    if not record.winners:
        return ["It ended without winners." if record.finished else "Winners are chosen at its end."]
    rows = []
    for number, aliases in aliases_of(record).items():
        winner, run = record.winners[aliases[0]], pages.runs.get(number)
        strategy = winner.candidate.strategy
        versions = ", ".join(dict.fromkeys(link for a in aliases if (link := pages.version(a))))
        name = f"[candidate {number}]({pages.run(run)})" if run else f"candidate {number}"
        steps = f"{len(strategy)} {code(strategy.sampler or 'own')}"
        rows.append((f"**{', '.join(aliases)}**", name, f"{winner.speedup:.2f}x", difference_in_words(winner.fresh, winner.fresh_baseline), steps, *([versions] if pages.versions else [])))
    heads = ("won", "run", "speedup", "FID less unaccelerated (95 %)", "steps, sampler", *([f"of {code(pages.model)}"] if pages.versions else []))
    images = sorted({w.fresh.images for w in record.winners.values()})
    where = f"On {' or '.join(map(str, images))} fresh images, which chose nothing."
    near = closest_in_words(record) if "fastest" not in record.winners else None
    missing = f"There is no `fastest`: nothing was shown to be within {tolerance_of(record.config):g} FID points" + (f"; {near}." if near else ".")
    won = record.winners.get("fastest")
    return [f"**fastest: {_headline(won.fresh, won.fresh_baseline)}**" if won else missing, _table(heads, rows), where]


def _go_on(record: SearchRecord, pages: Pages) -> list[str]:
    alias = "fastest" if "fastest" in record.winners else next(iter(record.winners), None)
    if alias:
        version = pages.versions.get(alias)
        source = f"models:/{pages.model}/{version}" if version else f"winners/{alias}.json"
        where = "" if version else "\n\nin the search's folder, or as each winner's run says."
        more = "`dato export folder=<its folder>` hands winners over; `dato search` with its parameters and another `seed` searches anew."
        return [use(source, len(record.winners[alias].candidate.strategy)) + where, more]
    return [] if record.finished else ["The same `dato search` command continues it; `dato status folder=<its folder>` says how it stands."]


def _headline(m: Measurement, plain: Measurement) -> str:
    return f"{plain.latency_ms / m.latency_ms:.2f}x faster, FID {difference_in_words(m, plain)}"


def _figures(m: Measurement, plain: Measurement, where: str) -> str:
    rows = [
        ("ms per image", f"{m.latency_ms:.2f}", f"{plain.latency_ms:.2f}", f"{plain.latency_ms / m.latency_ms:.2f}x faster"),
        ("FID, lower is better", f"{m.fid:.2f}", f"{plain.fid:.2f}", difference_in_words(m, plain)),
    ]
    return _table((f"{m.images} {where}", "this strategy", "unaccelerated", "difference (95 %)"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _short(parts: Sequence[str]) -> str:
    """As many of the parts, whole, as MLflow takes."""
    found = ""
    for part in filter(None, parts):
        if len(found) + len(part) + 2 <= LONGEST:
            found += f"\n\n{part}" if found else part
    return found


def _part(notes: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = notes.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if isinstance(value, int | float) else "not measured"


def _ends(ends: Any, what: str) -> str:
    whole = isinstance(ends, list | tuple) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends)
    return f" ({what}{ends[0]:.2f} .. {ends[1]:.2f})" if whole else ""
