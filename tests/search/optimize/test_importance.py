"""What matters, found in records whose truth is known."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from dato.strategy import FULL, Step, Strategy
from search.measurements import Measurement
from search.optimize.importance import LEAST, _columns, _damage, _features, importance, importance_table
from search.records import Candidate, SearchRecord

STEPS = 8


def record(count: int, seed: int = 0, group: int = 1, noise: float = 0.02, fid_step: int = 3) -> SearchRecord:
    """FID follows the depth of one step, time the ratio of the sixth; "noise": the spread of their logarithms beside."""
    chance = np.random.default_rng(seed)
    found = SearchRecord(search_id="toy", config={"space": {"steps_per_gene": group}})
    for n in range(count):
        depths, ratios = (np.repeat(chance.choice(values, STEPS), group)[:STEPS] for values in ((1, FULL), (0.3, 0.5, 0.7)))
        depths[0] = FULL
        strategy = Strategy(tuple(Step(int(d), float(r)) for d, r in zip(depths, ratios, strict=True)))
        fid = 10 * (1.5 if depths[fid_step - 1] == 1 else 1) * np.exp(chance.normal(0, noise))
        ms = 100 * (2 - ratios[5]) * np.exp(chance.normal(0, noise))
        found.candidates[n] = Candidate(number=n, generation=n // 10, strategy=strategy)
        found.results[n] = Measurement(fid=float(fid), latency_ms=float(ms), images=50)
    return found


def test_the_step_and_the_gene_that_matter_are_found() -> None:
    fid, time = importance(record(60))
    assert fid.r2 > 0.8 and time.r2 > 0.5
    assert fid.steps()[3] == max(fid.steps().values()) > 0.7
    assert fid.kinds()["depth"] > 0.8
    assert max(time.genes, key=lambda g: g.share).first == 6
    assert time.kinds()["ratio"] > 0.7
    assert sum(g.share for g in fid.genes) == pytest.approx(1)
    assert not [g for g in fid.genes if g.kind == "depth" and g.first == 1], "a gene in which all candidates agree is not searched"
    assert importance(record(60)) == importance(record(60))


def test_where_nothing_can_be_explained_it_says_so() -> None:
    shuffled = record(40)
    values = list(shuffled.results.values())
    order = np.random.default_rng(1).permutation(len(values))
    shuffled.results = {n: values[k] for n, k in enumerate(order)}
    for one in importance(shuffled):
        assert one.genes == () and one.r2 <= 0
        assert "explains nothing" in one.why_not
    for one in importance(record(LEAST - 1)):
        assert one.genes == () and "19 candidates" in one.why_not
    assert importance(SearchRecord(search_id="empty", config={}))[0].why_not.startswith("0 candidates")
    same = record(30)
    same.results = {n: Measurement(fid=10.0, latency_ms=5.0, images=50) for n in same.results}
    assert importance(same)[0].why_not == "all candidates have the same value"


def test_failures_and_other_numbers_of_images_are_left_out() -> None:
    told = record(40)
    told.results[7] = Measurement(error="no luck")
    told.promotions[3] = {100: Measurement(fid=1e6, latency_ms=1.0, images=100)}
    found = importance(told)[0]
    assert (found.candidates, found.images) == (39, 50)
    assert found.steps()[3] > 0.7


def test_steps_that_share_their_genes_are_one() -> None:
    fid, _ = importance(record(60, group=2, fid_step=3))
    assert {(g.first, g.last) for g in fid.genes} <= {(1, 2), (3, 4), (5, 6), (7, 8)}
    assert fid.steps()[3] > 0.7
    assert fid.steps().keys() <= {1, 3, 5, 7}


def test_the_growth_of_the_error_is_that_of_scikit_learn() -> None:
    chance = np.random.default_rng(0)
    depths, ratios = chance.choice([1, FULL], (400, 4)), chance.choice([0.3, 0.7], (400, 4))
    values = 3.0 * (depths[:, 2] == FULL) + 2.0 * ratios[:, 1]

    def columns(rows: np.ndarray) -> dict[str, np.ndarray]:
        found = _columns([Strategy.full(4)] * len(rows))
        return found | {"depth": rows[:, :4].astype(int), "ratio": rows[:, 4:]}

    genome = np.hstack([depths, ratios])
    model = LinearRegression().fit(_features(columns(genome)), values)
    theirs_model = make_pipeline(FunctionTransformer(lambda rows: _features(columns(rows))), LinearRegression()).fit(genome, values)
    genes = [(kind, [k]) for kind in ("depth", "ratio") for k in range(4)]
    ours = _damage(model, columns(genome), values, genes, np.random.default_rng(0))
    theirs = permutation_importance(theirs_model, genome, values, scoring="neg_mean_squared_error", n_repeats=10, random_state=0).importances_mean
    assert ours == pytest.approx(theirs, abs=0.15 * theirs.max())
    assert ours[2] == max(ours)


def test_features_of_many_strategies_are_those_of_each() -> None:
    strategies = [Strategy.full(9), Strategy.uniform(9, 3, prune_ratio=0.5), Strategy(tuple(Step(d, 0.3 if d else 0.0) for d in (12, 0, 0, 1, 12, 1, 0, 12, 1)))]
    strategies += [Strategy.full(3, sampler="DPM++"), Strategy((Step(12), Step(1, 0.5, "cond", 1), Step(0, 0.0, "cond", 2)), sampler="UniPC")]
    columns = _columns(strategies)
    found = _features(columns)
    alone = [_features({kind: values[[i]] for kind, values in columns.items()})[0] for i in range(len(strategies))]
    np.testing.assert_allclose(found, alone)
    assert len({tuple(row) for row in found.tolist()}) == len(strategies)


def test_genes_of_the_whole_run_and_of_the_new_kinds_are_found() -> None:
    chance = np.random.default_rng(0)
    told = SearchRecord(search_id="toy", config={"space": {"steps_per_gene": 1}})
    for n in range(120):
        length, sampler = int(chance.choice([4, 8])), chance.choice(["DPM++", "DDIM"])
        steps = [Step(FULL, 0.0, str(chance.choice(["both", "cond"])), 0) for _ in range(length)]
        fid = 10 * (1.5 if sampler == "DDIM" else 1.0) * (1.2 if steps[-1].guidance == "both" else 1.0) * np.exp(chance.normal(0, 0.01))
        ms = length * np.exp(chance.normal(0, 0.01))
        told.candidates[n] = Candidate(number=n, generation=0, strategy=Strategy(tuple(steps), sampler=str(sampler)))  # type: ignore[arg-type]
        told.results[n] = Measurement(fid=float(fid), latency_ms=float(ms), images=50)
    fid, time = importance(told)
    assert fid.kinds()["sampler"] == max(fid.kinds().values()) > 0.5
    assert max((g for g in fid.genes if g.kind == "guidance"), key=lambda g: g.share).first >= 7, "the last quarter of the run"
    assert time.kinds()["steps"] > 0.7
    assert set(fid.kinds()) == {"guidance", "sampler", "steps"}
    assert fid.steps().keys() <= set(range(1, 9))


def test_numbers_for_a_spreadsheet() -> None:
    found = importance(record(60))
    rows = list(csv.DictReader(io.StringIO(importance_table(found))))
    assert (rows[0]["objective"], rows[0]["gene"], rows[0]["first_step"]) == ("fid", "depth", "3")
