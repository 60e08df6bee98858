"""Records as they were or are at one moment, for who reads them while the search goes on."""

from __future__ import annotations

from dataclasses import replace

from search.records import SearchRecord


def snapshot(record: SearchRecord) -> SearchRecord:
    """A record as it is now; the search goes on with the other. Results first: their candidates are older."""
    results, promotions, hypervolumes = dict(record.results), {n: dict(p) for n, p in list(record.promotions.items())}, list(record.hypervolumes)
    baselines_at = {name: dict(m) for name, m in list(record.baselines_at.items())}
    return replace(
        record, results=results, promotions=promotions, hypervolumes=hypervolumes, baselines_at=baselines_at, baselines=dict(record.baselines),
        events=list(record.events), winners=dict(record.winners), candidates=dict(record.candidates),
    )  # fmt: skip


def as_of(record: SearchRecord, generation: int, results: int | None = None) -> SearchRecord:
    """The record as it was when a generation was complete, with so many results; None for those of the candidates asked for until then."""
    ordered = list(dict.fromkeys(n for event, n in record.events if event == "result"))
    if results is not None and results <= len(ordered):
        there = set(ordered[:results])
    else:
        there = {n for n in record.results if record.candidates[n].generation <= generation}
    known = {n: m for n, m in record.results.items() if n in there}
    candidates = {n: c for n, c in record.candidates.items() if c.generation <= generation or n in known}
    more = {n: p for n, p in record.promotions.items() if n in known}
    return replace(record, candidates=candidates, results=known, promotions=more, hypervolumes=record.hypervolumes[: generation + 1], winners={}, finished=False)
