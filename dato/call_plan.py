"""Which strategy entry governs which UNet call, and what each call does: known before a run begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dato.step import extent
from dato.strategy import FULL, Step, Strategy, StrategyError


def entry_of_call(position: int, all_calls: int, steps: int, order: int = 1) -> int:
    """The strategy entry that governs a UNet call.

    A sampler makes as many calls as the strategy has entries, or one more (PNDM repeats its second). One of second order
    makes two a step, but one at the last: an entry governs both calls of its step.

    Args:
        position: The call's place in a whole run of this sampler, from 0: a run that starts late starts at a later one.
        all_calls: Calls of a whole run.
        steps: Entries of the strategy.
        order: The scheduler's `order`.
    """
    if order == 2 and all_calls == 2 * steps - 1:
        return position // 2
    extra = all_calls - steps
    if extra not in (0, 1) or order > 1:
        needed = (all_calls + 1) // 2 if order == 2 else all_calls
        allowed = f"{2 * steps - 1}" if order == 2 else f"{steps} or {steps + 1}"
        raise StrategyError(
            f"the strategy has {steps} steps, but the scheduler makes {all_calls} calls; allowed are {allowed}: "
            f"run with num_inference_steps={steps}, or use strategy.resample({needed})"
        )
    return max(0, position - extra)


def check_steps(entries: int, timesteps: Sequence[float], steps: int | None, order: int = 1) -> None:
    """Raise `StrategyError` where a strategy of so many entries is not for this run.

    Args:
        entries: Of the strategy.
        timesteps: Of all calls of a whole run.
        steps: The sampler's own count of its steps; None where it keeps none.
        order: The scheduler's `order`.
    """
    calls = len(timesteps)
    # PNDM visits its second timestep twice. Rounding may make two timesteps of other samplers equal: these are steps each.
    repeats = steps == calls - 1 and len(set(timesteps)) < calls
    needed = calls - repeats if order == 1 else (calls + 1) // 2
    if entries != needed:
        made = "" if calls == needed else f" for {needed} steps"
        raise StrategyError(
            f"the strategy has {entries} steps, but the scheduler makes {calls} calls{made}: "
            + _way_out(entries, needed, calls, steps, repeats=len(set(timesteps)) < calls)
        )


def _way_out(entries: int, needed: int, calls: int, steps: int | None, repeats: bool) -> str:
    """What to do about a run of another length; who ran with as many steps as the strategy has is not told to do so."""
    resample = f"use strategy.resample({needed})"
    if steps != entries:
        ends = f"; with sigmas of your own, give {entries + 1} of them, of which the last is where the run ends" if calls == entries - 1 else ""
        return f"run with num_inference_steps={entries}, or {resample}{ends}"
    if repeats:
        return (
            f"with {steps} steps this sampler begins with several calls a step, as PNDM does for its Runge-Kutta steps; leave these out, "
            f"pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True), or {resample}, an entry for each call"
        )
    return f"with {steps} steps this sampler makes {calls} calls, so {resample}, an entry for each call"


@dataclass(frozen=True)
class CallPlan:
    """What one call of the model does.

    Attributes:
        step: What it really does; nothing is pruned where nothing is computed, and nothing extrapolated where all is.
        share: What it has in common with later calls: "none", or it is done here for them too, "precompute", or was done before, "reuse"
            (see `dato.unet.split_resnet`). What is extrapolated is new in every call, so it is "none" there.
        entry: Place of its entry in the strategy.
    """

    step: Step
    share: str = "none"
    entry: int = field(default=0, compare=False)


def plan_calls(strategy: Strategy, all_calls: int, order: int = 1, start: int = 0, guided: bool = True) -> list[CallPlan]:
    """What each call of a run does.

    The first one is full, because nothing is kept, and so is the first that computes both halves of a guided batch, because of
    the unconditional half nothing is kept before it.

    Args:
        strategy: One entry per sampler step.
        all_calls: Calls of a whole run of the sampler.
        order: The scheduler's `order`.
        start: Place of the run's first call; later than 0 in image-to-image.
        guided: Whether the pipeline guides; where it does not, a step's guidance has no effect.
    """
    entries = [entry_of_call(p, all_calls, len(strategy), order) for p in range(start, all_calls)]
    steps: list[Step] = []
    for entry in (strategy[e] for e in entries):
        guidance = entry.guidance if guided else "both"
        nothing_kept = not steps or (guidance == "both" and all(s.guidance == "cond" for s in steps))
        depth = FULL if nothing_kept else entry.cache_depth
        steps.append(Step(depth, entry.prune_ratio if entry.cache_depth else 0.0, guidance, 0 if depth == FULL else entry.order))
    found: list[CallPlan] = []
    precomputed: set[tuple[int, str]] = set()  # depths and halves whose share is there
    for i, step in enumerate(steps):
        depth, key = step.cache_depth, (step.cache_depth, step.guidance)
        precomputed = {k for k in precomputed if extent(k[0]) >= extent(depth)}  # a deeper call makes what shallower ones start from anew
        share = "none"
        if depth not in (0, FULL) and not step.order:
            later = next((s for s in steps[i + 1 :] if extent(s.cache_depth) > extent(depth) or ((s.cache_depth, s.guidance) == key and not s.order)), None)
            share = "reuse" if key in precomputed else "precompute" if later is not None and later.cache_depth == depth else "none"
            if share == "precompute":
                precomputed.add(key)
        found.append(CallPlan(step, share, entries[i]))
    return found
