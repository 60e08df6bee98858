"""A strategy's card: what it is, for which model, what it costs and gains, how to use and to reproduce it.

Everything on it comes from the strategy's own provenance, so that anybody who has a strategy can print its card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dato.files import FileError, read_bytes, refuse_target
from dato.sources import CARD_SCHEMA, MAX_BYTES
from dato.strategy import FULL, Strategy, StrategyError

FILES = ("strategy.json", "card.json", "card.md")


def write_card(strategy: Strategy, folder: Path, replace: bool = False) -> Path:
    """Write ``strategy.json``, ``card.json`` and ``card.md`` into `folder`, each of which `Strategy.load` reads.

    Raises:
        StrategyError: The folder holds another strategy and `replace` is false, or cannot be written.
    """
    texts = dict(zip(FILES, (strategy.to_json(), card_json(strategy), card_markdown(strategy)), strict=True))
    present = folder / FILES[0]
    if not replace and os.path.exists(present) and not _holds(present, texts[FILES[0]]):
        raise StrategyError(f"{present} exists and is another strategy; give another folder, or replace=true")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if why := refuse_target(folder / name):
                raise StrategyError(f"cannot write {folder / name}: {why}; give another folder")
            partial = folder / f".{name}.tmp"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        for name in texts:
            with suppress(OSError):
                (folder / f".{name}.tmp").unlink()
        raise StrategyError(f"cannot write into {folder}: {error.strerror}; give a folder that you may write") from None
    return folder


def _holds(path: Path, text: str) -> bool:
    try:
        return read_bytes(path, MAX_BYTES) == text.encode()
    except FileError:
        return False


def card_json(strategy: Strategy) -> str:
    """The card as JSON of schema ``dato.card/1``: a summary for programs, and the whole strategy document."""
    notes = strategy.provenance
    card = {
        "schema": CARD_SCHEMA,
        "title": _title(strategy),
        "steps": str(strategy),
        "summary": {
            "steps": len(strategy),
            "calls_by_depth": {("full" if d == FULL else str(d)): n for d, n in strategy.calls_by_depth.items()},
            **{key: notes[key] for key in ("model", "sampler", "quality", "latency") if key in notes},
        },
        "use": _code(strategy),
        "reproduce": notes.get("reproduce"),
        "strategy": json.loads(strategy.to_json()),
    }
    return json.dumps(card, indent=2, allow_nan=False) + "\n"


def card_markdown(strategy: Strategy) -> str:
    """The card as Markdown, for people; its one json block is the strategy itself."""
    notes = strategy.provenance
    parts = [f"# {_title(strategy)}", _what(strategy), *_figures(notes), *_where(notes), "## Use it", _fence("python", _code(strategy))]
    parts += [
        "The run must have exactly this many steps. `dato` compares your pipeline with the model above when it is switched on, and says what "
        "differs. This card, `card.json` and `strategy.json` all hold the strategy; `dato.Strategy.load` reads any of them."
    ]
    if notes.get("reproduce"):
        parts += ["## Reproduce it", _fence("bash", str(notes["reproduce"])), _versions(notes)]
    parts += ["## The strategy", _fence("json", strategy.to_json().rstrip("\n"))]
    return "\n\n".join(p for p in parts if p) + "\n"


def _title(strategy: Strategy) -> str:
    model = _get(strategy.provenance, "model", "name") or _get(strategy.provenance, "model", "path")
    alias = strategy.provenance.get("alias")
    return f"Strategy {alias or strategy.digest}" + (f" for {model}" if model else "")


def _what(strategy: Strategy) -> str:
    names = {FULL: "computed in full", 0: "replayed from the step before"}
    calls = ", ".join(f"{n} {names.get(d, f'computed to depth {d}')}" for d, n in strategy.calls_by_depth.items())
    pruned = [s.prune_ratio for s in strategy if s.prune_ratio and s.cache_depth]
    tokens = f"; self-attention skips {min(pruned):.0%} to {max(pruned):.0%} of its tokens in {len(pruned)} of them" if pruned else "; no tokens are pruned"
    origin = strategy.provenance.get("source")
    steps = f"steps of {strategy.sampler}" if strategy.sampler else "sampler steps"
    return (
        f"A per-step caching and token pruning schedule for a diffusion pipeline (DaTo, arXiv 2501.00375), {len(strategy)} {steps}: {calls}{tokens}.\n\n"
        f"`{strategy}` (the first executed first; F full, 0 replayed, 1 depth 1)" + (f"\n\nSource: {origin}" if origin else "")
    )


def _figures(notes: Mapping[str, Any]) -> list[str]:
    quality, latency = notes.get("quality"), notes.get("latency")
    if not isinstance(quality, Mapping) or not isinstance(latency, Mapping):
        return ["## What it gains and costs", "Not measured: this strategy carries no figures."]
    rows = ["| | this strategy | unaccelerated | difference |", "|---|---|---|---|"]
    rows.append(f"| latency, {latency.get('unit', 'ms per image')} | {_number(latency.get('value'))} | {_number(latency.get('baseline'))} | {_number(latency.get('speedup'))}x faster{_range(latency.get('speedup_range'), 'batches')} |")
    rows.append(f"| {quality.get('metric', 'FID')} (lower is better) | {_number(quality.get('value'))} | {_number(quality.get('baseline'))} | {_number(quality.get('difference'), '+')}{_range(quality.get('difference_interval'), '95 %')} |")
    fresh = "seeds that the search never saw, and prompts from elsewhere in the list" if notes.get("validated") else "the search's own prompts and seeds"
    return [
        "## What it gains and costs",
        "\n".join(rows),
        f"Measured on {quality.get('images')} images of {fresh}, against {quality.get('reference') or 'an unknown reference'}. FIDs of other image counts do not compare.",
    ]


def _where(notes: Mapping[str, Any]) -> list[str]:
    model, sampler, latency = _part(notes, "model"), _part(notes, "sampler"), _part(notes, "latency")
    rows = {
        "model": model.get("path"),
        "UNet weights": ", ".join(f"{k} {str(v)[:16]}" for k, v in _part(model, "weights").items()),
        "precision": model.get("dtype"),
        "measured without": ", ".join(model.get("measured_without") or ()),
        "sampler": " ".join(str(v) for v in (_get(sampler, "settings", "class") or sampler.get("scheduler"), f"{sampler.get('steps')} steps, guidance {sampler.get('guidance')}") if v) if sampler else None,
        "image size": notes.get("size"),
        "device": latency.get("device"),
        "images per batch": latency.get("batch"),
        "search": notes.get("search_id"),
    }
    lines = [f"- {k}: {v}" for k, v in rows.items() if v]
    return ["## For which model, measured where", "\n".join(lines)] if lines else []


def _code(strategy: Strategy) -> str:
    return (
        "import dato\n\n"
        'strategy = dato.Strategy.load("strategy.json")   # this card works too, and so does its https address\n'
        "with dato.accelerate(pipe, strategy):             # pipe: the diffusers pipeline of the model above\n"
        f"    image = pipe(prompt, num_inference_steps={len(strategy)}).images[0]"
    )


def _versions(notes: Mapping[str, Any]) -> str:
    versions = _get(notes, "environment", "versions")
    return "Made with " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "." if isinstance(versions, Mapping) else ""


def _fence(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _part(notes: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = notes.get(key)
    return found if isinstance(found, Mapping) else {}


def _get(notes: Mapping[str, Any], *path: str) -> Any:
    found: Any = notes
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _number(value: Any, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if isinstance(value, int | float) else "not measured"


def _range(ends: Any, kind: str) -> str:
    whole = isinstance(ends, list | tuple) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends)
    return f" ({kind}: {ends[0]:.2f} .. {ends[1]:.2f})" if whole else ""
