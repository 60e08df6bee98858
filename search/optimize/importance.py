"""Which steps and genes of a search matter for FID and for time: from what it measured, without new images.

A model is fitted to the candidates (`search.optimize.surrogate`'s: extremely randomised trees and a ridge regression), and each gene's
values are exchanged between candidates that the model has not seen: the more its predictions suffer, the more the gene matters
(permutation importance: Breiman, Machine Learning 45, 2001, section 10). The model is only as good as its cross-validated R2,
which stands beside it; where it explains nothing, no importance is given.

It tells what goes with what among the candidates that this search happened to try, which are more alike the longer it ran.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor, VotingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dato.strategy import FULL, Strategy
from search.optimize.description import SAMPLER_PLACES, sampler_place, step_arrays
from search.records import SearchRecord

LEAST = 20
"""Candidates needed: with fewer, a held-out R2 says nothing."""
FOLDS = 5
REPEATS = 10
"""Exchanges of each gene in each fold, where there are not so many candidates that fewer do."""
_ROWS = 30_000
"""Most predictions of a fold: bounds what thousands of candidates cost."""
TARGETS = {"fid": "FID", "latency": "time"}
"""What importance is taken for, in words."""
KINDS = ("depth", "ratio", "guidance", "order", "sampler", "steps")
"""Genes of a step, and last those of the whole run."""
WHOLE = ("sampler", "steps")
"""Genes of the whole run."""
Columns = Mapping[str, np.ndarray]
"""Of N candidates on a common grid of relative time, by kind: (N, grid) of the steps' genes, (N, 1) of the whole run's."""


@dataclass(frozen=True, kw_only=True)
class Gene:
    """A gene that candidates differ in.

    Attributes:
        kind: One of `KINDS`.
        first: Its first sampler step, from 1: of the longest run, in whose relative time shorter ones are taken.
        last: Its last one; the same unless steps share their genes. A gene of the whole run has all steps.
        share: Of the importance of all genes; they sum to 1.
        spread: Standard deviation of the share over the folds.
    """

    kind: str
    first: int
    last: int
    share: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What matters for one objective.

    Attributes:
        target: A key of `TARGETS`.
        candidates: How many it rests on.
        images: How many images each was measured on.
        r2: Share of the variance of the logarithm that predictions of held-out candidates explain; NaN where none were made.
        genes: Empty where `why_not` says why.
        why_not: Why there is nothing, or "".
    """

    target: str
    candidates: int
    images: int
    r2: float
    genes: tuple[Gene, ...] = ()
    why_not: str = ""

    def steps(self) -> dict[int, float]:
        """Share of each step, all its genes together, by the first step of those that share them, from 1; without genes of the whole run."""
        genes = [g for g in self.genes if g.kind not in WHOLE]
        return {k: sum(g.share for g in genes if g.first == k) for k in sorted({g.first for g in genes})}

    def kinds(self) -> dict[str, float]:
        """Share of each kind of gene over all steps; of the kinds that candidates differ in."""
        there = {g.kind for g in self.genes}
        return {kind: sum(g.share for g in self.genes if g.kind == kind) for kind in KINDS if kind in there}


def importance(record: SearchRecord, seed: int = 0) -> list[Importance]:
    """Importance for FID and for time, from the candidates of a search on the number of images that all have."""
    measured = [(c.strategy, m) for c, m in record.evaluated() if m.fid > 0 and m.latency_ms > 0]
    images = measured[0][1].images if measured else 0
    # Good candidates are what matters, and FIDs spread over orders of magnitude: effects count relatively.
    values = np.log([[m.fid, m.latency_ms] for _, m in measured]) if measured else np.empty((0, 2))
    group = int((record.config.get("space") or {}).get("steps_per_gene") or 1)
    strategies = [s for s, _ in measured]
    return [_importance(target, strategies, values[:, k], images, group, seed) for k, target in enumerate(TARGETS)]


def _importance(target: str, strategies: Sequence[Strategy], values: np.ndarray, images: int, group: int, seed: int) -> Importance:
    count = len(strategies)

    def nothing(why: str, r2: float = math.nan) -> Importance:
        return Importance(target=target, candidates=count, images=images, r2=r2, why_not=why)

    if count < LEAST:
        return nothing(f"{count} candidates were measured; importance needs at least {LEAST}")
    if float(values.std()) < 1e-9:
        return nothing("all candidates have the same value")
    columns = _columns(strategies)
    genes = _genes(columns, group)
    predicted, damage = np.empty(count), np.zeros((FOLDS, len(genes)))
    for fold, (train, test) in enumerate(KFold(FOLDS, shuffle=True, random_state=seed).split(values)):
        held_out = _rows(columns, test)
        model = _model(seed).fit(_features(_rows(columns, train)), values[train])
        predicted[test] = model.predict(_features(held_out))
        damage[fold] = _damage(model, held_out, values[test], genes, np.random.default_rng(seed))
    r2 = float(r2_score(values, predicted))
    if r2 <= 0:
        return nothing(f"the model explains nothing of the candidates that it has not seen (R2 {r2:.2f})", r2)
    total = damage.mean(0).clip(0)
    if total.sum() <= 0:
        return nothing(f"no gene matters to the model (R2 {r2:.2f})", r2)
    shares, spreads, grid = total / total.sum(), damage.std(0, ddof=1) / total.sum(), columns["depth"].shape[1]
    found = tuple(
        Gene(kind=kind, first=steps[0] + 1, last=grid if kind in WHOLE else steps[-1] + 1, share=float(share), spread=float(spread))
        for (kind, steps), share, spread in zip(genes, shares, spreads, strict=True)
    )
    return Importance(target=target, candidates=count, images=images, r2=r2, genes=found)


def _columns(strategies: Sequence[Strategy]) -> dict[str, np.ndarray]:
    """The genes of strategies, each stretched to the length of the longest."""
    grid = max(map(len, strategies))
    steps = [step_arrays(s, grid) for s in strategies]
    return {
        "depth": np.array([one.depth for one in steps]),
        "ratio": np.array([one.ratio for one in steps]),
        "guidance": np.array([one.alone for one in steps]),
        "order": np.array([one.order for one in steps]),
        "sampler": np.array([[sampler_place(s)] for s in strategies]),
        "steps": np.array([[len(s)] for s in strategies]),
    }


def _rows(columns: Columns, chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {kind: values[chosen] for kind, values in columns.items()}


def _genes(columns: Columns, group: int) -> list[tuple[str, list[int]]]:
    """Every gene in which candidates differ, with its columns, from 0."""
    found = []
    for kind, values in columns.items():
        width = values.shape[1]
        groups = [list(range(k, min(k + group, width))) for k in range(0, width, group)]
        found += [(kind, steps) for steps in groups if (values[:, steps] != values[0, steps]).any()]
    return found


def _features(columns: Columns) -> np.ndarray:
    """(N, features): each step's own, whose genes are to be told apart, sums over the run, and what the whole run has."""
    depths, ratios, alone, orders = columns["depth"], columns["ratio"], columns["guidance"], columns["order"]
    full, replay = depths == FULL, depths == 0
    kept = np.where(replay, 1.0, 1 - ratios)
    full[:, 0], replay[:, 0] = True, False
    stale = np.zeros(depths.shape)
    for k in range(1, depths.shape[1]):
        stale[:, k] = np.where(full[:, k], 0, stale[:, k - 1] + 1)
    shallow = ~full & ~replay
    sums = [full.sum(1), replay.sum(1), stale.sum(1), stale.max(1), (stale**2).sum(1), (kept * full).sum(1), (kept * shallow).sum(1), alone.sum(1)]
    share = columns["steps"] / depths.shape[1]  # of the grid: sums times it are of the run itself
    halves = (np.where(alone, 0.5, 1.0) * np.where(replay, 0, kept)).sum(1, keepdims=True) * share
    samplers = columns["sampler"] == np.arange(SAMPLER_PLACES)
    whole = [np.stack(sums, 1), np.log(columns["steps"]), halves, samplers, full.sum(1, keepdims=True) * share]
    return np.concatenate([full, replay, kept, stale, alone, np.where(full, 0, orders), *whole], axis=1).astype(float)


def _model(seed: int) -> VotingRegressor:
    trees = ExtraTreesRegressor(n_estimators=100, min_samples_leaf=2, random_state=seed)
    return VotingRegressor([("trees", trees), ("linear", make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 4, 11))))])


def _damage(model: Any, columns: Columns, values: np.ndarray, genes: Sequence[tuple[str, list[int]]], chance: np.random.Generator) -> np.ndarray:
    """(genes,) by how much the squared error of held-out candidates grows when a gene's values change places between them."""
    if not genes:
        return np.zeros(0)
    keep = chance.permutation(len(values))[: max(2, _ROWS // len(genes))]
    columns, values = _rows(columns, keep), values[keep]
    repeats = max(1, min(REPEATS, _ROWS // (len(keep) * len(genes))))
    changed: dict[str, list[np.ndarray]] = {kind: [] for kind in columns}
    for kind, steps in genes:
        for _ in range(repeats):
            order = chance.permutation(len(keep))
            for other, given in columns.items():
                moved = given.copy()
                if other == kind:
                    moved[:, steps] = moved[order][:, steps]
                changed[other].append(moved)
    base = (model.predict(_features(columns)) - values) ** 2
    found = model.predict(_features({kind: np.concatenate(parts) for kind, parts in changed.items()})).reshape(len(genes), repeats, len(keep))
    return ((found - values) ** 2 - base).mean((1, 2))


def importance_table(found: Sequence[Importance]) -> str:
    """Every gene as CSV, the most important first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["objective", "gene", "first_step", "last_step", "share", "spread_over_folds", "r2", "candidates", "images"])
    for one in found:
        for g in sorted(one.genes, key=lambda g: -g.share):
            writer.writerow([one.target, g.kind, g.first, g.last, f"{g.share:.4f}", f"{g.spread:.4f}", f"{one.r2:.4f}", one.candidates, one.images])
    return out.getvalue()
