"""Interleaved timing: every variant once a round, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import contextlib
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dato.files import shown
from launch.config import ConfigError
from launch.environment import environment
from search.evaluate.evaluator import device_name
from search.fields import Kind, Limits


def interleave(variants: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each variant in each of `rounds` rounds, after `warmup` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("timing", total=(rounds + warmup) * len(variants))
        for i in range(rounds + warmup):
            if progress.disable:
                print(f"timing, round {i + 1} of {rounds + warmup}: {', '.join(variants)}", file=sys.stderr, flush=True)
            for name, variant in variants.items():
                seconds = timed(variant, device)
                if i >= warmup:
                    times[name].append(seconds)
                progress.advance(task)
    return times


def timed(variant: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's queue empty before and after."""
    synchronize(device)
    began = time.perf_counter()
    variant()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary(times: list[float]) -> dict[str, float]:
    """Median, fastest and slowest, in seconds."""
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times), "rounds": len(times)}


def parse(arguments: list[str], defaults: Mapping[str, str], command: str) -> dict[str, str]:
    """key=value arguments over defaults. Raises `ConfigError` naming what is allowed."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    unknown = sorted(set(given) - set(defaults)) + [a for a in arguments if "=" not in a]
    if unknown:
        raise ConfigError(f"dato bench {command} was given {', '.join(unknown)}; it takes {', '.join(f'{k}={v}' for k, v in defaults.items())}")
    for key, value in given.items():
        kind, several = _kind(key, defaults[key])
        items = [i for i in value.split(",") if i] if several else [value]
        if kind and not all(kind.allows(_read(item)) for item in items):
            raise ConfigError(f"{key} is {shown(value if several else _read(value))}; {kind}" + (f", or several, such as {key}={defaults[key]}" if several else ""))
    return {**defaults, **given}


def _kind(key: str, default: str) -> tuple[Kind | None, bool]:
    """What a key may be, by what its default is, and whether it may be several; None for a text, which whoever uses it checks."""
    values = [_read(item) for item in default.split(",")]
    if isinstance(values[0], bool):
        return Kind((bool,), False, Limits()), False
    if not isinstance(values[0], int | float):
        return None, False
    number = key.endswith("_s") or key in ("seconds", "noise", "ratios")
    limits = Limits(least=0) if key in _FROM_ZERO else Limits(above=0) if number else Limits(least=1)
    return Kind((float,) if number else (int,), False, limits), len(values) > 1


_FROM_ZERO = ("seed", "first", "first_seed", "threads", "load", "noise", "schedules", "tune_workers", "simulated_candidates", "memory_candidates", "measured_candidates")
"""Keys of which 0 is a value, for none or for what there is."""


def _read(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def chosen_device(name: str) -> torch.device:
    """"auto", "cpu" or "cuda". Raises `ConfigError` where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but PyTorch sees no GPU here; use device=cpu")
    return torch.device(name)


def chosen_dtype(name: str) -> torch.dtype:
    """A floating point type by name."""
    allowed = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in allowed:
        raise ConfigError(f"dtype is {name!r}; allowed are {', '.join(allowed)}")
    return allowed[name]


def write_result(what: str, settings: Mapping[str, str], device: torch.device, result: Mapping[str, Any], folder: str) -> Path:
    """Write ``[what]_[geometry]_[device]_[date].json`` with the settings, the machine and the versions it was measured on."""
    kind = "gpu" if device.type == "cuda" else "cpu"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = Path(folder) / f"{what}_{settings.get('geometry', 'embedded')}_{kind}_{day}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"command": f"dato bench {what}", "settings": dict(settings), "device": device_name(device), "environment": environment(), **result}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def print_table(title: str, headings: list[str], rows: list[list[str]]) -> None:
    """A table on the terminal, the first column left-aligned."""
    table = Table(title=title)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
