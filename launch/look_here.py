"""What one machine has: runs on every node, before it is known whether our packages are there."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def look_here(packages: Sequence[str], paths: Mapping[str, str], folder: str) -> dict[str, Any]:
    """What one machine has. Runs on every node, so it uses nothing but the standard library.

    Args:
        packages: Distributions whose versions are asked for.
        paths: Files and folders to look for, by name.
        folder: Whose free disk is asked for.
    """
    import hashlib
    import importlib.metadata
    import importlib.util
    import os
    import platform
    import shutil
    import socket
    import subprocess

    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    source = hashlib.sha256()
    for package in ("dato", "search"):
        found = importlib.util.find_spec(package)
        root = os.path.dirname(found.origin) if found and found.origin else ""
        for base, _, files in sorted(os.walk(root)) if root else []:
            for name in sorted(f for f in files if f.endswith(".py")):
                with open(os.path.join(base, name), "rb") as file:
                    source.update(os.path.relpath(os.path.join(base, name), root).encode() + file.read())
        if not root:
            source.update(b"missing")
    versions["source"] = source.hexdigest()[:10]
    try:
        ask = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        gpus = subprocess.run(ask, capture_output=True, text=True, timeout=8, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        gpus = []
    there = {}
    for key, path in paths.items():
        kind = "file" if os.path.isfile(path) else "folder" if os.path.isdir(path) else "missing"
        size = os.path.getsize(path) if kind == "file" else len(os.listdir(path)) if kind == "folder" else 0
        there[key] = (kind, size)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder or "/").free / 1e9
    return {"host": socket.gethostname(), "versions": versions, "gpus": gpus, "paths": there, "free_gb": free}


def by_value(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A copy of a self-contained function that Ray sends by value: nodes need not have this module."""
    copy = types.FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)
    copy.__module__ = "__main__"
    return copy
