"""``dato bench unet``: one call of every action, and whole schedules, against plain diffusers, DeepCache and ToMeSD.

Weights are random: speed does not depend on them. Everything runs in one process, interleaved. Accelerated schedules are
run from end to end, with plain calls before and after each; its plain time is 51 times the mean of those around it, so that
a machine whose speed drifts does so under both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from dato.units import Layout
from launch.bench.timing import chosen_device, chosen_dtype, interleave, parse, print_table, summary, timed, write_result
from launch.config import ConfigError
from search.geometry import geometry

DEFAULTS = {
    "geometry": "sd15", "batch": "2", "dtype": "float32", "device": "auto", "threads": "0", "rounds": "4", "schedules": "1",
    "compile": "none", "channels_last": "false",
    "which": "actions,overhead,paper-b1,authors-l12@0.5,deepcache-5,packages", "output": "analysis/results",
}
ACTIONS = (Step(FULL, 0.5), Step(1), Step(1, 0.5), Step(1, 0.7), Step(0))
RIVALS = {
    "dato d=full r=0.5": "tomesd 0.5",
    "dato d=1 r=0": "DeepCache shallow",
    "dato d=1 r=0.5": "DeepCache shallow + tomesd 0.5",
    "dato d=1 r=0.7": "DeepCache shallow + tomesd 0.7",
}
"""What each action of ours is held against."""


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


def run(arguments: Sequence[str]) -> int:
    """Measure, print and write the result file."""
    given = parse(list(arguments), DEFAULTS, "unet")
    rounds, schedules = int(given["rounds"]), int(given["schedules"])
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; give at least 1")
    with torch.inference_mode():
        setting, costs = _prepare(given)
        which = given["which"].split(",")
        result: dict[str, Any] = {}
        if "actions" in which:
            result["actions"], medians = _actions(setting, costs, rounds)
            result["planning"] = _planning(setting, rounds)
            result["planning"]["share_of_d1_r0.5"] = result["planning"]["median_s"] / medians["dato d=1 r=0.5"]
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
    device, dtype, shape = chosen_device(given["device"]), chosen_dtype(given["dtype"]), geometry(given["geometry"])
    unet = shape.random(dtype, device)
    if given["channels_last"] == "true":
        unet = unet.to(memory_format=torch.channels_last)
    options = Options(compile=None if given["compile"] == "none" else given["compile"])
    pipe = SimpleNamespace(unet=unet, scheduler=DDIMScheduler(), do_classifier_free_guidance=True)
    return Setting(pipe, shape.example(int(given["batch"]), dtype, device), options, device), CostModel(shape.meta(), shape.latent, shape.latent)


def _actions(setting: Setting, costs: CostModel, rounds: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Every action in turn, `rounds` times over, each time after an untimed call of its own kind."""
    variants: dict[str, Callable[[], list[float]]] = {"plain": lambda: [timed(setting.plain, setting.device)]}
    macs = {"plain": costs.macs(Step(FULL))}
    for step in ACTIONS:  # each beside its rival, so that both meet the same machine
        name = _name(step)
        variants[name], macs[name] = partial(_ours, setting, step), costs.macs(step)
        if name in RIVALS:
            variants[RIVALS[name]] = partial(_theirs, setting, step.prune_ratio, step.cache_depth != FULL)
    if setting.options.compile:
        compiled = torch.compile(setting.unet, mode=setting.options.compile)
        variants["plain, compiled"] = lambda: [timed(partial(compiled, **setting.call), setting.device)]
        compiled(**setting.call)
    times: dict[str, list[list[float]]] = {name: [] for name in variants}
    setting.plain()
    interleave({name: partial(lambda n, v: times[n].append(v()), name, variant) for name, variant in variants.items()}, rounds, setting.device, warmup=0)
    summaries = {name: summary([s for of_round in t for s in of_round]) for name, t in times.items()}
    medians = {name: found["median_s"] for name, found in summaries.items()}
    plain = medians["plain"]
    rows = [[n, f"{1000 * m:.2f}", f"{plain / m:.2f}x", f"{macs['plain'] / macs[n]:.2f}x" if macs.get(n) else "-"] for n, m in medians.items()]
    print_table("one UNet call, medians", ["variant", "ms", "speedup", "MAC limit"], rows)
    pairs = [*RIVALS.items(), (_name(Step(1, 0.7)), _name(Step(1)))]
    against = {f"{a} over {b}": _ratios(times[a], times[b]) for a, b in pairs}
    print_table("times faster, round by round", ["of two", "median", "rounds"], [[n, f"{f['median']:.2f}x", " ".join(f"{r:.2f}" for r in f["rounds"])] for n, f in against.items()])
    found = {n: {**f, "gmacs_per_sample": macs[n] / 1e9 if n in macs else None} for n, f in summaries.items()}
    return {"calls": found, "against": against}, medians


def _name(step: Step) -> str:
    return f"dato d={'full' if step.cache_depth == FULL else step.cache_depth} r={step.prune_ratio:g}"


def _ratios(ours: list[list[float]], theirs: list[list[float]]) -> dict[str, Any]:
    """How much faster one is than another in each round, where both met the same machine, and the median of it."""
    rounds = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(rounds), "rounds": rounds}


def _ours(setting: Setting, step: Step) -> list[float]:
    # A full call, then the action untimed: from the next one on, DiffScore has its two outputs.
    timed_calls = 1 if step.cache_depth == FULL else 6
    strategy = Strategy((Step(FULL), *[step] * (1 + timed_calls)))
    with accelerate(setting.pipe, strategy, setting.options):
        setting.pipe.scheduler.set_timesteps(len(strategy))
        steps = setting.pipe.scheduler.timesteps
        for t in steps[:2]:
            setting.at(t)
        return [timed(partial(setting.at, t), setting.device) for t in steps[2:]]


def _theirs(setting: Setting, ratio: float, shallow: bool) -> list[float]:
    from DeepCache import DeepCacheSDHelper
    from tomesd import apply_patch, remove_patch

    setting.pipe.scheduler.set_timesteps(8 if shallow else 2)
    steps = setting.pipe.scheduler.timesteps
    if ratio:
        apply_patch(setting.unet, ratio=ratio)
    helper = DeepCacheSDHelper(pipe=setting.pipe) if shallow else None
    if helper is not None:
        helper.set_params(cache_interval=1000, cache_branch_id=0)
        helper.enable()
    untimed = 2 if shallow else 1
    try:
        for t in steps[:untimed]:
            setting.at(t)
        return [timed(partial(setting.at, t), setting.device) for t in steps[untimed:]]
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
    """Whole schedules of 50 steps in the 51 calls that PNDM makes."""
    setting.pipe.scheduler = PNDMScheduler(skip_prk_steps=True)
    strategies = {name: Strategy.load(name) for name in named if name != "packages"}
    variants: dict[str, Callable[[], Any]] = {name: partial(_run_ours, setting, s) for name, s in strategies.items()}
    if "packages" in named:
        variants["DeepCache package, every 5"] = partial(_run_theirs, setting, 0.0)
        variants["DeepCache package, every 5 + tomesd 0.5"] = partial(_run_theirs, setting, 0.5)
    limits = {name: costs.limit(s, 1) for name, s in strategies.items()}
    around: dict[str, list[float]] = {name: [] for name in variants}

    def between(name: str, run: Callable[[], Any]) -> None:
        before = timed(setting.plain, setting.device)
        seconds = timed(run, setting.device)
        after = timed(setting.plain, setting.device)
        around[name].append((before + after) / 2)
        times[name].append(seconds)

    times: dict[str, list[float]] = {name: [] for name in variants}
    interleave({name: partial(between, name, run) for name, run in variants.items()}, repeats, setting.device, warmup=0)
    found: dict[str, Any] = {}
    for name in variants:
        speedups = [51 * plain / seconds for plain, seconds in zip(around[name], times[name], strict=True)]
        found[name] = {**summary(times[name]), "plain_calls_s": around[name], "speedup": statistics.median(speedups), "mac_limit": limits.get(name)}
    rows = [[n, f"{f['median_s']:.2f}", f"{f['speedup']:.2f}x", f"{limits[n]:.2f}x" if n in limits else "-"] for n, f in found.items()]
    print_table("schedules of 50 steps, 51 calls, against 51 plain calls", ["schedule", "s", "speedup", "MAC limit"], rows)
    return found


def _run_ours(setting: Setting, strategy: Strategy) -> None:
    with accelerate(setting.pipe, strategy, setting.options):
        _loop(setting, len(strategy))


def _run_theirs(setting: Setting, ratio: float) -> None:
    from DeepCache import DeepCacheSDHelper
    from tomesd import apply_patch, remove_patch

    if ratio:
        apply_patch(setting.unet, ratio=ratio)
    helper = DeepCacheSDHelper(pipe=setting.pipe)
    helper.set_params(cache_interval=5, cache_branch_id=0)
    helper.enable()
    try:
        _loop(setting, 50)
    finally:
        helper.disable()
        if ratio:
            remove_patch(setting.unet)


def _loop(setting: Setting, steps: int) -> None:
    """A run of PNDM, which makes one call more than it has steps."""
    setting.pipe.scheduler.set_timesteps(steps)
    for t in setting.pipe.scheduler.timesteps:
        setting.at(t)
