"""The commits of what comes from a hub: noted once, gone on with, and told to whoever takes over a winner."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from launch.config import ConfigError, build, compose_config
from launch.doctor import check_here
from launch.pinned import FILE, pin_evaluation, pin_search
from search.evaluate.model_files import EMBEDDED
from search.ledger import Ledger, LedgerError, read_ledger
from search.publish.strategies import as_pinned, command, provenance
from tests.search.evaluate.hub_server import COMMIT, Hub, serving

NEXT = "f" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({"team/digits": EMBEDDED, "team/parts": EMBEDDED})) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield served


def test_a_search_goes_on_with_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    config = build(compose_config("search", ["model.path=team/digits", "model.components={vae: team/parts/vae}", "model.lora=[team/parts/style.safetensors@v1]"]))
    said: list[str] = []
    ledger = Ledger(tmp_path / "ledger.jsonl", config.search_id, config.raw, {})
    first = pin_search(ledger, config.evaluator, said.append).model
    assert (first.revision, first.components, first.lora) == (COMMIT, {"vae": f"team/parts/vae@{COMMIT}"}, (f"team/parts/style.safetensors@{COMMIT}",))
    assert said == [f"model     team/digits at commit {COMMIT[:12]}"]
    ledger.close()
    hub.commit, asked = NEXT, sum(hub.asked.values())
    again = Ledger(tmp_path / "ledger.jsonl", config.search_id, config.raw, {})
    assert pin_search(again, config.evaluator, said.append).model == first
    assert sum(hub.asked.values()) == asked, "nothing is asked again"
    again.close()
    words = command(as_pinned(read_ledger(tmp_path / "ledger.jsonl")))
    assert f"++model.revision={COMMIT}" in words and f"team/parts/vae@{COMMIT}" in words


def test_winners_say_what_they_were_measured_with(make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy")
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"event": "notes", "at": 0, "notes": {"pinned": {"revision": COMMIT}, "warnings": ["2 workers share a GPU"]}}) + "\n")
    record = read_ledger(folder / "ledger.jsonl")
    told = provenance(record, record.winners["quality"])
    assert told["model"]["revision"] == COMMIT
    assert told["latency"]["warnings"] == ["2 workers share a GPU"]
    assert f"++model.revision={COMMIT}" in told["reproduce"]


@pytest.mark.parametrize("notes", [{"pinned": {"path": "elsewhere"}}, {"pinned": {"revision": 3}}, {"pinned": []}, {"warnings": "x"}, {"warnings": [1]}])
def test_notes_that_somebody_changed_are_refused(notes: dict[str, object], make_search: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_search(tmp_path / "toy")
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"event": "notes", "at": 0, "notes": notes}) + "\n")
    with pytest.raises(LedgerError, match=next(iter(notes))):
        read_ledger(folder / "ledger.jsonl")


def test_an_evaluation_notes_it_in_its_folder(hub: Hub, tmp_path: Path) -> None:
    spec = build(compose_config("search", ["model.path=team/digits", "model.revision=v1"])).evaluator
    assert pin_evaluation(tmp_path / "e", spec, print).model.revision == COMMIT
    hub.commit = NEXT
    assert pin_evaluation(tmp_path / "e", spec, print).model.revision == COMMIT
    (tmp_path / "e" / FILE).write_text("[1]")
    with pytest.raises(ConfigError, match=rf"{FILE} cannot be read \(it holds no object\); restore it"):
        pin_evaluation(tmp_path / "e", spec, print)
    embedded = replace(spec, model=replace(spec.model, path="embedded", revision=None))
    assert pin_evaluation(tmp_path / "none", embedded, print) == embedded
    assert not (tmp_path / "none").exists()


def test_a_hub_that_does_not_answer_is_said_and_its_cache_tells(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = build(compose_config("search", ["model.path=team/digits"])).evaluator
    known = pin_evaluation(tmp_path / "first", spec, print)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pin_evaluation(tmp_path / "second", spec, print) == known
    said: list[str] = []
    other = replace(spec, model=replace(spec.model, path="team/parts"))
    assert pin_evaluation(tmp_path / "third", other, said.append) == other
    assert "http://127.0.0.1:9 does not answer" in said[0] and "model.revision to a commit" in said[0]


def test_doctor_asks_the_hub(hub: Hub, tmp_path: Path) -> None:
    def found(*words: str) -> tuple[str, str]:
        (model,) = [f for f in check_here(build(compose_config("search", [f"output={tmp_path}", *words]))) if f.what == "model.path"]
        return model.found, model.fix

    assert found("model.path=team/digits") == (f"team/digits at commit {COMMIT[:12]}, a hub id: each node fetches it once into its Hugging Face cache", "")
    assert found("model.components={vae: team/parts/vae}")[0].startswith("embedded; team/parts/vae at commit")
    refused, fix = found("model.path=team/nobody")
    assert "there is none" in refused + fix and fix
