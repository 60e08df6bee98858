"""What a configuration holds, as Hydra's structured configs: each group is a class of the module that uses it, with its types, ranges and defaults."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from search.data.datasets import DataSpec
from search.evaluate.pipelines import ModelSpec
from search.evaluate.protocol import EvaluationProtocol
from search.evaluate.rivals import RivalSettings
from search.evaluate.settings import EvaluationSettings
from search.fields import Kind, check, kinds, limited
from search.optimize.space import SpaceSettings
from search.publish.settings import RegistrySettings, TrackingSettings
from search.run.settings import ClusterSettings, SearchSettings


@dataclass(frozen=True, kw_only=True)
class SearchKeys:
    """The configuration of `dato search`."""

    output: str = "outputs"
    """Folder that holds one folder for each search."""
    seed: int = limited(0, least=0, most=2**32 - 1)
    """Seeds the search; the same seed asks for the same first generation."""
    fresh_start: bool = False
    """True: set an existing search of this configuration aside and begin anew."""
    latency_from: str | None = None
    """Folder of a finished search whose recorded latencies replace measured ones: repeats it exactly."""
    model: ModelSpec
    data: DataSpec
    protocol: EvaluationProtocol
    space: SpaceSettings
    search: SearchSettings
    cluster: ClusterSettings
    mlflow: TrackingSettings
    registry: RegistrySettings

    def __post_init__(self) -> None:
        check(self, "")


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """The keys of `ablation`."""

    caches: tuple[int | str, ...] = (3, 5)
    """The two cache settings of Tables 3 and 4: a full call every so many steps, or names of strategies."""
    ratios: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Token prune ratios."""
    patches: tuple[int, ...] = (2, 3, 4)
    """Sides of a patch in tokens."""

    def __post_init__(self) -> None:
        check(self, "ablation")


@dataclass(frozen=True, kw_only=True)
class FigureSettings:
    """The keys of `figures`."""

    images: int = limited(20, least=1, most=100_000)
    """Images whose features are recorded."""
    heat_maps: int = limited(2, least=0, most=100_000)
    """Images whose heat maps are drawn."""

    def __post_init__(self) -> None:
        check(self, "figures")


@dataclass(frozen=True, kw_only=True)
class EvaluationKeys:
    """The configuration of `dato evaluate`, `ablate`, `transfer` and `figures`."""

    output: str = "outputs"
    """Folder that holds one folder for each evaluation."""
    strategy: tuple[str, ...] = ()
    """What to evaluate: presets, files, models:/<name>@<alias>, folders of searches (their fronts), such as [paper-b1,outputs/x]."""
    model: ModelSpec
    data: DataSpec
    protocol: EvaluationProtocol
    cluster: ClusterSettings
    evaluation: EvaluationSettings
    rivals: RivalSettings
    ablation: AblationSettings
    figures: FigureSettings

    def __post_init__(self) -> None:
        check(self, "")


SCHEMAS: dict[str, type] = {"search": SearchKeys, "evaluate": EvaluationKeys}
"""Primary configurations of `conf`, each with its class."""
SECTIONS = {f.name for schema in SCHEMAS.values() for f in dataclasses.fields(schema)}
"""Everything at the top level of either: an experiment says things to both."""


def register() -> None:
    """Make the schemas known to Hydra, as `schema/<name>`."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=name, group="schema", package="_global_", node=structured(schema), provider="dato")


def structured(schema: type) -> DictConfig:
    """A schema as a typed configuration that files and the command line may change, for the objects are frozen and it is not yet one."""
    groups = {name: OmegaConf.structured(group) for name, group in groups_of(schema).items()}
    top = {f.name: f.default for f in dataclasses.fields(schema) if f.name not in groups}
    for node in groups.values():
        OmegaConf.set_readonly(node, None)
    return OmegaConf.create({**top, **groups})  # without a type at the top: an experiment has keys of both schemas


def groups_of(schema: type) -> dict[str, Any]:
    """The classes of a schema's groups, by name."""
    hints = inspect.get_annotations(schema, eval_str=True)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}


def fields_of(schema: type) -> list[str]:
    """What is at the top level of a schema."""
    return [f.name for f in dataclasses.fields(schema)]


@cache
def keys(name: str) -> dict[str, Kind]:
    """Every key of a primary configuration with what it may be."""
    found = dict(kinds(SCHEMAS[name]))
    for section, group in groups_of(SCHEMAS[name]).items():
        found |= {f"{section}.{key}": kind for key, kind in kinds(group).items()}
    return found


@cache
def explained(schema: type) -> dict[str, str]:
    """The meaning of every key of a class and of its groups: the docstring below each field."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[line.target.id] = " ".join(str(after.value.value).split())
    for section, group in groups_of(schema).items():
        found |= {f"{section}.{key}": text for key, text in explained(group).items()}
    return {key: text for key, text in found.items() if "." in key or key in fields_of(schema)}
