"""What MLflow shows of a candidate and of a front: metrics by name, and the front as a table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import Any

from dato.strategy import Strategy
from search.measurements import Measurement
from search.records import UNACCELERATED, Candidate, SearchRecord


def child_metrics(record: SearchRecord, candidate: Candidate, m: Measurement) -> dict[str, float]:
    """A candidate's metrics. MLflow shows columns by name, so what nobody sorts by is named ``with/...`` and comes last."""
    plain = record.plain(m.images) if UNACCELERATED in record.baselines else None
    return {
        "fid": m.fid,
        "fid_difference": m.fid - plain.fid if plain else math.nan,
        "kid": math.nan if m.kid is None else m.kid,
        "latency_ms": m.latency_ms,
        "speedup": plain.latency_ms / m.latency_ms if plain else math.nan,
        **{f"with/{k}": v for k, v in similarity_metrics(m).items()},
        "with/fid_low": m.fid_low,
        "with/fid_high": m.fid_high,
        "with/fid_difference_low": m.difference_low,
        "with/fid_difference_high": m.difference_high,
        "with/images": float(m.images),
        "with/seconds": m.seconds,
        "with/generation": float(candidate.generation),
        "with/steps": float(len(candidate.strategy)),
        "with/guided_share": guided_share(candidate.strategy),
        **{f"with/calls_depth_{d}": float(n) for d, n in m.calls_by_depth.items()},
    }


def child_params(strategy: Strategy) -> dict[str, str]:
    """What a candidate is, in texts: its sampler as the field names it ("own" is the pipeline's), its steps in short and one by one."""
    steps = [[s.cache_depth, s.prune_ratio, *((s.guidance, s.order) if s.guidance != "both" or s.order else ())] for s in strategy]
    return {"sampler": sampler_name(strategy), "strategy": str(strategy)[:6000], "steps": json.dumps(steps)[:6000]}


def sampler_name(strategy: Strategy) -> str:
    """As the field names it; "own" where it is the pipeline's."""
    return str(strategy.sampler or "own")


def guided_share(strategy: Strategy) -> float:
    """Share of the steps that compute both halves of guidance."""
    return sum(s.guidance == "both" for s in strategy) / len(strategy)


def similarity_metrics(m: Measurement) -> dict[str, float]:
    """How close a measurement's images are to the unaccelerated ones; NaN where nobody compared them."""
    values = {"feature_distance": m.feature_distance, "feature_distance_low": m.feature_distance_low, "feature_distance_high": m.feature_distance_high}
    return {k: math.nan if v is None else v for k, v in values.items()} | {name.partition(":")[0]: v for name, (v, _, _) in m.similarity.items()}


def front_table(record: SearchRecord) -> str:
    """The front as CSV, fastest first, which MLflow's page shows as a table."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["candidate", "latency_ms", "speedup", "fid", "fid_low", "fid_high", "fid_difference", "feature_distance", "steps", "sampler", "guided_share", "strategy", "digest", "fid_against"])
    for c, m in record.front():
        values = child_metrics(record, c, m)
        numbers = [m.latency_ms, values["speedup"], m.fid, m.fid_low, m.fid_high, values["fid_difference"], values["with/feature_distance"]]
        what = [len(c.strategy), sampler_name(c.strategy), f"{values['with/guided_share']:.4f}", str(c.strategy), c.strategy.digest]
        writer.writerow([c.number, *("" if math.isnan(v) else f"{v:.4f}" for v in numbers), *what, record.reference])
    return out.getvalue()


def child_tags(candidate: Candidate, m: Measurement) -> dict[str, str]:
    """What a candidate's run is found by."""
    return {
        "dato.kind": "candidate",
        "dato.candidate": str(candidate.number),
        "dato.generation": str(candidate.generation),
        "dato.origin": candidate.origin,
        **({"dato.parents": ",".join(map(str, candidate.parents))} if candidate.parents else {}),
        "dato.digest": candidate.strategy.digest,
        "dato.device": m.device,
        **({"dato.error": m.error[:5000]} if m.error else {}),
    }


def made_with(environment: Mapping[str, Any]) -> dict[str, str]:
    """Tags of the code, versions and hardware: the commit under the name that MLflow's own pages know."""
    git, machine = environment.get("git") or {}, environment.get("machine") or {}
    found = {"mlflow.source.name": "dato search", "mlflow.source.git.commit": git.get("commit"), "dato.changed": git.get("changed")}
    found |= {f"dato.version.{name}": v for name, v in (environment.get("versions") or {}).items()}
    found |= {f"dato.machine.{name}": v for name, v in machine.items()}
    return {k: str(v)[:5000] for k, v in found.items() if v is not None}
