"""Bad input in every form: one message, no traceback, no hang, nothing written. What people type is taken as they mean it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dato.card import card_json, card_markdown
from dato.strategy import Strategy
from launch.__main__ import main
from launch.config import ConfigError, build, compose_config
from search.evaluate.sources import read_given
from search.publish.strategies import command, hydra_text


def tries(count: int) -> settings:
    """So many examples, the same at every run: the suite's time and verdict are no matter of luck."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


VALUES = [
    "", "null", "true", "-1", "0", "1.5", "1e400", "-inf", "nan", "9" * 400, "9" * 5000, "10000000000", "[]", "[[]]", "[" * 2000, "{}", "{a: 1}", "{a: [1, {b: 2}]}",
    "фото", "a#b", "a b", "a,b", "(", "'", '"', "\\", "${x}", "${oc.env:NOBODY_HAS_THIS}", "???", "range(3)", "int(x)", "x" * 5000, "\x00", "a\nb", "🙂", "~nobody/x", "/dev/zero", "%s", "{}{}",
]  # fmt: skip
KEYS = [
    "seed", "output", "model", "model.path", "model.steps", "model.scheduler", "model.device", "model.dtype", "model.height", "data", "data.kind", "protocol.images", "protocol.fidelities",
    "protocol.features", "space.depths", "space.ratios", "space.frozen", "space.fixed_depths", "space.fixed_ratios", "space.steps_per_gene", "search.population", "search.generations", "search.warm_start",
    "search.max_fid", "search.mode", "mlflow.uri", "mlflow.enabled", "registry.name", "cluster.workers", "cluster.threads", "cluster.address", "experiment", "latency_from", "hydra.run.dir",
]  # fmt: skip


def refused_or_fine(action: Callable[[], object]) -> str | None:
    """The message of a refusal, or None; any other error fails the test, as it would be a traceback."""
    try:
        action()
    except ValueError as error:
        assert type(error) is ValueError or type(error).__module__.split(".")[0] in ("dato", "search", "launch", "analysis"), repr(error)
        assert 10 < len(str(error)) < 2500
        return str(error)
    return None


@tries(40)
@given(st.sampled_from(KEYS), st.sampled_from(["", "", "", "+", "++", "~", "--"]), st.one_of(st.sampled_from(VALUES), st.text(max_size=12)))
def test_any_word_of_a_search_is_taken_or_refused(key: str, mark: str, value: str) -> None:
    refused_or_fine(lambda: build(compose_config("search", [f"{mark}{key}={value}"])).algorithm())


@tries(60)
@given(st.one_of(st.text(max_size=20), st.sampled_from(["=", "==1", "@=1", "a.b.c.d=1", "a/b/c=1", "+=1", "seed =1", "-m", "--multirun", "--cfg=job", "model@x=sd15", "+model@x=sd15"])))
def test_any_word_at_all_is_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        compose_config("search", [word])


@tries(200)
@given(text=st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1, max_size=20))
def test_a_text_in_quotes_is_read_back(text: str) -> None:
    for mark in "'\"":
        assert OverridesParser.create().parse_override(f"output={hydra_text(text, mark)}").value() == text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("фото", "фото"), ("a#b", "a#b"), ("my photos (2024)", "my photos (2024)"), ("a,b", "a,b"), ("2024", "2024"), ("true", "true"), ("1e3", "1e3"), ("~/photos", "~/photos"),
        ("it's", "it's"), ('"quoted"', "quoted"), ("'quoted'", "quoted"), (r"C:\photos", r"C:\photos"), ("a=b", "a=b"), ("a\\", "a\\"), ("null", None), ("50%", "50%"), ("a:b", "a:b"), (" a ", " a "),
    ],
)  # fmt: skip
def test_a_text_is_taken_as_it_is_typed(typed: str, meant: str | None) -> None:
    assert compose_config("search", [f"mlflow.uri={typed}"])["mlflow"]["uri"] == meant


def test_the_command_that_repeats_a_search_gives_the_same_configuration() -> None:
    words = [r"data.images=C:\my 'photos'\ ", "data=folder", "data.prompts=фото#1, (a)", r"data.statistics=a\'b\\"]
    config = compose_config("search", words)
    again = compose_config("search", [w for w in shlex.split(command(config).replace("\\\n", " "))[2:]])
    assert again["data"] == {**config["data"]}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["search.population=10000000000"], ["search.population is 10000000000", "at most 100,000"]),
        (["protocol.images=" + "9" * 400], ["protocol.images is 999", "(400 characters)", "at most 1,000,000"]),
        (["protocol.offset=999990"], ["protocol.offset is 999990", "1000000"]),
        (["search.max_fid=inf"], ["search.max_fid is inf", "give a number above 0"]),
        (["protocol.fidelities=[1e400]"], ["protocol.fidelities holds inf", "finite"]),
        (["space.frozen=[[0.5,12,0]]"], ["space.frozen", "write [step, depth, ratio]"]),
        (["space.frozen=[[0,12,0],[0,1,0]]"], ["named twice"]),
        (["+foo=1"], ["foo is no key here"]),
        (["sed=1"], ["sed is no key here", "seed"]),
        (["data.captions=x"], ["data.captions is 'x'", "set it to null"]),
        (["figures.images=3"], ["figures.images is no key here"]),
        (["++search.popluation=20"], ["search.popluation is no key here", "search.population"]),
        (["+evaluation.images=20"], ["evaluation.images is no key here"]),
        (["hydra.run.dir=x"], ["sets Hydra itself", "set output=<folder>"]),
        (["hydra/launcher=ray"], ["sets Hydra itself"]),
        (["~search.population"], ["deletes a key", "search.population=<value>"]),
        (["~data.images=x"], ["deletes a key"]),
        (["seed=1,2"], ["seed=1,2 names several values", "run a command for each"]),
        (["search.warm_start=a,b"], ["names several values", "search.warm_start=[a,b]"]),
        (["search.warm_start=[a#b,my file.json]"], ["search.warm_start cannot be read", """'search.warm_start=["a#b","my file.json"]'"""]),
        (["seed=#"], ["seed is '#'", "give an integer"]),
        (["model=sd99"], ["there is no model 'sd99'", "embedded, embedded_dit, flux, pixart, qwen_image, sd15, sd2, sd35, sdxl"]),
        (["model@other=sd15"], ["model=<name>"]),
        (["data=folder"], ["data.prompts is not given", "set data.prompts=<"]),
        (["mlflow.uri=foo://x"], ["mlflow.uri is 'foo://x'", "sqlite:///mlflow.db"]),
        (["output=${nowhere}"], ["nowhere"]),
        (["--seed=a"], ["seed is 'a'"]),
    ],
)
def test_the_message_names_key_value_and_fix(words: list[str], named: list[str]) -> None:
    said = refused_or_fine(lambda: build(compose_config("search", words)))
    assert said is not None
    assert all(n in said for n in named), said


def test_two_dashes_are_allowed() -> None:
    assert compose_config("search", ["--seed=3"])["seed"] == 3


COMMANDS = {
    "status": ["folder={}"], "report": ["folder={}"], "export": ["folder={}"], "retarget": ["folder={}"], "sync": ["folder={}"], "import": ["source={}", "name=x"], "strategies": ["model={}"],
    "transfer": ["strategy=[{}]", "targets=[{}]"], "ablate": ["table={}"], "evaluate": ["strategy=[{}]", "evaluation.metrics={}"], "bench": ["{}"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("value", ["", "/nowhere", "/dev/zero", "{folder}/pipe", "{folder}/here", "x" * 300, "фото", "~nobody/x", "https://[", "ftp://a/b", "models:/", "models:/a@b", "runs:/x", "a,b", "/proc/self/mem"])
def test_every_command_refuses_what_it_cannot_read_and_leaves_nothing(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [w.format(value.format(folder=tmp_path)) for w in COMMANDS[name]]
    assert main([name, *words]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith(f"dato {name}: ")
    assert len(said) < 2500
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("name", ["status", "report", "export", "import", "retarget", "sync", "strategies"])
@tries(10)
@given(words=st.lists(st.one_of(st.text(max_size=10), st.builds("{}={}".format, st.sampled_from(["folder", "source", "name", "to", "target", "every", "rounds"]), st.text(max_size=10))), max_size=4))
def test_any_words_after_a_command_are_refused(name: str, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    if (name == "strategies" and not words) or any(w in ("-h", "--help") for w in words[:1]):
        return
    assert main([name, *words]) in (1, 2)


@pytest.fixture(scope="module")
def toy(make_search: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A finished search of eight candidates, and its ledger's rows."""
    folder = make_search(tmp_path_factory.mktemp("toy") / "toy", population=4, generations=2)
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    measured = next(row["measurement"] for row in rows if row["event"] == "result")
    rich = {**measured, "similarity": {"ssim": [0.9, 0.8, 1.0]}, "feature_distance": 3.0, "fid_left_out": [1.0, 2.0], "measured_ms": 5.0}
    more = [
        {"event": "notes", "notes": {"reference": "8 images", "measured_without": ["safety checker"]}},
        {"event": "costs", "table": {"schema": "dato.costs/1", "device": "x", "batch": 4, "calls": 20, "order": 1, "fixed_ms": 5.0, "work_ms": [[12, 0.0, "none", 3.0]]}},
        {"event": "result", "number": 0, "measurement": rich},
        {"event": "fresh", "number": 0, "images": 40, "measurement": rich, "plain_ms": [5.0, None, 6.0]},
        {"event": "retried", "number": 1, "measurement": rich},
        {"event": "promotion", "number": 0, "images": 40, "measurement": {**rich, "images": 40}},
    ]
    last = next(i for i, row in enumerate(rows) if row["event"] == "winner")
    return folder, [*rows[:last], *more, *rows[last:]]


JUNK = st.one_of(
    st.sampled_from([None, True, 0, -1, 10**30, 10**400, 1e300, -1e300, float("nan"), float("inf"), "", "text", "x" * 2000, [], {}, [[]], {"a": 1}, [None], json.loads("[" * 90 + "]" * 90)]),
    st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=4),
)


def spoilt(data: st.DataObject, whole: Any) -> Any:
    """The document with one value, anywhere in it, taken away or exchanged."""
    places: list[tuple[Any, Any]] = []
    copy = json.loads(json.dumps(whole))

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(min(3, len(value))) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(copy)
    holder, key = data.draw(st.sampled_from(places))
    if isinstance(holder, dict) and data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(JUNK)
    return copy


@tries(40)
@given(data=st.data())
def test_a_ledger_that_somebody_changed_breaks_no_command(data: st.DataObject, toy: tuple[Path, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, rows = toy
    line = data.draw(st.one_of(st.just(0), st.integers(0, len(rows) - 1)))
    changed = [*rows[:line], spoilt(data, rows[line]), *rows[line + 1 :]]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    out = tmp_path_factory.getbasetemp() / "out.html"
    for words in (["status"], ["report", f"target={out}"], ["export", "replace=true"]):
        assert main([words[0], f"folder={folder}", *words[1:]]) in (0, 1, 2)


@pytest.mark.parametrize(
    ("event", "path", "value", "named"),
    [
        ("result", ("measurement", "latency_ms"), 0, "latency_ms is 0"),
        ("result", ("measurement", "latency_ms"), -5.0, "latency_ms is -5.0"),
        ("result", ("measurement", "fid"), "good", "fid is 'good'"),
        ("result", ("measurement", "fid"), -40.0, "fid is -40.0"),
        ("result", ("measurement", "fid"), True, "fid is True"),
        ("result", ("measurement", "images"), -3, "images is -3"),
        ("result", ("measurement", "seconds"), "long", "seconds is 'long'"),
        ("result", ("measurement", "calls_by_depth"), [1], "calls_by_depth is [1]"),
        ("result", ("measurement", "colour"), 1, "unknown key 'colour'"),
        ("result", ("measurement",), 3, "a measurement is 3"),
        ("result", ("number",), 7000, "candidate 7000, which was never asked for"),
        ("result", ("number",), [0], "candidate [0], which was never asked for"),
        ("result", ("number",), True, "never asked for"),
        ("ask", ("candidate", "number"), -2, "number -2"),
        ("ask", ("candidate", "steps"), [[1000, 0.0]], "cache_depth is 1000"),
        ("ask", ("candidate", "parents"), "none", "parents is 'none'"),
        ("generation", ("hypervolume",), "large", "hypervolume is 'large'"),
        ("winner", ("alias",), 3, "a winner of alias 3"),
        ("winner", ("fresh", "latency_ms"), 0, "latency_ms is 0"),
        ("baseline", ("measurement", "fid"), {}, "fid is {}"),
        ("baseline", ("event",), "celebration", "unknown event 'celebration'"),
    ],
)
def test_an_impossible_line_is_refused_by_its_number(
    event: str, path: tuple[str, ...], value: object, named: str, toy: tuple[Path, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = toy
    line = next(i for i, row in enumerate(rows) if row["event"] == event)
    changed = json.loads(json.dumps(rows))
    holder = changed[line]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    for name in ("status", "report", "export"):
        assert main([name, f"folder={folder}"]) == 1
        said = capsys.readouterr().err
        assert f"ledger.jsonl, line {line + 1} cannot be read" in said
        assert named in said
        assert "restore the file" in said


MEASURED = Strategy.uniform(6, 3, prune_ratio=0.5).with_provenance(
    alias="fastest", search_id="a", model={"path": "m", "unet": {"in_channels": 4}}, quality={"value": 20.5, "images": 10}, latency={"value": 1.0, "speedup": 2.0}, size=[32, 32]
)


@tries(80)
@given(data=st.data(), card=st.booleans())
def test_a_strategy_that_somebody_changed_is_read_as_it_was_or_refused(data: st.DataObject, card: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = json.loads(card_json(MEASURED) if card else MEASURED.to_json())
    path = tmp_path_factory.getbasetemp() / "strategy.json"
    changed = spoilt(data, whole)
    path.write_text(json.dumps(changed))
    read: list[Strategy] = []
    refused_or_fine(lambda: read.append(Strategy.load(path)))
    for strategy in read:
        assert card_markdown(strategy)
        assert strategy.summary()
        if card:
            assert (strategy.steps, strategy.provenance) == (MEASURED.steps, MEASURED.provenance)


@tries(60)
@given(content=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode), JUNK.map(lambda v: json.dumps(v).encode()), st.integers(1, 3000).map(lambda n: b"[" * n)))
def test_no_file_at_all_makes_a_strategy_reader_fail_otherwise(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    assert refused_or_fine(lambda: Strategy.load(path))
    assert main(["import", f"source={path}", f"name={path.parent / 'imported'}"]) == 2
    if content.strip() != b"[]":
        assert refused_or_fine(lambda: read_given([str(path)], most=4))


@tries(40)
@given(data=st.data())
def test_a_cost_table_that_somebody_changed_is_refused_or_priced(data: st.DataObject, toy: tuple[Path, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, rows = toy
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tmp_path_factory.getbasetemp()
    prices = [[d, r, share, 1.0 + d] for d in (0, 1, 12) for r in (0.0, 0.3, 0.5, 0.7) for share in ("none", "made", "used")]
    whole = {"schema": "dato.costs/1", "device": "x", "batch": 4, "calls": 20, "order": 1, "fixed_ms": 5.0, "work_ms": prices}
    (base / "table.json").write_text(json.dumps(spoilt(data, whole)))
    assert main(["retarget", f"folder={folder}", f"table={base / 'table.json'}", f"target={base / 'retargeted'}"]) in (0, 2)


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no /dev/null here")
def test_no_command_replaces_a_device_by_a_file(toy: tuple[Path, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, rows = toy
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    for words in (["report", f"target={device}"], ["export", "to=file", "alias=fastest", f"target={device}", "replace=true"]):
        assert main([words[0], f"folder={folder}", *words[1:]]) == 2
        assert "it is a device, not a file" in capsys.readouterr().err
    assert main(["import", "source=paper-b1", "to=file", f"name={device}", "replace=true"]) == 2
    assert device.is_symlink()
