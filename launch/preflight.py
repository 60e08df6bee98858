"""What a configuration needs of the machines it will run on: looked at on every node, before anything is spent."""

from __future__ import annotations

import math
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray

from dato.files import user_path
from launch.schema import EvaluationKeys, SearchKeys
from search.evaluate.model_files import local_files
from search.run.ray_cluster import own_packages

PROBE_S = 20
"""Seconds that a node has to answer."""
LEAST_GB = 2.0
"""Free disk under which a node or the output folder is refused."""
VERSIONED = ("dato-search", "torch", "diffusers", "transformers", "torchmetrics", "numpy", "ray")
"""Packages whose versions must be the same on every node: each of them changes results or cannot talk to another version."""


class Configured(Protocol):
    """A search or an evaluation."""

    @property
    def keys(self) -> SearchKeys | EvaluationKeys:
        """Its configuration."""
        ...

    @property
    def folder(self) -> Path:
        """Where its results go."""
        ...


class PreflightError(RuntimeError):
    """The cluster cannot run the command: the message names the node and the fix."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: The thing.
        where: The node, or "here".
        found: What is there.
        fix: What to do where it is wrong; empty where it is not.
        fatal: Whether a search cannot start with it.
    """

    what: str
    where: str
    found: str
    fix: str = ""
    fatal: bool = True


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


def needed_paths(config: Configured) -> dict[str, str]:
    """Local files and folders that every node must have, by configuration key. A hub id is none, unless the mirror holds it."""
    model, data = config.keys.model, config.keys.data
    paths: dict[str, str] = {}
    paths |= {key: str(path.absolute()) for key, path in local_files(model).items()}
    if data.kind == "prompts" and data.prompts not in ("captions", "imagenet"):
        paths["data.prompts"] = str(user_path(data.prompts or "").absolute())
    if data.kind == "folder":
        paths["data.prompts"] = str(user_path(data.prompts or "").absolute())
        paths["data.images"] = str(user_path(data.images or "").absolute())
    return paths


def probe_nodes(config: Configured) -> tuple[list[dict[str, Any]], list[Finding]]:
    """What every node of the joined cluster has; a finding for each that does not answer within `PROBE_S` seconds."""
    arrange = own_packages(config.keys.cluster.code)
    arguments = (VERSIONED, needed_paths(config), "/tmp" if config.keys.cluster.address else str(config.folder))

    def probe() -> dict[str, Any]:
        arrange()
        return by_value(*arguments)

    by_value = _by_value(look_here)
    nodes = [n for n in ray.nodes() if n["Alive"]]
    asked = {}
    for node in nodes:
        stay = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": stay, "max_retries": 0}
        asked[ray.remote(probe).options(**options).remote()] = node
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S)
    reports, findings = [], []
    for ref, node in asked.items():
        name = f"{node['NodeManagerHostname']} at {node['NodeManagerAddress']}"
        try:
            if ref not in done:
                raise TimeoutError(f"no answer within {PROBE_S} s")
            reports.append({**ray.get(ref), "name": name, "resources": node["Resources"]})
        except (TimeoutError, ray.exceptions.RayError) as error:
            said = str(error).strip().splitlines()
            findings.append(Finding("node", name, said[-1] if said else type(error).__name__, "look at Ray's logs on that node, or take it out of the cluster"))
    return reports, findings


def _by_value(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A copy of a self-contained function that Ray sends by value: nodes need not have this module."""
    copy = types.FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)
    copy.__module__ = "__main__"
    return copy


def compare(reports: Sequence[Mapping[str, Any]], code: str) -> list[Finding]:
    """Versions and paths of every node, against this process's own."""
    here = look_here(VERSIONED, {}, "/")["versions"]
    findings = []
    for report in reports:
        shipped = ("dato-search",) if code == "upload" else ()
        other = [f"{k} {report['versions'].get(k)} (here {v})" for k, v in here.items() if k not in shipped and report["versions"].get(k) != v]
        fix = ""
        if other:
            ours = all(o.startswith(("source", "dato-search")) for o in other)
            fix = "install the same dato-search there, or set cluster.code=upload" if ours else "install the same versions there (pip install -c constraints.txt)"
        shown = ", ".join(f"{k} {report['versions'].get(k, 'missing')}" for k in ("python", "ray", "torch", "diffusers"))
        findings.append(Finding("versions", report["name"], "differs: " + ", ".join(other) if other else shown, fix))
        for key, (kind, size) in report["paths"].items():
            wanted = "folder" if key == "data.images" else "file"
            found = "missing" if kind == "missing" else f"{kind}, {size} {'bytes' if kind == 'file' else 'entries'}"
            fix = "" if kind == wanted else f"copy it to the same path on that node, or set {key} to a path that every node has"
            findings.append(Finding(key, report["name"], found, fix))
        free = report["free_gb"]
        findings.append(Finding("free disk", report["name"], f"{free:.0f} GB", "" if free >= LEAST_GB else f"free at least {LEAST_GB:.0f} GB there"))
    for key in {k for r in reports for k in r["paths"]}:
        sizes = {r["paths"][key][1] for r in reports if r["paths"][key][0] != "missing"}
        if len(sizes) > 1:
            names = ", ".join(f"{r['name']}: {r['paths'][key][1]}" for r in reports)
            findings.append(Finding(key, "all nodes", f"not the same everywhere ({names})", "copy one of them to every node"))
    return findings


def room(reports: Sequence[Mapping[str, Any]], cpus: float, gpus: float) -> int:
    """How many workers fit on the nodes at once."""
    return sum(places(r["resources"], cpus, gpus) for r in reports)


def places(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers fit on one node."""
    limits = [resources.get(kind, 0.0) / each for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return math.floor(min(limits) + 1e-9) if limits else 1_000_000


def check_room(config: Configured, reports: Sequence[Mapping[str, Any]]) -> Finding:
    """Whether the workers that a search needs fit."""
    cluster = config.keys.cluster
    cpus, gpus, asked = cluster.cpus, cluster.gpus, cluster.workers
    fits = room(reports, cpus, gpus)
    least = cluster.min_workers or asked or 1
    each = f"{cpus:g} CPUs and {gpus:g} GPUs"
    if fits >= least:
        return Finding("workers", "cluster", f"room for {min(fits, 999_999)} with {each} each; " + (f"{asked} asked for" if asked else "all of it used"))
    nodes = "; ".join(f"{r['name']}: {r['resources'].get('CPU', 0):g} CPUs, {r['resources'].get('GPU', 0):g} GPUs" for r in reports)
    fix = f"set cluster.workers={fits}" if fits else f"lower cluster.cpus or cluster.gpus (now {each} a worker)"
    return Finding("workers", "cluster", f"{least} asked for with {each} each, room for {fits} ({nodes})", f"{fix}, or add nodes and set cluster.wait_for_nodes_s to wait for them")


def look(config: Configured) -> tuple[list[Finding], int]:
    """Everything about the joined cluster, and how many workers a search may start; waits up to `cluster.wait_for_nodes_s` for room."""
    cluster = config.keys.cluster
    end = time.monotonic() + cluster.wait_for_nodes_s
    while True:
        nodes = [{"name": n["NodeManagerAddress"], "resources": n["Resources"]} for n in ray.nodes() if n["Alive"]]
        if not check_room(config, nodes).fix or time.monotonic() > end:
            break
        time.sleep(1)
    reports, findings = probe_nodes(config)
    findings += compare(reports, cluster.code)
    findings.append(check_room(config, reports))
    if cluster.gpus:
        for report in reports:
            if report["resources"].get("GPU", 0) > len(report["gpus"]) and report["gpus"]:
                findings.append(Finding("GPUs", report["name"], f"Ray was told {report['resources']['GPU']:g}, nvidia-smi sees {len(report['gpus'])}", "start Ray there with --num-gpus as many as there are"))
    return findings, int(cluster.workers or room(reports, cluster.cpus, cluster.gpus))


def require(config: Configured) -> int:
    """The critical part, at the start of a search: how many workers to start. Raises `PreflightError` naming node and fix."""
    findings, workers = look(config)
    wrong = [f for f in findings if f.fix and f.fatal]
    if wrong:
        raise PreflightError("\n".join(f"{f.what} on {f.where}: {f.found}; {f.fix}" for f in wrong[:5]) + "\ndato doctor shows everything")
    return workers
