"""What a card says of a strategy, as JSON and as Markdown, and whether a card that is read says just that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from dato.schema import FULL, StrategyError, plain

CARD_SCHEMA = "dato.card/1"
"""To be raised with any change of what a card says: whoever reads one derives it anew from its strategy, and compares."""
BLOCK = re.compile(r"^```json\n(.*?)^```", re.DOTALL | re.MULTILINE)
"""Of a Markdown card: the strategy itself."""


class Described(Protocol):
    """What a card needs of a `dato.Strategy`."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Notes."""

    @property
    def sampler(self) -> Any:
        """What it runs with, or None."""

    @property
    def digest(self) -> str:
        """Of its steps."""

    @property
    def calls_by_depth(self) -> dict[int, int]:
        """How many steps have each cache depth."""

    def canonical(self) -> Iterable[Any]:
        """The steps, with nothing that is without effect."""

    def to_json(self) -> str:
        """The strategy with a digest of its content."""

    def __len__(self) -> int:
        """Steps."""

    def __iter__(self) -> Iterator[Any]:
        """Step by step."""


def check_card(strategy: Described, card: Any, where: str) -> None:
    """Refuse a card, of JSON or Markdown, in which anything stands that does not follow from its strategy, which has a digest.

    Raises:
        StrategyError: It names the first thing that is different.
    """
    different = _lines(card, card_markdown(strategy)) if isinstance(card, str) else _keys(card, json.loads(card_json(strategy)))
    if different:
        raise StrategyError(
            f"{where} was changed after it was written, or is by another version of dato: {different[0][:100]!r} is not what its strategy says; "
            "get it again from where it was exported, or give strategy.json"
        )


def _lines(card: str, due: str) -> list[str]:
    """Lines of a Markdown card that are different; how the strategy's own block is laid out does not matter."""
    there, expected = ([line.rstrip() for line in BLOCK.sub("", text).splitlines() if line.strip()] for text in (card, due))
    if there == expected:
        return []
    return [line for line in there if line not in expected] or [line for line in expected if line not in there] or ["the order of its lines"]


def _keys(card: Mapping[str, Any], due: Mapping[str, Any]) -> list[str]:
    """Keys of a JSON card that are different; the strategy has its digest."""
    found = []
    for name, there, expected in (("", card, due), ("summary.", card.get("summary"), due["summary"])):
        if not isinstance(there, Mapping):
            return ["summary"]
        keys = [k for k in {**expected, **there} if f"{name}{k}" not in ("strategy", "summary")]
        found += [name + k for k in keys if k not in there or k not in expected or plain(there[k]) != plain(expected[k])]
    return found


def card_json(strategy: Described) -> str:
    """The card as JSON of schema ``dato.card/1``: a summary for programs, and the whole strategy document."""
    notes = strategy.provenance
    card = {
        "schema": CARD_SCHEMA,
        "title": _title(strategy),
        "steps": str(strategy),
        "summary": {
            "steps": len(strategy),
            "calls_by_depth": {("full" if d == FULL else str(d)): n for d, n in strategy.calls_by_depth.items()},
            **_beside_depths(strategy),
            **{key: notes[key] for key in ("model", "sampler", "quality", "latency") if key in notes},
        },
        "use": _code(strategy),
        "reproduce": notes.get("reproduce"),
        "strategy": json.loads(strategy.to_json()),
    }
    return json.dumps(card, indent=2, allow_nan=False) + "\n"


def card_markdown(strategy: Described) -> str:
    """The card as Markdown, for people; its one json block is the strategy itself."""
    notes = strategy.provenance
    parts = [f"# {_title(strategy)}", what_it_does(strategy), *_figures(notes), *_where(notes), "## Use it", _fence("python", _code(strategy))]
    exchanged = " Its sampler comes with it: `dato.accelerate` exchanges the pipeline's scheduler and puts it back." if strategy.sampler and _get(notes, "sampler", "unaccelerated") else ""
    parts += [
        f"The run must have exactly this many steps.{exchanged} `dato` compares your pipeline with the model above when it is switched on, and says what "
        "differs. This card, `card.json` and `strategy.json` all hold the strategy; `dato.Strategy.load` reads any of them."
    ]
    if notes.get("reproduce"):
        parts += ["## Reproduce it", _fence("bash", str(notes["reproduce"])), _versions(notes)]
    parts += ["## The strategy", _fence("json", strategy.to_json().rstrip("\n"))]
    return "\n\n".join(p for p in parts if p) + "\n"


def _title(strategy: Described) -> str:
    model = _get(strategy.provenance, "model", "name") or _get(strategy.provenance, "model", "path")
    alias = strategy.provenance.get("alias")
    return f"Strategy {alias or strategy.digest}" + (f" for {model}" if model else "")


def what_it_does(strategy: Described) -> str:
    """How a strategy runs the pipeline, as Markdown: its steps in words, and in short."""
    names = {FULL: "computed in full", 0: "replayed from the step before"}
    calls = ", ".join(f"{n} {names.get(d, f'computed to depth {d}')}" for d, n in strategy.calls_by_depth.items())
    pruned = [s.prune_ratio for s in strategy if s.prune_ratio and s.cache_depth]
    tokens = f"; self-attention skips {min(pruned):.0%} to {max(pruned):.0%} of its tokens in {len(pruned)} of them" if pruned else "; no tokens are pruned"
    origin = strategy.provenance.get("source")
    steps = f"steps of {strategy.sampler}" if strategy.sampler else "sampler steps"
    more = _beside_depths(strategy)
    guidance = f"; {more['conditional_half_alone']} of them compute the conditional half of guidance alone (arXiv 2404.07724)" if "conditional_half_alone" in more else ""
    reuse = f"; {more['extrapolated']} of them extrapolate what they reuse (arXiv 2503.06923)" if "extrapolated" in more else ""
    signs = ("; ' the conditional half alone" if guidance else "") + ("; + extrapolated, a + for each order" if reuse else "")
    return (
        f"A per-step caching and token pruning schedule for a diffusion pipeline (DaTo, arXiv 2501.00375), {len(strategy)} {steps}: {calls}{tokens}{guidance}{reuse}.\n\n"
        f"`{strategy}` (the first executed first; F full, 0 replayed, 1 depth 1{signs})" + (f"\n\nSource: {origin}" if origin else "")
    )


def _beside_depths(strategy: Described) -> dict[str, int]:
    """How many steps compute the conditional half alone, and how many extrapolate, where any do: a card of depths and ratios alone stays as it was."""
    steps = list(strategy.canonical())
    found = {"conditional_half_alone": sum(s.guidance == "cond" for s in steps), "extrapolated": sum(s.order > 0 for s in steps)}
    return {name: count for name, count in found.items() if count}


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
    plain = _part(sampler, "unaccelerated")
    rows = {
        "model": model.get("path"),
        "UNet weights": ", ".join(f"{k} {str(v)[:16]}" for k, v in _part(model, "weights").items()),
        "precision": model.get("dtype"),
        "measured without": ", ".join(model.get("measured_without") or ()),
        "sampler": " ".join(str(v) for v in (_get(sampler, "settings", "class") or sampler.get("scheduler"), f"{sampler.get('steps')} steps, guidance {sampler.get('guidance')}") if v) if sampler else None,
        "unaccelerated": f"{plain.get('scheduler')} {plain.get('steps')} steps" if plain else None,
        "image size": notes.get("size"),
        "device": latency.get("device"),
        "images per batch": latency.get("batch"),
        "search": notes.get("search_id"),
    }
    lines = [f"- {k}: {v}" for k, v in rows.items() if v]
    return ["## For which model, measured where", "\n".join(lines)] if lines else []


def _code(strategy: Described) -> str:
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
