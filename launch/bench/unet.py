"""``dato bench unet``: one call of every action, and whole schedules, against plain diffusers, DeepCache and ToMeSD.

Weights are random: speed does not depend on them. Everything runs in one process, on two UNets that share their weights:
an action and its rival take turns, call by call, and a schedule's calls with plain ones, so that a machine whose speed drifts
does so under both.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, PNDMScheduler

from dato import FULL, Options, Step, Strategy, accelerate
from dato.costs import CostModel
from dato.options import token_grid
from dato.pruning import plan
from dato.scoring import align, base_tokens, diff_score, pool_score
from dato.unet.units import Layout
from launch.bench.timing import chosen_device, chosen_dtype, interleave, parse, print_table, summary, timed, write_result
from search.evaluate.geometry import geometry, unet_geometry

DEFAULTS = {
    "geometry": "sd15", "batch": "2", "dtype": "float32", "device": "auto", "threads": "0", "rounds": "4", "schedules": "1",
    "compile": "none", "channels_last": "false",
    "which": "actions,overhead,paper-b1,authors-l12@0.5,deepcache-5,packages", "output": "analysis/results",
}
RIVALS = {
    Step(FULL, 0.5): "tomesd 0.5",
    Step(1): "DeepCache shallow",
    Step(1, 0.5): "DeepCache shallow + tomesd 0.5",
    Step(1, 0.7): "DeepCache shallow + tomesd 0.7",
}
"""What each action of ours is held against."""
HALVED = (Step(FULL), Step(1), Step(1, 0.5))
"""Actions whose conditional half alone is held against both halves."""


@dataclass
class Setting:
    """A UNet with random weights, one example call, and how our calls are made."""

    pipe: SimpleNamespace
    call: dict[str, Any]
    options: Options
    device: torch.device
    unet: torch.nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.unet = self.pipe.unet

    def plain(self) -> Any:
        """One call of the UNet as it is wrapped at this moment."""
        return self.unet(self.call["sample"], self.call["timestep"], **{k: v for k, v in self.call.items() if k not in ("sample", "timestep")})

    def at(self, timestep: torch.Tensor) -> Any:
        """One call at a sampler's timestep."""
        self.call["timestep"] = timestep
        return self.plain()

    def twin(self) -> Setting:
        """Another UNet of the same weights, held once, that can be wrapped otherwise."""
        held = {id(t): t for t in (*self.unet.parameters(), *self.unet.buffers())}
        pipe = SimpleNamespace(**{**vars(self.pipe), "unet": copy.deepcopy(self.unet, held), "scheduler": copy.deepcopy(self.pipe.scheduler)})
        return Setting(pipe, dict(self.call), self.options, self.device)


Caller = Callable[[torch.Tensor], Any]
"""Makes one call at a timestep."""


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file."""
    given = parse(list(arguments), DEFAULTS, "unet")
    rounds, schedules = int(given["rounds"]), int(given["schedules"])
    with torch.inference_mode():
        setting, costs = _prepare(given)
        which = given["which"].split(",")
        result: dict[str, Any] = {}
        if "actions" in which:
            result["actions"], result["against"], result["conditional_alone"] = _actions(setting, costs, rounds)
            result["planning"] = _planning(setting, rounds)
            result["planning"]["share_of_d1_r0.5"] = result["planning"]["median_s"] / result["actions"]["dato d=1 r=0.5"]["median_s"]
        if "overhead" in which:
            result["overhead"] = _overhead()
            print(f"our code adds {1000 * result['overhead']['seconds_per_call']:.2f} ms to a call")
        named = [name for name in which if name not in ("actions", "overhead")]
        if schedules and named:
            result["schedules"] = _schedules(setting, costs, schedules, named)
    print(write_result("unet", given, setting.device, result, given["output"]))
    return 0


def _prepare(given: dict[str, str]) -> tuple[Setting, CostModel]:
    if int(given["threads"]):
        torch.set_num_threads(int(given["threads"]))
    device, dtype, shape = chosen_device(given["device"]), chosen_dtype(given["dtype"]), unet_geometry(given["geometry"])
    unet = shape.random(dtype, device)
    if given["channels_last"] == "true":
        unet = unet.to(memory_format=torch.channels_last)
    options = Options(compile=None if given["compile"] == "none" else given["compile"])
    pipe = SimpleNamespace(unet=unet, scheduler=DDIMScheduler(), do_classifier_free_guidance=True)
    return Setting(pipe, shape.example(int(given["batch"]), dtype, device), options, device), shape.costs()


def _actions(setting: Setting, costs: CostModel, rounds: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Every action in turn with its rival, `rounds` times over: times of one call, how much faster one is than the other, and what share of
    a call the conditional half alone takes.
    """
    other, device = setting.twin(), setting.device
    pairs = [(_name(step), partial(_ours, setting, step), name, partial(_theirs, other, step)) for step, name in RIVALS.items()]
    pairs.append((_name(Step(1, 0.7)), partial(_ours, setting, Step(1, 0.7)), _name(Step(1)), partial(_ours, other, Step(1))))
    halves = [replace(step, guidance="cond") for step in HALVED]
    pairs += [(_name(half), partial(_ours, setting, half), _name(step), partial(_ours, other, step)) for half, step in zip(halves, HALVED, strict=True)]
    # Of the batch's two samples a call of the conditional half computes one.
    macs = {"plain": costs.macs(Step(FULL)), **{_name(s): costs.macs(s) // (1 + (s in halves)) for s in (*RIVALS, *HALVED, *halves, Step(0))}}
    times: dict[str, list[float]] = {name: [] for name in ("plain", *(n for a, _, b, _ in pairs for n in (a, b)), _name(Step(0)))}
    against: dict[str, list[float]] = {f"{a} over {b}": [] for a, _, b, _ in pairs}

    def duel(mine: str, one: Any, theirs: str, two: Any) -> None:
        calls = 2 if "full" in mine else 12
        seconds = _turns(one, two, calls, device)
        times[mine] += [a for a, _ in seconds]
        times[theirs] += [b for _, b in seconds]
        against[f"{mine} over {theirs}"] += [b / a for a, b in seconds]

    def alone(name: str, one: Any, calls: int) -> None:
        with one(calls + 2) as (call, steps):
            times[name] += [timed(partial(call, t), device) for t in steps][2:]

    variants: dict[str, Callable[[], Any]] = {f"{a} and {b}": partial(duel, a, one, b, two) for a, one, b, two in pairs}
    variants["plain"] = lambda: times["plain"].extend(timed(setting.plain, device) for _ in range(2))
    variants[_name(Step(0))] = partial(alone, _name(Step(0)), partial(_ours, setting, Step(0)), 20)
    if setting.options.compile:
        compiled, times["plain, compiled"] = torch.compile(setting.unet, mode=setting.options.compile), []
        compiled(**setting.call)
        variants["plain, compiled"] = lambda: times["plain, compiled"].extend(timed(partial(compiled, **setting.call), device) for _ in range(2))
    setting.plain()
    interleave(variants, rounds, device, warmup=0)
    found = {name: {**summary(t), "gmacs_per_sample": macs[name] / 1e9 if name in macs else None} for name, t in times.items()}
    medians = {name: statistics.median(t) for name, t in times.items()}
    rows = [[n, f"{1000 * m:.2f}", f"{medians['plain'] / m:.2f}x", f"{macs['plain'] / macs[n]:.2f}x" if macs.get(n) else "-"] for n, m in medians.items()]
    print_table("one UNet call, medians", ["variant", "ms", "speedup", "MAC limit"], rows)
    faster = {name: dict(zip(("low", "median", "high"), statistics.quantiles(ratios, n=4), strict=True), pairs=len(ratios)) for name, ratios in against.items()}
    print_table("times faster, call by call", ["of two", "median", "middle half"], [[n, f"{f['median']:.3f}x", f"{f['low']:.2f} .. {f['high']:.2f}"] for n, f in faster.items()])
    gains = {_name(step): faster[f"{_name(half)} over {_name(step)}"] for half, step in zip(halves, HALVED, strict=True)}
    shares = {name: {"low": 1 / f["high"], "median": 1 / f["median"], "high": 1 / f["low"]} for name, f in gains.items()}
    print_table("the conditional half alone, in calls of both halves", ["action", "median", "middle half"], [[n, f"{f['median']:.3f}", f"{f['low']:.3f} .. {f['high']:.3f}"] for n, f in shares.items()])
    return found, faster, shares


def _name(step: Step) -> str:
    return f"dato d={'full' if step.cache_depth == FULL else step.cache_depth} r={step.prune_ratio:g}{', conditional half' if step.guidance == 'cond' else ''}"


def _turns(one: Any, two: Any, calls: int, device: torch.device) -> list[tuple[float, float]]:
    """Seconds of both at each of so many calls, made in turn; who begins changes. The first two calls of each are not timed."""
    found = []
    with one(calls + 2) as (first, steps), two(calls + 2) as (second, _):
        for i, t in enumerate(steps):
            if i % 2:
                a, b = timed(partial(first, t), device), timed(partial(second, t), device)
            else:
                b, a = timed(partial(second, t), device), timed(partial(first, t), device)
            found.append((a, b))
    return found[2:]


@contextmanager
def _ours(setting: Setting, step: Step, calls: int) -> Iterator[tuple[Caller, torch.Tensor]]:
    # A full call, then the action: from the second action on, DiffScore has its two outputs.
    with accelerate(setting.pipe, Strategy((Step(FULL), *[step] * (calls - 1))), setting.options):
        setting.pipe.scheduler.set_timesteps(calls)
        yield setting.at, setting.pipe.scheduler.timesteps


@contextmanager
def _theirs(setting: Setting, step: Step, calls: int) -> Iterator[tuple[Caller, torch.Tensor]]:
    """What the packages do in place of an action of ours."""
    setting.pipe.scheduler.set_timesteps(calls)
    with _packages(setting, step.prune_ratio, 1000 if step.cache_depth != FULL else None):
        yield setting.at, setting.pipe.scheduler.timesteps


@contextmanager
def _packages(setting: Setting, ratio: float, interval: int | None) -> Iterator[None]:
    """ToMeSD at a merge ratio, and DeepCache at an interval, of calls 0, interval, ... in full."""
    from DeepCache import DeepCacheSDHelper
    from tomesd import apply_patch, remove_patch

    if ratio:
        apply_patch(setting.unet, ratio=ratio)
    helper = DeepCacheSDHelper(pipe=setting.pipe) if interval else None
    if helper is not None:
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()
    try:
        yield
    finally:
        if helper is not None:
            helper.disable()
        if ratio:
            remove_patch(setting.unet)


def _planning(setting: Setting, rounds: int) -> dict[str, Any]:
    """Scoring, similarity, selection, gather and scatter of one call's one layer at the finest grid, r = 0.5."""
    layout = Layout.of(setting.unet)
    finest = min(d for _, d in layout.self_attentions().values())
    layer = next(m for m, d in reversed(layout.self_attentions().values()) if d == finest)
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
    older = setting.plain()[0]
    handle.remove()
    tokens, newer = seen[0].clone(), older + 0.1 * torch.randn_like(older)
    latent = (older.shape[2], older.shape[3])
    height, width = token_grid(latent, finest)

    def work() -> torch.Tensor:
        score = pool_score(diff_score(newer, older), latent, (height, width))
        base = align(base_tokens(score, height, width, 2), "cond")
        found = plan(tokens, base, tokens.shape[1] // 2)
        return found.recover(found.prune(tokens))

    return summary(interleave({"planning": work}, max(rounds, 5), setting.device, warmup=2)["planning"])


def _overhead(pairs: int = 200) -> dict[str, Any]:
    """What our code adds to a call outside the model's own kernels: full calls without pruning of one UNet, plain ones of its copy.

    With the embedded model, whose kernels are short and whose layers are as many as those of SD v1.5; the calls take turns.
    """
    device, shape = torch.device("cpu"), geometry("embedded")
    ours, theirs = (
        Setting(
            SimpleNamespace(unet=unet, scheduler=DDIMScheduler(), do_classifier_free_guidance=True), shape.example(2, torch.float32, device), Options(), device
        )
        for unet in (shape.random(torch.float32, device), shape.random(torch.float32, device))
    )
    # The last step is shallow: without one, full calls would keep nothing.
    strategy = Strategy((*[Step(FULL)] * pairs, Step(1)))
    ours.pipe.scheduler.set_timesteps(len(strategy))
    with accelerate(ours.pipe, strategy):
        both = [(timed(partial(ours.at, t), device), timed(partial(theirs.at, t), device)) for t in ours.pipe.scheduler.timesteps[:-1]][1:]
    added = statistics.median(a - b for a, b in both)
    return {"ours": summary([a for a, _ in both]), "plain": summary([b for _, b in both]), "seconds_per_call": added}


def _schedules(setting: Setting, costs: CostModel, repeats: int, named: Sequence[str]) -> dict[str, Any]:
    """Whole schedules of 50 steps in the 51 calls that PNDM makes, with a plain call of the twin after every tenth."""
    setting.pipe.scheduler = PNDMScheduler(skip_prk_steps=True)
    plain = setting.twin()
    strategies = {name: Strategy.load(name) for name in named if name != "packages"}
    wraps: dict[str, Callable[[], Any]] = {name: partial(accelerate, setting.pipe, s, setting.options) for name, s in strategies.items()}
    if "packages" in named:
        wraps["DeepCache package, every 5"] = partial(_packages, setting, 0.0, 5)
        wraps["DeepCache package, every 5 + tomesd 0.5"] = partial(_packages, setting, 0.5, 5)
    limits = {name: costs.limit(s, 1) for name, s in strategies.items()}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in wraps}

    def course(name: str) -> None:
        with wraps[name]():
            setting.pipe.scheduler.set_timesteps(50)  # and PNDM makes 51 calls
            mine, others = 0.0, []
            for i, t in enumerate(setting.pipe.scheduler.timesteps):
                mine += timed(partial(setting.at, t), setting.device)
                if i % 10 == 0:
                    others.append(timed(partial(plain.at, t), setting.device))
            runs[name].append((mine, statistics.mean(others)))

    interleave({name: partial(course, name) for name in wraps}, repeats, setting.device, warmup=0)
    found: dict[str, Any] = {}
    for name, measured in runs.items():
        speedups = [51 * one / seconds for seconds, one in measured]
        found[name] = {
            **summary([seconds for seconds, _ in measured]), "plain_call_s": [one for _, one in measured],
            "speedup": statistics.median(speedups), "speedups": speedups, "mac_limit": limits.get(name),
        }  # fmt: skip
    rows = [
        [n, f"{f['median_s']:.2f}", f"{f['speedup']:.2f}x", " ".join(f"{s:.2f}" for s in f["speedups"]), f"{limits[n]:.2f}x" if n in limits else "-"] for n, f in found.items()
    ]
    print_table("schedules of 50 steps, 51 calls, against 51 plain calls", ["schedule", "s", "speedup", "of each run", "MAC limit"], rows)
    return found
