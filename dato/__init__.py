"""Accelerate a diffusers pipeline by a strategy: its sampler, and step by step the guidance half, the caching and the pruning (DaTo, arXiv 2501.00375)."""

import importlib
from types import ModuleType

from dato import pruning, scoring
from dato.accelerate import accelerate, disable, enable, status
from dato.options import Options
from dato.report import RunReport
from dato.sampler import Sampler
from dato.strategy import FULL, Step, Strategy, StrategyError

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "Options",
    "RunReport",
    "Sampler",
    "Step",
    "Strategy",
    "StrategyError",
    "accelerate",
    "disable",
    "enable",
    "pruning",
    "scoring",
    "status",
]


def __getattr__(name: str) -> ModuleType:
    # Imported when asked for: most who use a strategy need neither.
    if name in ("baselines", "costs"):
        return importlib.import_module(f"dato.{name}")
    raise AttributeError(f"module 'dato' has no attribute {name!r}")
