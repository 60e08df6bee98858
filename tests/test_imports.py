"""Which package may import what, read from the source; and every public name has a docstring."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("analysis", "conf", "dato", "launch", "search", "tests")
FILES = sorted(p for package in ("analysis", "dato", "launch", "search") for p in (ROOT / package).rglob("*.py"))
ONLY_IN = {
    "hydra": ("launch/",),
    "omegaconf": ("launch/",),
    "ray": (
        *(f"search/run/{name}.py" for name in (
            "autoscaler", "crew", "leftovers", "measuring_process", "nodes", "ray_cluster", "ray_measuring", "ray_metrics", "ray_pool", "slot", "tune", "tune_loop",
        )), "launch/",
    ),
    "pymoo": ("search/optimize/", "launch/bench/rivals.py"),
    "optuna": ("launch/bench/",),
    "mlflow": ("search/publish/", "launch/deliver.py", "launch/bench/tracking.py", "dato/sources.py"),
    "torchvision": (),
}
ALLOWED = {
    "dato": {"dato"},
    "search": {"search", "dato"},
    "analysis": {"analysis", "dato.strategy", "dato.call_plan", "search.measurements", "search.records", "search.ledger", "search.optimize.winners", "search.optimize.importance", "search.optimize.description", "search.metrics.similarity"},  # what reads records, and strategies as they run
    "launch": set(OURS),
}

FLOORS = {
    "fields": set(),
    "measurements": set(),
    "records": {"measurements"},
    "old_names": set(),
    "ledger": {"measurements", "records", "old_names"},
    "embedded": set(),
    "data": {"fields", "embedded"},
    "metrics": {"data", "embedded", "records", "measurements"},
    "evaluate": {"fields", "data", "metrics", "records", "measurements", "ledger"},
    "optimize": {"fields", "records", "measurements", "ledger"},
    "run": {"fields", "data", "evaluate", "metrics", "optimize", "records", "measurements", "ledger"},
    "publish": {"fields", "data", "evaluate", "metrics", "optimize", "records", "measurements", "ledger"},
}
"""What each room of `search` may stand on; the scripts that made the embedded model stand on everything."""
DATO_PLAIN = ("call_plan", "card", "card_text", "files", "https", "mlflow_store", "presets", "report", "sampler", "schema", "sources", "step", "strategy", "text_table")
"""What a strategy is, without a model: knows no torch and no diffusers, and stands on nothing else of `dato`."""
DATO_ENTRIES = ("__init__", "accelerate", "baselines", "costs")
"""What stands on a room of `dato`, such as `dato.unet`; all other modules are common to the rooms, which stand on them."""
SCRIPTS = ("search/embedded/check.py", "search/embedded/train.py")


def imported(tree: ast.AST) -> list[tuple[str, bool]]:
    """Every imported module, and whether the import is inside a function."""
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node.module or "", id(node) in inner))
            if node.module in ("dato", "search", "launch", "analysis"):
                found += [(f"{node.module}.{alias.name}", id(node) in inner) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_design(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    package = name.split("/")[0]
    for module, lazy in imported(ast.parse(path.read_text())):
        top = module.split(".")[0]
        if top in OURS:
            allowed = ALLOWED[package]
            fits = any(module == a or module.startswith(a + ".") for a in allowed) or (package == "analysis" and module in ("dato", "search"))
            assert fits, f"{name} imports {module}; {package} may import {sorted(allowed)}"
        if top in ONLY_IN:
            assert name.startswith(ONLY_IN[top]) if ONLY_IN[top] else False, f"{name} imports {top}, allowed only in {ONLY_IN[top]}"
        if top == "mlflow" and name in ("dato/sources.py", "launch/deliver.py"):
            assert lazy, f"{name} must import mlflow only where it is asked for"


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "search")], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_stands_on_a_higher_one(path: Path) -> None:
    parts = path.relative_to(ROOT / "search").with_suffix("").parts
    if parts == ("__init__",) or str(path.relative_to(ROOT)) in SCRIPTS:
        return
    for module, _ in imported(ast.parse(path.read_text())):
        if module.startswith("search."):
            room = module.split(".")[1]
            assert room == parts[0] or room in FLOORS[parts[0]], f"{path.name} of {parts[0]} imports {module}; {parts[0]} stands on {sorted(FLOORS[parts[0]])}"


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "dato")], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_part_of_dato_stands_on_a_higher_one(path: Path) -> None:
    own, *below = path.relative_to(ROOT / "dato").with_suffix("").parts
    for module, _ in imported(ast.parse(path.read_text())):
        top, _, rest = module.partition(".")
        part = rest.split(".")[0]
        if own in DATO_PLAIN:
            assert top not in ("torch", "diffusers", "transformers", "safetensors"), f"dato/{own}.py imports {module}, and what a strategy is needs no model"
            assert top != "dato" or not rest or part in DATO_PLAIN, f"dato/{own}.py imports {module}; it stands on {DATO_PLAIN}"
        elif below:
            assert top != "dato" or part not in DATO_ENTRIES, f"{path.name} of dato.{own} imports {module}, which stands on it"
        elif own not in DATO_ENTRIES and top == "dato" and rest:
            assert (ROOT / "dato" / f"{part}.py").exists() and part not in DATO_ENTRIES, f"dato/{own}.py imports {module}, which stands on it"


def test_no_imports_in_a_circle() -> None:
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES if p.name != "__init__.py"}
    arrows = {name: {m for m, _ in imported(ast.parse(p.read_text())) if m in names} for name, p in names.items()}
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_files_are_one_concept() -> None:
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long
