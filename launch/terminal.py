"""What a person sees of a running search in the terminal: one bar, or plain lines where it is not a terminal."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from analysis.progress import Progress, progress
from dato.strategy import Strategy
from search.measurements import difference_in_words
from search.optimize.winners import closest_in_words, in_words, tolerance_of
from search.records import UNACCELERATED, Candidate, SearchRecord

_ALLOWED_S = 0.001
"""Seconds an event that drawing may take: what is known of a long search takes longer to sum up than a candidate may cost."""


class SearchView:
    """Shows candidates, generation, front size, hypervolume, best speedup at equal FID, utilisation, failures and time left."""

    def __init__(self, total: int, generations: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._total, self._generations = total, generations
        self._progress = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("candidates", total=total, state="")
        self._clock: list[float] = []
        self._older = 0
        self._owed_s = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    def started(self, record: SearchRecord) -> None:
        """The search begins or goes on."""
        if record.results:
            self.say(f"continuing: {len(record.results)} of {self._total} candidates are in the ledger")
        self._older = len(record.results)
        self._progress.start()
        self._tick(record)

    def measured(self, record: SearchRecord, candidate: Candidate) -> None:
        """A candidate or baseline has a measurement."""
        self._tick(record)
        if candidate.number < 0:
            _, m = record.baselines[candidate.origin]
            floor = ", the noise floor" if record.own_reference and candidate.origin == UNACCELERATED else ""
            self.say(f"{candidate.origin}: FID {m.fid:.2f} (+- {m.fid_high - m.fid:.2f}){floor}, {m.latency_ms:.0f} ms per image")
        elif not self.console.is_terminal:
            more = record.promotions.get(candidate.number)
            m = list(more.values())[-1] if more else record.results[candidate.number]
            what = f"FID {m.fid:.2f}, {m.latency_ms:.0f} ms" if m.ok else f"failed: {m.error}"
            which = f"promoted to {m.images} images" if more else f"candidate {len(record.results)}/{self._total}"
            self.say(f"{which}  {_named(candidate.strategy)}  {what}")

    def generation_done(self, record: SearchRecord, generation: int) -> None:
        """A generation is complete."""
        self._clock.append(time.time())
        for line in self._update(record).lines():
            self.say(line)

    def stop(self) -> None:
        """End the bar."""
        self._progress.stop()

    def _tick(self, record: SearchRecord) -> None:
        """An event; the bar follows it where drawing it costs no more than `_ALLOWED_S` an event in the long run."""
        self._clock.append(time.time())
        self._owed_s = max(0.0, self._owed_s - _ALLOWED_S)
        if self.console.is_terminal and not self._owed_s:
            begin = time.perf_counter()
            self._update(record)
            self._owed_s = time.perf_counter() - begin

    def _update(self, record: SearchRecord) -> Progress:
        now = progress(record, self._clock, older=self._older)
        best = f"{now.speedup:.2f}x" if now.speedup else "-"
        busy = "-" if now.utilisation is None else f"{now.utilisation:.0%}"
        hypervolume = "-" if now.hypervolume is None else f"{now.hypervolume:.4f}"
        state = f"gen {min(now.generation + 1, self._generations)}/{self._generations}  front {now.front}  hv {hypervolume}  best {best}  busy {busy}  failed {now.failures}"
        self._progress.update(self._task, completed=now.done, state=state)
        return now

    def winners(self, record: SearchRecord) -> None:
        """The table at the end."""
        tolerance = tolerance_of(record.config)
        if "fastest" not in record.winners:
            for line in no_fastest(record, tolerance):
                self.say(line)
        if not record.winners:
            return
        plain = next(iter(record.winners.values())).fresh_baseline
        spread = "" if math.isnan(plain.fid_low) else f"; the unaccelerated FID's 95 % interval is {plain.fid_low:.2f} .. {plain.fid_high:.2f}"
        table = Table(title=f"winners, on fresh seeds{spread}", title_justify="left")
        for name in ("winner", "speedup", "ms/image", "FID", "less unaccelerated", "FID in the search", "strategy"):
            left, whole = name in ("winner", "strategy"), name in ("winner", "speedup", "ms/image", "FID")
            table.add_column(name, justify="left" if left else "right", no_wrap=whole)
        searched = record.baselines[UNACCELERATED][1]
        table.add_row("unaccelerated", "1.00x", f"{plain.latency_ms:.0f}", f"{plain.fid:.2f}", "", f"{searched.fid:.2f}", "")
        for aliases in record.aliases.values():
            w = record.winners[aliases[0]]
            less = difference_in_words(w.fresh, w.fresh_baseline)
            table.add_row("\n".join(aliases), f"{w.speedup:.2f}x", f"{w.fresh.latency_ms:.0f}", f"{w.fresh.fid:.2f}", less, f"{w.searched.fid:.2f}", _named(w.candidate.strategy))
            table.add_row("", "", "", "", in_words(w, tolerance) + f", {w.fresh.images} images", "", "", style="dim")
        Console(highlight=False, width=None if self.console.is_terminal else 140).print(table)
        self.say(record.reference_note)


def _named(strategy: Strategy) -> str:
    """A strategy's sampler, where it has one, and its steps in short."""
    return f"{strategy.sampler} {strategy}" if strategy.sampler else str(strategy)


def no_fastest(record: SearchRecord, tolerance: float) -> list[str]:
    """Why there is no `fastest`, and what came closest, in words."""
    said = [f"no fastest: nothing was shown to be within {tolerance:g} FID points of the unaccelerated pipeline (search.tolerance) on the search's images and on fresh ones"]
    if near := closest_in_words(record):
        said.append(near)
    return [*said, "search on with more search.generations or protocol.images, or allow more with search.tolerance"]
