"""Versions and hardware that a result was made with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_VERSIONED = ("torch", "diffusers", "transformers", "ray", "pymoo", "mlflow", "torchmetrics")


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    versions = {name: importlib.metadata.version(name) for name in _VERSIONED}
    machine = {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {"versions": versions, "machine": machine, **_git()}


def _git() -> dict[str, Any]:
    """The commit that runs, and whether files differ from it; nothing for an installed wheel."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return {}
    try:
        said = [
            subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": {"commit": said[0], "changed": bool(said[1])}}
