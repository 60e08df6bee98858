"""The searches that ``dato bench search`` compares, by name: ours, its rivals, and ours in parts of the space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import optuna

from dato.sampler import Sampler
from dato.strategy import FULL, Strategy
from launch.bench.rivals import MixSearch, OneByOne, OptunaSearch, RandomSearch, StockNsga2, TwoStages
from launch.config import ConfigError
from search.optimize.asynchronous import AsynchronousNsga2
from search.optimize.nsga2 import Nsga2
from search.optimize.space import SearchSpace
from search.optimize.surrogate import Surrogate

Given = Sequence[Strategy]


def _default(space: SearchSpace, size: int, seed: int, given: Given) -> Nsga2:
    return Nsga2(space=space, population=size, seed=seed, given=given, screen=partial(Surrogate, seed=seed))


def _within(space: SearchSpace, size: int, seed: int, given: Given, **frozen: Any) -> Nsga2:
    """The default search of a part of the space, with what of the given strategies lies in it."""
    part = replace(space, **frozen)
    return _default(part, size, seed, [s for s in given if s.sampler in [Sampler.of(name) for name in part.samplers]])


METHODS: dict[str, Callable[[SearchSpace, int, int, Given], Any]] = {
    "default": _default,
    "default, asynchronous": lambda space, size, seed, given: OneByOne(
        AsynchronousNsga2(space=space, population=size, seed=seed, given=given, screen=partial(Surrogate, seed=seed))
    ),
    "no surrogate": lambda space, size, seed, given: Nsga2(space=space, population=size, seed=seed, given=given),
    "two stages": lambda space, size, seed, given: TwoStages(space, size, seed, first=30, given=given),
    "paper": lambda space, size, seed, given: Nsga2(space=space, population=size, seed=seed, operators="paper", given=given),
    "pymoo NSGA-II": lambda space, size, seed, given: StockNsga2(space, size, seed, given),
    "Optuna TPE": lambda space, size, seed, given: OptunaSearch(space, size, optuna.samplers.TPESampler(seed=seed), given),
    "Optuna NSGA-II": lambda space, size, seed, given: OptunaSearch(space, size, optuna.samplers.NSGAIISampler(population_size=size, seed=seed), given),
    "initial mix": lambda space, size, seed, given: MixSearch(space, size, seed, given),
    "random": lambda space, size, seed, given: RandomSearch(space, size, seed, given),
    "fewer steps only": lambda space, size, seed, given: RandomSearch(
        replace(space, depths=(FULL,), ratios=(space.ratios[0],), guidance=("both",), orders=(0,)), size, seed
    ),
    "caching only": lambda space, size, seed, given: _within(
        space, size, seed, given, samplers=(None,), lengths=(space.steps,), ratios=(space.ratios[0],), guidance=("both",), orders=(0,)
    ),
    "caching and pruning only": lambda space, size, seed, given: _within(
        space, size, seed, given, samplers=(None,), lengths=(space.steps,), guidance=("both",), orders=(0,)
    ),
}
GENES: dict[str, dict[str, Any]] = {
    "sampler": {"samplers": (None,)},
    "guidance": {"guidance": ("both",)},
    "order": {"orders": (0,)},
    "ratio": {"ratios": (0.0,)},
    "depth": {"depths": (FULL,), "orders": (0,)},
}
"""Kinds of gene, each with what a space has where it is frozen; the number of steps apart, which is the space's own then."""
METHODS |= {f"without {gene}": partial(_within, **frozen) for gene, frozen in GENES.items()}
METHODS["without steps"] = lambda space, size, seed, given: _within(space, size, seed, given, lengths=(space.steps,))


def chosen(names: str, space: str) -> list[str]:
    """Names of methods, separated by semicolons; "all" are those that are no ablations, and of the paper's space those that differ there.

    Raises `ConfigError` for one that there is not.
    """
    if names == "all":
        parts = ("fewer steps only", "caching only", "caching and pruning only")
        return [name for name in METHODS if not name.startswith("without ") and (space == "whole" or name not in parts)]
    unknown = [name for name in names.split(";") if name not in METHODS]
    if unknown:
        raise ConfigError(f"methods names {unknown[0]!r}; there are {'; '.join(METHODS)}, separated by semicolons")
    return names.split(";")
