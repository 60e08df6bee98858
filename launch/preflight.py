"""What a configuration needs of the machines it will run on: looked at on every node, before anything is spent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray

from dato.files import user_path
from launch.look_here import by_value, look_here
from launch.schema import EvaluationKeys, SearchKeys
from search.evaluate.model_files import local_files
from search.run.autoscaler import Demand, brings_machines
from search.run.nodes import ANY, Node, nodes, places
from search.run.ray_cluster import own_packages

PROBE_S = 20
"""Seconds that a node has to answer."""
LEAVE_S = 5
"""Seconds to wait for room where nothing else was asked for."""
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


def ask_node(config: Configured, node: Node) -> Any:
    """Begin to look at a node: the reference of what `look_here` says there."""
    arrange = own_packages(config.keys.cluster.code)
    arguments = (VERSIONED, needed_paths(config), "/tmp" if config.keys.cluster.address else str(config.folder))
    look_there = by_value(look_here)

    def probe() -> dict[str, Any]:
        arrange()
        return look_there(*arguments)

    stay = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": stay, "max_retries": 0}
    return ray.remote(probe).options(**options).remote()


def probe_nodes(config: Configured) -> tuple[list[dict[str, Any]], list[Finding]]:
    """What every node of the joined cluster has; a finding for each that does not answer within `PROBE_S` seconds."""
    asked = {ask_node(config, node): node for node in nodes()}
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_S)
    reports, findings = [], []
    for ref, node in asked.items():
        try:
            if ref not in done:
                raise TimeoutError(f"no answer within {PROBE_S} s")
            reports.append(_report(node, ray.get(ref)))
        except (TimeoutError, ray.exceptions.RayError) as error:
            said = str(error).strip().splitlines()
            findings.append(Finding("node", node.name, said[-1] if said else type(error).__name__, "look at Ray's logs on that node, or take it out of the cluster"))
    return reports, findings


def _report(node: Node, answer: Mapping[str, Any]) -> dict[str, Any]:
    return {**answer, "name": node.name, "id": node.id, "resources": node.total, "free": node.free}


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
    """How many workers fit on the nodes at once, beside what other jobs hold."""
    return min(ANY, sum(places(r["resources"], cpus, gpus, r.get("free")) for r in reports))


def check_room(config: Configured, reports: Sequence[Mapping[str, Any]], *, autoscaled: bool = False) -> Finding:
    """Whether the workers that a search needs fit; `autoscaled`: what is missing now, machines may be started for."""
    cluster = config.keys.cluster
    cpus, gpus, asked = cluster.cpus, cluster.gpus, cluster.workers
    fits = room(reports, cpus, gpus)
    least = cluster.min_workers or asked or 1
    each = f"{cpus:g} CPUs and {gpus:g} GPUs"
    if fits >= least or autoscaled:
        used = f"{asked} asked for" if asked else f"up to {cluster.max_workers} used" if cluster.max_workers else "all of it used"
        return Finding("workers", "cluster", f"room for {fits} with {each} each; {used}" + ("; Ray's autoscaler starts machines for more" if autoscaled else ""))
    described = "; ".join(f"{r['name']}: {_free(r, 'CPU')} CPUs, {_free(r, 'GPU')} GPUs" for r in reports)
    fix = f"set cluster.workers={fits}" if fits else f"lower cluster.cpus or cluster.gpus (now {each} a worker)"
    held = room([{**r, "free": None} for r in reports], cpus, gpus) >= least
    fix += ", or wait for the jobs that hold the rest (ray status; cluster.wait_for_nodes_s)" if held else ", or add nodes and set cluster.wait_for_nodes_s to wait for them"
    return Finding("workers", "cluster", f"{least} asked for with {each} each, room for {fits} ({described})", fix)


def _free(report: Mapping[str, Any], kind: str) -> str:
    total = report["resources"].get(kind, 0)
    free = (total if report.get("free") is None else report["free"].get(kind, 0)) + 0.0
    return f"{total:g}" if free == total else f"{free:g} of {total:g}"


def look(config: Configured, demand: Demand | None = None) -> tuple[list[Finding], int, list[dict[str, Any]]]:
    """Everything about the joined cluster, how many workers there is room for now, and what each node said.

    Waits for room up to `cluster.wait_for_nodes_s`, asking the autoscaler for `demand`; without one it asks for nothing and waits for no machine
    that an autoscaler would start.
    """
    cluster, began = config.keys.cluster, time.monotonic()
    while True:
        found, autoscaled = nodes(), bool(cluster.address) and brings_machines()
        if autoscaled and demand:
            demand.ask(found, {})
        wait = cluster.wait_for_nodes_s
        if wait is None:
            # What another job of ours held is free again within seconds, and a cluster that has just started knows its autoscaler as soon.
            wait = cluster.load_timeout_s if autoscaled and demand else LEAVE_S if cluster.address else 0
        fits = not check_room(config, [{"name": n.name, "resources": n.total, "free": n.free} for n in found], autoscaled=bool(autoscaled and not demand)).fix
        if fits or time.monotonic() > began + wait:
            break
        time.sleep(1)
    reports, findings = probe_nodes(config)
    findings += compare(reports, cluster.code)
    findings.append(check_room(config, reports, autoscaled=bool(autoscaled and not demand)))
    findings += [f for report in reports if (f := _check_gpus(config, report))]
    most = cluster.workers or min(room(reports, cluster.cpus, cluster.gpus), cluster.max_workers or ANY)
    return findings, int(most), reports


def _check_gpus(config: Configured, report: Mapping[str, Any]) -> Finding | None:
    told = report["resources"].get("GPU", 0)
    if not config.keys.cluster.gpus or not report["gpus"] or told <= len(report["gpus"]):
        return None
    return Finding("GPUs", report["name"], f"Ray was told {told:g}, nvidia-smi sees {len(report['gpus'])}", "start Ray there with --num-gpus as many as there are")


class NodeCheck:
    """The same look at a node that joins later: `search.run.crew.Gate`.

    Args:
        config: What is to run there.
        reports: What the nodes at the start said; they may have workers.
    """

    def __init__(self, config: Configured, reports: Sequence[Mapping[str, Any]]) -> None:
        self._config, self._first, self._known = config, list(reports[:1]), {r["id"] for r in reports}

    def ask(self, node: Node) -> Any:
        """Begin to look at a node; None where it was looked at at the start."""
        return None if node.id in self._known else ask_node(self._config, node)

    def refusal(self, node: Node, answer: Any) -> str:
        """What it lacks and what to do; empty where it may have workers."""
        report = _report(node, answer)
        found = compare([*self._first, report], self._config.keys.cluster.code)
        gpus = _check_gpus(self._config, report)
        wrong = [f for f in [*found, *([gpus] if gpus else [])] if f.fix and f.fatal and f.where in (node.name, "all nodes")]
        return "; ".join(f"{f.what}: {f.found}; {f.fix}" for f in wrong)


@dataclass(frozen=True)
class Machines:
    """A joined cluster that was looked at.

    Attributes:
        workers: How many there is room for, of those that are wanted.
        check: For nodes that join.
        demand: What its autoscaler is asked for; None where nothing is.
    """

    workers: int
    check: NodeCheck
    demand: Demand | None


def require(config: Configured, useful: int) -> Machines:
    """The critical part, at the start of a search. Raises `PreflightError` naming node and fix.

    Args:
        config: What is to run.
        useful: How many workers could be busy at once: an autoscaler is asked for no more unless `cluster.max_workers` says so.
    """
    cluster = config.keys.cluster
    demand = Demand(cluster.workers or cluster.max_workers or max(useful, cluster.min_workers or 1), cluster.cpus, cluster.gpus) if cluster.address else None
    try:
        findings, workers, reports = look(config, demand)
        wrong = [f for f in findings if f.fix and f.fatal]
        if wrong:
            raise PreflightError("\n".join(f"{f.what} on {f.where}: {f.found}; {f.fix}" for f in wrong[:5]) + "\ndato doctor shows everything")
    except BaseException:
        if demand:
            demand.withdraw()
        raise
    return Machines(workers, NodeCheck(config, reports), demand if demand and demand.asked else None)
