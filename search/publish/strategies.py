"""The winners of a search as strategies that carry everything another team needs to know about them."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dato.files import FileError, read_json
from dato.strategy import Strategy
from search.evaluate.model_files import PINNED, added_digests
from search.evaluate.model_spec import LATER, ModelError, ModelSpec
from search.evaluate.pipelines import weights_digest
from search.measurements import Measurement, fid_difference, flat, speedup
from search.optimize.winners import in_words, passed, tolerance_of
from search.records import Candidate, SearchRecord, Winner

MODEL_FILE = "model.json"


MAX_MODEL_INFO = 1 << 24


class ModelInfoError(ValueError):
    """A search's note about its pipeline that cannot be read."""


class RegistryNameError(ValueError):
    """A name that MLflow's model registry does not take."""


def check_names(name: str, alias: str | None = None, key: str = "the registered model's name") -> None:
    """Refuse what MLflow would refuse once the versions are made. Raises `RegistryNameError`.

    Args:
        name: Of a registered model.
        alias: Of a version of it, or None.
        key: What the name is called where it was given.
    """
    if not name.strip() or set(name) & set("/:'"):
        raise RegistryNameError(f"{key} is {name!r}; give one without /, : and ', such as dato-embedded")
    if alias is not None and (not re.fullmatch(r"[\w-]{1,255}", alias) or alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias)):
        raise RegistryNameError(f"alias is {alias!r}; allowed are letters, digits, - and _, but not latest, v1, v2, ..., which MLflow keeps for itself")


def winner_strategies(record: SearchRecord, model_info: Mapping[str, Any] | None = None) -> dict[str, Strategy]:
    """The winners by alias, each with its provenance.

    Args:
        record: Of a search, finished or not.
        model_info: What `dato.provenance.describe` says of the pipeline that was measured; None where nobody noted it.
    """
    return {alias: w.candidate.strategy.with_provenance(**provenance(record, w, model_info)) for alias, w in record.winners.items()}


def read_model_info(folder: Path) -> dict[str, Any] | None:
    """What the search noted about its pipeline, or None for a search of before it did."""
    if not (folder / MODEL_FILE).exists():
        return None
    try:
        found = read_json(folder / MODEL_FILE, MAX_MODEL_INFO)
    except FileError as error:
        raise ModelInfoError(f"{folder / MODEL_FILE} cannot be read ({error}); restore it, or remove it to do without what it notes of the pipeline") from None
    return found if isinstance(found, dict) else None


def write_model_info(folder: Path, model_info: Mapping[str, Any]) -> None:
    """Note what the pipeline is, for its winners' provenance."""
    (folder / MODEL_FILE).write_text(json.dumps(model_info, indent=2) + "\n", encoding="utf-8")


def provenance(record: SearchRecord, winner: Winner, model_info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Where a winner comes from, for which model, and what it gave on fresh images."""
    tolerance = tolerance_of(record.config)
    judged = {"in_search": winner.searched.fid, "fresh": True, "in_words": in_words(winner, tolerance)}
    said = {"alias": winner.alias, "validated": passed(winner, tolerance)}
    return _provenance(record, winner.candidate, winner.fresh, winner.fresh_baseline, model_info, said, judged)


def candidate_strategy(record: SearchRecord, candidate: Candidate, m: Measurement, model_info: Mapping[str, Any] | None = None) -> Strategy:
    """A candidate that need not have won, with its provenance: what it gave as `m` on the images of the search, which chose it."""
    judged = {"in_search": m.fid, "fresh": False, "in_words": None}
    return candidate.strategy.with_provenance(**_provenance(record, candidate, m, record.plain(m.images), model_info, {"validated": False}, judged))


def _provenance(
    record: SearchRecord, candidate: Candidate, m: Measurement, plain: Measurement, model_info: Mapping[str, Any] | None, said: Mapping[str, Any], judged: Mapping[str, Any]
) -> dict[str, Any]:
    config = as_pinned(record)
    model, sampler = config["model"], (model_info or {}).get("scheduler", {})
    difference, low, high = fid_difference(m, plain)
    faster, slowest, fastest = speedup(m, plain)
    return {
        "search_id": record.search_id,
        **said,
        "model": {
            "name": model["name"],
            "path": model["path"],
            "dtype": model["dtype"],
            **{k: model[k] for k in LATER if k in model},
            **_files_digests(model),
            **{k: v for k, v in (model_info or {}).items() if k != "scheduler"},
        },
        "sampler": _ran_with(candidate.strategy, model, sampler),
        "size": [model["height"], model["width"]] if model["height"] and model["width"] else "the model's own",
        "quality": {
            "metric": f"FID, {record.config['protocol']['features']} features",
            "value": m.fid,
            "interval": _ends(m.fid_low, m.fid_high),
            "baseline": plain.fid,
            "baseline_interval": _ends(plain.fid_low, plain.fid_high),
            "difference": difference,
            "difference_interval": _ends(low, high),
            "in_search": judged["in_search"],
            "images": m.images,
            "fresh": judged["fresh"],
            "tolerance": tolerance_of(record.config),
            "in_words": judged["in_words"],
            "reference": record.reference,
        },
        "latency": {
            "value": m.latency_ms,
            "baseline": plain.latency_ms,
            "unit": "ms per image",
            "speedup": faster,
            "speedup_range": _ends(slowest, fastest) if slowest < fastest else None,  # of one batch, none
            "device": m.device,
            "batch": m.batch,
            **({"warnings": warnings} if (warnings := record.notes.get("warnings")) else {}),
        },
        "environment": record.environment,
        "reproduce": command(config),
    }


def _ran_with(strategy: Strategy, model: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler that a strategy was measured with, and where it is another or has another number of steps, the unaccelerated pipeline's."""
    scheduler = own.get("class") or model["scheduler"] or "the model's own"
    found = {"scheduler": scheduler, "steps": len(strategy), "guidance": model["guidance"], "settings": dict(own)}
    if strategy.sampler is not None:
        kept = {k: own[k] for k in ("prediction_type",) if k in own}  # what an exchanged scheduler has of the model's own in any case
        found |= {"scheduler": strategy.sampler.scheduler, "settings": {"class": strategy.sampler.scheduler, **kept, **strategy.sampler.settings}}
    if strategy.sampler is not None or len(strategy) != model["steps"]:
        found["unaccelerated"] = {"scheduler": scheduler, "steps": model["steps"]}
    return found


def command(config: Mapping[str, Any]) -> str:
    """The `dato search` command that makes the same search: every resolved value, so that no default can change it."""
    rows = flat({k: v for k, v in config.items() if k not in _LOCAL}).items()
    # A model's or data set's keys are not those of the default ones: ++ adds what is not there.
    words = ["dato", "search", *(f"{'++' if k.startswith(('model.', 'data.')) else ''}{k}={_value(v)}" for k, v in rows)]
    return " \\\n  ".join([" ".join(words[:2]), *map(shlex.quote, words[2:])])


_LOCAL = ("output", "fresh_start", "cluster", "mlflow", "registry", "latency_from")  # where it ran, not what it found


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(v) for v in value) + "]"
    text = str(value)
    plain = all(c.isalnum() or c in "-_./:" for c in text)
    return text if plain or not isinstance(value, str) else hydra_text(text)


def hydra_text(text: str, mark: str = "'") -> str:
    """A text in Hydra's quotes. A backslash stands for itself but before a quote, where each is written twice."""
    escaped = re.sub(rf"(\\*){mark}", lambda found: found[1] * 2 + "\\" + mark, text)
    ending = len(escaped) - len(escaped.rstrip("\\"))
    return mark + escaped + "\\" * ending + mark


def as_pinned(record: SearchRecord) -> dict[str, Any]:
    """A search's configuration with the commits of what it loaded from the hub, so that a re-run gets the same weights."""
    return {**record.config, "model": {**record.config["model"], **{k: v for k, v in (record.notes.get("pinned") or {}).items() if k in PINNED}}}


def _files_digests(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of the weight files on this machine: None where the model's folder is on another, or its keys are of another version."""
    try:
        return _digests(json.dumps(dict(model), sort_keys=True))
    except (ModelError, TypeError, OSError):
        return {"unet_sha256": None}


@cache
def _digests(model: str) -> dict[str, Any]:
    """Read once, and not for each strategy: weights are gigabytes. Of a model's keys as JSON, which can be looked up."""
    spec = ModelSpec(**json.loads(model))
    added = added_digests(spec)
    return {"unet_sha256": weights_digest(spec), **({"added_sha256": added} if added else {})}


def _ends(low: float, high: float) -> list[float] | None:
    return [low, high] if math.isfinite(low) and math.isfinite(high) else None
