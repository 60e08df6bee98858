"""Descriptions: texts of others stay as they are, tables stay whole, and nothing is longer than MLflow takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from search.ledger import read_ledger
from search.publish.mlflow_notes import LONGEST, Pages, candidate_note, code, model_note, search_note, version_note
from search.publish.strategies import candidate_strategy, winner_strategies

PAGES = Pages(experiment="7", parent="p", runs={0: "r"})


@pytest.mark.parametrize(("text", "shown"), [("<name>", "`<name>`"), ("a`b", "`` a`b ``"), ("two\nlines", "`two lines`"), ("", "` `"), (None, "`None`")])
def test_a_text_of_others_is_taken_for_nothing_else(text: object, shown: str) -> None:
    assert code(text) == shown


def test_a_model_names_itself_and_an_alias_that_it_has() -> None:
    said = model_note("dato-sd15", ["quality", "fastest"])
    assert "`dato.Strategy.load('models:/dato-sd15@quality')`" in said
    assert "<" not in said


def test_names_like_html_are_shown(make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    record.config["model"]["name"] = "<b>my_model</b>"
    record.notes["reference"] = "500 images of <photos>|mine"
    strategy = winner_strategies(record)["fastest"].with_provenance(source="<script>")
    number = record.winners["fastest"].candidate.number
    pages = replace(PAGES, runs={number: "r"}, model="m", versions={"fastest": "3"})
    for said in (search_note(record, pages), candidate_note(record, record.candidates[number], pages), version_note(strategy, "m", ["fastest"], "7", "r")):
        outside = "".join(part for k, part in enumerate(said.replace("```", "").split("`")) if k % 2 == 0)
        assert "<" not in outside
        assert len(said) <= LONGEST
    assert "#/models/m/versions/3" in search_note(record, pages)
    assert "models:/m/3" in candidate_note(record, record.candidates[number], pages)


def test_one_that_won_often_is_named_once(make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    record.winners["at-2x"] = replace(record.winners["quality"], alias="at-2x")
    rows = [line for line in search_note(record, PAGES).splitlines() if line.startswith("| **")]
    assert [row.split("|")[1].strip() for row in rows] == ["**quality, at-2x**", "**balanced**", "**fastest**"]


def test_a_candidate_that_did_not_win_says_where_it_was_measured(make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    c, m = next((c, m) for c, m in record.front() if c.number not in {w.candidate.number for w in record.winners.values()})
    said = candidate_note(record, c, replace(PAGES, runs={c.number: "r"}))
    assert "On the front" in said and "images of the search" in said and "fresh" not in said
    notes = candidate_strategy(record, c, m).provenance
    assert (notes["validated"], notes["quality"]["fresh"], notes["quality"]["images"]) == (False, False, m.images)


def test_a_long_description_ends_between_its_parts(make_search: Callable[..., Path], tmp_path: Path) -> None:
    record = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl")
    record.config["space"]["samplers"] = ["DPM++"] * 2000
    said = search_note(record, PAGES)
    assert len(said) <= LONGEST
    assert said.count("```") % 2 == 0
