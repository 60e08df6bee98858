"""A real MLflow registry in sqlite: versions, aliases, cards, and images from a loaded model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from diffusers import DDIMScheduler
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import dato
from dato.card import write_card
from dato.provenance import ProvenanceWarning, describe
from dato.strategy import Strategy, StrategyError
from search.evaluate.generate import to_bytes
from search.evaluate.pipelines import ModelSpec, load_pipeline
from search.ledger import read_ledger
from search.publish import registry
from search.publish.aliases import Standing
from search.publish.registry import RegistryError, register, run_of_search
from search.publish.strategies import RegistryNameError, winner_strategies

ALIASES = ("quality", "balanced", "fastest")


def registered_digest(name: str, alias: str) -> str | None:
    """The digest of the strategy that an alias points to."""
    try:
        return str(MlflowClient().get_model_version_by_alias(name, alias).tags["dato.digest"])
    except MlflowException:
        return None


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: MLflow takes seconds to lay out its tables."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    shutil.copy(database, tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def winners(make_search: Callable[..., Path], tmp_path: Path) -> dict[str, Strategy]:
    return winner_strategies(read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl"))


def test_versions_hold_strategy_card_and_figures(uri: str, winners: dict[str, Strategy]) -> None:
    versions = register("dato-toy", winners, run_of_search("toy", "dato/toy")).versions
    client = MlflowClient()
    for alias in ALIASES:
        version = client.get_model_version_by_alias("dato-toy", alias)
        assert str(version.version) == versions[alias]
        quality, latency = winners[alias].provenance["quality"], winners[alias].provenance["latency"]
        assert float(version.tags["dato.speedup"]) == pytest.approx(latency["speedup"], abs=1e-4)
        assert float(version.tags["dato.fid_difference"]) == pytest.approx(quality["difference"], abs=1e-4)
        low, high = (float(end) for end in version.tags["dato.fid_difference_interval"].split(" .. "))
        assert low < quality["difference"] < high
        assert version.tags["dato.device"] == "toy device"
        files = {p.name for p in Path(version.source.removeprefix("file://")).rglob("*") if p.is_file()}
        assert {"strategy.json", "card.json", "card.md", "pyfunc.py", "MLmodel"} <= files
        assert not {name for name in files if name.endswith((".pkl", ".pickle"))}
        loaded = Strategy.load(f"models:/dato-toy@{alias}")
        assert loaded == winners[alias]
        assert loaded.provenance["loaded_from"] == f"models:/dato-toy@{alias}"
        assert registered_digest("dato-toy", alias) == loaded.digest
    run = client.search_runs([client.get_experiment_by_name("dato/toy").experiment_id])[0].info.run_id
    assert Strategy.load(f"runs:/{run}/fastest-{winners['fastest'].digest}") == winners["fastest"]


def test_versions_are_of_logged_models_that_compare(uri: str, winners: dict[str, Strategy]) -> None:
    client, run = MlflowClient(), run_of_search("toy", "dato/toy")
    search = winners["fastest"].provenance["search_id"]
    experiment = client.get_run(run).info.experiment_id
    child = client.create_run(experiment, tags={"dato.search_id": search, "dato.kind": "candidate", "dato.digest": winners["fastest"].digest}).info.run_id
    versions = register("dato-toy", winners, run).versions
    models = {m.name.partition("-")[0]: m for m in client.search_logged_models([experiment])}
    assert set(models) == set(ALIASES)
    for alias, model in models.items():
        latency, quality = winners[alias].provenance["latency"], winners[alias].provenance["quality"]
        figures = {m.key: m.value for m in model.metrics}
        assert figures["verified/speedup"] == pytest.approx(latency["speedup"])
        assert figures["verified/fid_difference_high"] == pytest.approx(quality["difference_interval"][1])
        assert model.status == "READY"
        assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "dato-toy", "version": versions[alias]}]
    # The candidate's run where there is one, and the search's where there is none.
    assert (models["fastest"].source_run_id, models["quality"].source_run_id) == (child, run)
    assert client.get_model_version("dato-toy", versions["fastest"]).run_id == child
    assert {o.model_id for o in client.get_run(run).outputs.model_outputs} == {m.model_id for m in models.values()}
    assert Strategy.load(f"models:/{models['fastest'].model_id}") == winners["fastest"]
    described = client.get_model_version("dato-toy", versions["fastest"]).description
    assert f"runs/{child}" in described and "models:/dato-toy@fastest" in described
    assert "models:/dato-toy@quality" in client.get_registered_model("dato-toy").description


def test_one_strategy_with_several_aliases_is_one_version(uri: str, winners: dict[str, Strategy]) -> None:
    run = run_of_search("toy", "dato/toy")
    several = {"quality": winners["quality"], "at-2x": winners["quality"].with_provenance(alias="at-2x"), "fastest": winners["fastest"]}
    made = register("dato-toy", several, run)
    assert made.versions["quality"] == made.versions["at-2x"] != made.versions["fastest"]
    assert register("dato-toy", several, run) == made
    version = MlflowClient().get_model_version_by_alias("dato-toy", "at-2x")
    assert version.tags["dato.alias"] == "quality, at-2x"
    assert len(MlflowClient().search_model_versions("name = 'dato-toy'")) == 2


def test_a_model_of_before_is_described_anew_and_its_versions_load(uri: str, winners: dict[str, Strategy], tmp_path: Path) -> None:
    client, run = MlflowClient(), run_of_search("toy", "dato/toy")
    client.create_registered_model("dato-toy", description='DaTo strategies: dato.Strategy.load("models:/<name>@<alias>"), or mlflow.pyfunc.load_model')
    # As versions were made: files of the search's run, and one for each alias.
    path, old = f"winners/fastest-{winners['fastest'].digest}", winners["fastest"]
    client.log_artifacts(run, str(write_card(old, tmp_path / "card")), path)
    tags = {"dato.sha256": registry._content("fastest", old), **Standing.of(old).to_tags()}
    before = client.create_model_version("dato-toy", f"{client.get_run(run).info.artifact_uri}/{path}", run_id=run, tags=tags).version
    client.set_registered_model_alias("dato-toy", "fastest", before)
    assert Strategy.load("models:/dato-toy@fastest") == old == Strategy.load(f"runs:/{run}/{path}")
    assert register("dato-toy", {"fastest": old}, run).versions == {"fastest": str(before)}
    assert client.get_registered_model("dato-toy").description.count("models:/dato-toy@fastest") == 2


def with_figures(strategy: Strategy, *, images: int = 20, speedup: float = 3.0, difference: float = 1.0, device: str = "toy device") -> Strategy:
    """The strategy as if it had been measured so."""
    notes = strategy.provenance
    return strategy.with_provenance(
        **{**notes, "quality": {**notes["quality"], "images": images, "difference": difference}, "latency": {**notes["latency"], "speedup": speedup, "device": device}}
    )


def test_the_same_again_makes_no_second_version(uri: str, winners: dict[str, Strategy]) -> None:
    run = run_of_search("toy", "dato/toy")
    first = register("dato-toy", winners, run)
    assert register("dato-toy", winners, run) == first
    assert first.stayed == {}
    assert len(MlflowClient().search_model_versions("name = 'dato-toy'")) == 3
    # An alias that went elsewhere comes back to the version that is there.
    elsewhere = register("dato-toy", {"fastest": winners["quality"]}, run, replace=True).versions["fastest"]
    assert elsewhere not in first.versions.values()
    assert registered_digest("dato-toy", "fastest") == winners["quality"].digest
    assert register("dato-toy", winners, run) == first
    assert registered_digest("dato-toy", "fastest") == winners["fastest"].digest
    # Measured again, it is another version.
    again = with_figures(winners["fastest"], speedup=99.0)
    assert register("dato-toy", {"fastest": again}, run).versions["fastest"] not in {*first.versions.values(), elsewhere}


@pytest.mark.parametrize(
    ("alias", "new", "named"),
    [
        ("fastest", {"speedup": 3.1}, None),
        ("fastest", {"speedup": 2.9}, "as good or better"),
        ("fastest", {"speedup": 3.0, "difference": 0.5}, "as good or better"),
        ("fastest", {"speedup": 9.0, "images": 19}, "20 fresh images"),
        ("fastest", {"speedup": 3.1, "images": 500}, None),
        ("fastest", {"speedup": 9.0, "device": "another"}, "another device"),
        ("quality", {"difference": 0.9, "speedup": 2.0}, None),
        ("quality", {"difference": 1.1, "speedup": 9.0}, "as good or better"),
        ("at-4x", {"difference": 0.9}, None),
        ("balanced", {"difference": 0.9}, None),
        ("balanced", {"difference": 0.9, "speedup": 2.9}, "as good or better"),
    ],
)
def test_an_alias_moves_only_to_as_much_evidence_and_a_better_value(uri: str, winners: dict[str, Strategy], alias: str, new: dict, named: str | None) -> None:
    run = run_of_search("toy", "dato/toy")
    first = register("dato-toy", {alias: with_figures(winners["quality"])}, run)
    changed = with_figures(winners["fastest"], **new)
    second = register("dato-toy", {alias: changed}, run)
    where = MlflowClient().get_model_version_by_alias("dato-toy", alias).version
    assert str(where) == (second if named is None else first).versions[alias]
    if named is None:
        assert second.stayed == {}
    else:
        assert named in second.stayed[alias] and f"version {where}" in second.stayed[alias]
        assert register("dato-toy", {alias: changed}, run, replace=True).stayed == {}
        assert registered_digest("dato-toy", alias) == changed.digest


def test_another_models_strategy_does_not_take_an_alias(uri: str, winners: dict[str, Strategy]) -> None:
    run = run_of_search("toy", "dato/toy")
    register("dato-toy", {"fastest": with_figures(winners["fastest"])}, run)
    notes = winners["quality"].provenance
    other = with_figures(winners["quality"].with_provenance(**{**notes, "model": {**notes["model"], "unet_sha256": "f" * 64, "weights": {}}}), speedup=99.0)
    assert "another model" in register("dato-toy", {"fastest": other}, run).stayed["fastest"]


def test_a_version_of_before_evidence_was_noted_gives_way(uri: str, winners: dict[str, Strategy]) -> None:
    client, run = MlflowClient(), run_of_search("toy", "dato/toy")
    old = register("dato-toy", {"fastest": with_figures(winners["fastest"], speedup=50.0)}, run).versions["fastest"]
    for tag in list(client.get_model_version("dato-toy", old).tags):
        if tag.startswith("dato.evidence."):
            client.delete_model_version_tag("dato-toy", old, tag)
    assert register("dato-toy", {"fastest": with_figures(winners["quality"])}, run).stayed == {}


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        ("dato-toy", "latest", "alias is 'latest'; allowed are letters, digits, - and _, but not latest, v1"),
        ("dato-toy", "v3", "alias is 'v3'"),
        ("dato-toy", "my best", "alias is 'my best'"),
        ("dato/toy", "fastest", "the registered model's name is 'dato/toy'; give one without /, : and '"),
    ],
)
def test_names_that_mlflow_refuses_are_refused_before_anything_is_made(uri: str, winners: dict[str, Strategy], name: str, alias: str, message: str) -> None:
    with pytest.raises(RegistryNameError, match=re.escape(message)):
        register(name, {alias: winners["fastest"]}, run_of_search("toy", "dato/toy"))
    assert not MlflowClient().search_registered_models()


def test_an_import_is_no_search(uri: str) -> None:
    run = run_of_search("toy", "dato/toy", kind="import")
    assert MlflowClient().get_run(run).data.tags["dato.kind"] == "import"
    assert run_of_search("toy", "dato/toy", kind="import") == run
    assert run_of_search("toy", "dato/toy") != run


@pytest.mark.slow
def test_a_loaded_model_draws_one_image_a_prompt(uri: str, winners: dict[str, Strategy]) -> None:
    register("dato-toy", {"fastest": winners["fastest"]}, run_of_search("toy", "dato/toy"))
    model = mlflow.pyfunc.load_model("models:/dato-toy@fastest", model_config={"batch": 2})
    prompts = ["a handwritten seven", "a handwritten three", "a handwritten one"]
    images = model.predict({"prompt": prompts})
    assert [image.size for image in images] == [(40, 40)] * 3
    assert len({image.tobytes() for image in images}) == 3
    alone = model.predict({"prompt": [prompts[1]]}, params={"seed": 1})[0]
    assert max(abs(a - b) for a, b in zip(alone.tobytes(), images[1].tobytes(), strict=True)) <= 2
    (text,) = model.predict({"prompt": [prompts[0]]}, params={"output": "png"})
    assert text.startswith("iVBOR")
    for wrong, said in (({"text": ["x"]}, "expected a column 'prompt'"), ({"prompt": ["x"]}, "allowed are 'pil' and 'png'")):
        with pytest.raises(ValueError, match=said):
            model.predict(wrong, params={"output": "svg"} if "prompt" in wrong else None)
    for config, said in (({"batch": 0}, "batch is 0"), ({"path": "/nowhere"}, "'/nowhere', which does not exist"), ({"device": "tpu9"}, "'tpu9', which this machine")):
        with pytest.raises(ValueError, match=said):
            mlflow.pyfunc.load_model("models:/dato-toy@fastest", model_config=config)


@pytest.fixture
def limited(make_search: Callable[..., Path], tmp_path: Path) -> Strategy:
    """A winner of another sampler and fewer steps than the model's, with limited guidance."""
    record, model = read_ledger(make_search(tmp_path / "toy") / "ledger.jsonl"), load_pipeline(ModelSpec(name="embedded", path="embedded", steps=20, guidance=3.0))
    won = record.winners["fastest"]
    record.winners["fastest"] = replace(won, candidate=replace(won.candidate, strategy=Strategy.load("dpmpp-4-limited-guidance")))
    return winner_strategies(record, describe(model))["fastest"]


def test_a_winner_of_another_sampler_says_what_it_ran_with(uri: str, limited: Strategy) -> None:
    ran = limited.provenance["sampler"]
    assert (ran["scheduler"], ran["steps"], ran["guidance"]) == ("DPMSolverMultistepScheduler", 4, 3.0)
    assert ran["unaccelerated"] == {"scheduler": "PNDMScheduler", "steps": 20}
    version = register("dato-toy", {"fastest": limited}, run_of_search("toy", "dato/toy")).versions["fastest"]
    tags = MlflowClient().get_model_version("dato-toy", version).tags
    assert (tags["dato.sampler"], tags["dato.steps"], tags["dato.guided_share"]) == ("DPM++", "4", "0.5000")
    pipe = load_pipeline(ModelSpec(name="embedded", path="embedded", steps=20, guidance=3.0))
    with dato.accelerate(pipe, Strategy.load("models:/dato-toy@fastest")):  # without a warning of another sampler or another number of steps
        assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with dato.accelerate(pipe, limited):  # whatever the pipeline's own is, it is exchanged
        pass
    with pytest.warns(ProvenanceWarning, match="the sampler is DDIMScheduler and was DPMSolverMultistepScheduler"), dato.accelerate(pipe, replace(limited, sampler=None)):
        pass


@pytest.mark.slow
def test_a_loaded_model_runs_with_the_strategys_sampler_and_steps(uri: str, limited: Strategy) -> None:
    register("dato-toy", {"fastest": limited}, run_of_search("toy", "dato/toy"))
    (image,) = mlflow.pyfunc.load_model("models:/dato-toy@fastest").predict({"prompt": ["a handwritten seven"]}, params={"seed": 3})
    pipe = load_pipeline(ModelSpec(name="embedded", path="embedded", steps=20, guidance=3.0))

    def draw(strategy: Strategy) -> bytes:
        with dato.accelerate(pipe, strategy):
            made = pipe("a handwritten seven", num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(3), output_type="np").images
        return bytes(to_bytes(made)[0].permute(1, 2, 0).numpy().tobytes())

    assert image.tobytes() == draw(limited)
    assert image.tobytes() != draw(Strategy.full(4)), "the pipeline's own sampler draws another"


def test_what_was_not_measured_on_fresh_images_moves_no_alias(uri: str, winners: dict[str, Strategy]) -> None:
    run = run_of_search("toy", "dato/toy")
    register("dato-toy", winners, run)
    for anyway in (False, True):
        made = register("dato-toy", {"fastest": Strategy.full(4), "other": Strategy.full(5)}, run, replace=anyway)
        assert set(made.stayed) == {"fastest", "other"}
        assert "not measured on fresh images" in made.stayed["fastest"]
        assert registered_digest("dato-toy", "fastest") == winners["fastest"].digest
        assert registered_digest("dato-toy", "other") is None
        assert MlflowClient().get_model_version("dato-toy", made.versions["fastest"]).tags["dato.validated"] == "false"


def test_all_aliases_move_or_none(uri: str, winners: dict[str, Strategy], monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of_search("toy", "dato/toy")
    register("dato-toy", {"quality": winners["quality"]}, run)
    original = MlflowClient.set_registered_model_alias

    def refuses_fastest(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == "fastest":
            raise MlflowException("no rights")
        original(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuses_fastest)
    changed = {"quality": winners["fastest"], "balanced": winners["balanced"], "fastest": winners["fastest"]}
    with pytest.raises(RegistryError, match=r"does not take 'dato-toy': no rights.*the aliases are where they were.*export to=folder"):
        register("dato-toy", changed, run, replace=True)
    assert registered_digest("dato-toy", "quality") == winners["quality"].digest
    assert registered_digest("dato-toy", "balanced") is None


def test_a_registry_that_may_not_be_written(uri: str, winners: dict[str, Strategy], tmp_path: Path) -> None:
    run_of_search("toy", "dato/toy")
    (tmp_path / "mlflow.db").chmod(0o444)
    read_only = f"sqlite:///file:{tmp_path / 'mlflow.db'}?mode=ro&uri=true"
    with pytest.raises(RegistryError, match=r"cannot be used|does not take"):
        register("dato-toy", winners, run_of_search("another", "dato/other", read_only), uri=read_only)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("models:/dato-toy@best", "cannot read models:/dato-toy@best from MLflow at .*check its name and alias"),
        ("models:/nothing@fastest", "cannot read models:/nothing@fastest"),
        ("models:/dato-toy/99", "cannot read models:/dato-toy/99"),
        ("runs:/0123456789abcdef0123456789abcdef/winners", "or the run's id"),
    ],
)
def test_what_does_not_exist_is_named(uri: str, winners: dict[str, Strategy], source: str, message: str) -> None:
    register("dato-toy", {"quality": winners["quality"]}, run_of_search("toy", "dato/toy"))
    with pytest.raises(StrategyError, match=message):
        Strategy.load(source)


def test_passwords_in_addresses_are_never_shown(monkeypatch: pytest.MonkeyPatch, winners: dict[str, Strategy]) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    address = "http://user:secret@127.0.0.1:1"
    with pytest.raises(RegistryError) as caught:
        register("dato-toy", winners, "run", uri=address)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_the_served_file_is_the_packages_own() -> None:
    assert registry.PYFUNC.is_file()
    assert os.path.commonpath([registry.PYFUNC, Path(registry.__file__)]) == str(Path(registry.__file__).parent)
