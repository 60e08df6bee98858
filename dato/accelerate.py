"""Switch a strategy on and off on a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dato.caller import has_model
from dato.denoiser import denoiser_name, denoiser_of
from dato.hooked_model import HookedModel, hook_of
from dato.options import Options
from dato.provenance import check
from dato.report import RunReport
from dato.scheduler import SchedulerExchange, scheduler_for
from dato.strategy import Strategy
from dato.strategy_hook import StrategyHook
from dato.transformer.hook import TransformerHook
from dato.unet.control import ControlSkip
from dato.unet.hook import UNetHook

_HOOKS = {"unet": UNetHook, "transformer": TransformerHook}
_MARK = "_dato_hook"  # on a pipeline: what is enabled on it, also where it is given another UNet since


def enable(pipe: Any, strategy: Strategy, options: Options | None = None) -> None:
    """Make every later run of the pipeline follow the strategy, until `disable`.

    Enabling again replaces the strategy. The run must have as many steps as the strategy; see `Strategy.resample`. A run's first
    call is always full, because nothing is kept from before it, and so is the next one after a change of batch or size.

    A step with guidance "cond" computes the conditional half of a guided batch [uncond, cond] alone, and the UNet returns it as both
    halves, so that the guided prediction is the conditional one; where the pipeline does not guide it has no effect. What calls leave
    for later ones is kept for each half apart: a step that needs both continues each from what was last computed of it, and is full where
    of one nothing is. Extrapolated values (`Step.order`) are never extrapolated from.

    It is the pipeline's UNet that follows: other pipelines that share it (`from_pipe`) follow too, each by its own sampler, steps,
    start, end and guidance, or are refused by name when their run begins. Only the pipeline given here disables it and has a
    status; its report is that of the UNet's last run, and names the pipeline that ran. In a loop of your own the sampler and
    `do_classifier_free_guidance` of the pipeline given here count. A `copy.deepcopy` of the pipeline follows the strategy by
    itself: disabling either leaves the other as it is. A pipeline that is given another UNet leaves the strategy on the one
    before, until `disable` or the next `enable`.

    Another tool may wrap the UNet's forward while a strategy is enabled: it is run through, and `disable` undoes the strategy within
    it. One that was there before, or that replaces forwards within the UNet (DeepCache, caching hooks of diffusers), is refused by
    name, here and in every call; hooks that move or cast weights, and what is on single layers, are not.

    Args:
        pipe: A diffusers pipeline with a UNet2DConditionModel, such as StableDiffusionPipeline, or with one of the diffusion transformers that
            dato/README.md lists, such as FluxPipeline; what is said of a UNet here holds for these.
        strategy: One entry per sampler step.
        options: How tokens of a UNet are chosen; None for the paper's way, the only one with a transformer, where no tokens are pruned.

    Raises:
        TypeError: The pipeline's model is of another kind.
        StrategyError: The strategy has a depth that the model does not have, or was found on another architecture.
        ValueError: Something on the pipeline cannot follow a strategy: the message says what, and the way out.

    Where the strategy has a sampler, the pipeline has a scheduler of that kind until `disable`, made from the configuration of its own,
    which is put back then (unless the pipeline has been given another one since). Another pipeline that shares the UNet needs such
    a scheduler too, or its run is refused by name: this one's can be given to it.

    A strategy whose provenance names other weights, another sampler or other steps is a `dato.provenance.ProvenanceWarning`.
    """
    _enable(pipe, strategy, options)


def _enable(pipe: Any, strategy: Strategy, options: Options | None) -> StrategyHook:
    if not isinstance(strategy, Strategy):
        raise TypeError(f"expected a dato.Strategy, but got {type(strategy).__name__}; dato.Strategy.load reads files and names")
    if options is not None and not isinstance(options, Options):
        raise TypeError(f"options is {options!r} of type {type(options).__name__}; give dato.Options(...), such as dato.Options(patch=3), or None for the paper's way")
    kind = denoiser_name(pipe)
    if kind is None:
        raise TypeError(f"{type(pipe).__name__} has no unet and no transformer; dato accelerates pipelines with a UNet2DConditionModel or a diffusion transformer")
    make = _HOOKS[kind]
    make.refuse_compiled(getattr(pipe, kind))
    own = _own_scheduler(pipe)
    exchange = SchedulerExchange(own, scheduler_for(pipe, own, strategy.sampler)) if strategy.sampler is not None else None
    hook = make(pipe, strategy, options or Options(), exchange)
    hook.refuse(pipe)
    active = _find(pipe)
    if active is not None and not _belongs(active, pipe):
        raise ValueError(f"another pipeline shares this {hook.noun} and is accelerated already: call dato.disable on that pipeline first")
    control = hook_of(getattr(pipe, "controlnet", None))
    abandoned = isinstance(control, ControlSkip) and not control.serves(pipe.controlnet)
    if isinstance(control, ControlSkip) and not abandoned and not _belongs(control.unet_hook, pipe):
        raise ValueError("another pipeline shares this ControlNet and is accelerated already: call dato.disable on that pipeline first")
    check(pipe, strategy, exchange.new if exchange is not None else own)
    if isinstance(control, ControlSkip) and abandoned:
        control.undo()
    if active is not None:
        _uninstall(active)
    try:
        hook.refuse_other_tools()
        _install(hook)
    except BaseException:
        if active is not None:
            _reinstall(active)
        raise
    return hook


def disable(pipe: Any) -> None:
    """Undo `enable` exactly; does nothing where nothing is enabled on this pipeline, itself or its copy."""
    for hook in (_marked(pipe), _find(pipe)):
        if hook is not None and _belongs(hook, pipe):
            _uninstall(hook)


@contextmanager
def accelerate(pipe: Any, strategy: Strategy, options: Options | None = None) -> Iterator[Any]:
    """`enable` within a ``with`` block; whatever was enabled before is back afterwards."""
    before = _find(pipe)
    hook = _enable(pipe, strategy, options)
    try:
        yield pipe
    finally:
        _uninstall(hook)  # also where the pipeline has been given another UNet since
        disable(pipe)
        if before is not None:
            _reinstall(before)


def status(pipe: Any) -> RunReport | None:
    """None, or the enabled strategy with what the UNet's last run did: calls by depth, tokens pruned, layers touched, and whose run it was.

    Raises:
        RuntimeError: Another tool exchanged the UNet's forward since `enable`, so the strategy is no longer followed.
    """
    hook = _find(pipe)
    if hook is None or not _belongs(hook, pipe):
        return None
    hook.require_reachable()
    return hook.report


def _install(hook: StrategyHook) -> None:
    """Put a hook on its UNet, or leave everything as it was."""
    model, pipe = hook.model, hook.owner()
    previous = _marked(pipe)
    try:
        hook.hooked = HookedModel(model, hook)
        hook.undo.append(hook.hooked.undo)
        hook.undo += [model.register_forward_pre_hook(hook.before_call).remove, model.register_forward_hook(hook.after_call).remove]
        hook.attach()
        if isinstance(hook, UNetHook) and getattr(pipe, "controlnet", None) is not None:
            hook.undo.append(ControlSkip(pipe.controlnet, hook).undo)
    except BaseException:
        _uninstall(hook)
        raise
    if previous is not None and previous is not hook and _belongs(previous, pipe):
        _uninstall(previous)  # it was enabled while the pipeline had another UNet
    if hasattr(pipe, "__dict__"):
        setattr(pipe, _MARK, hook)
    if hook.exchange is not None and pipe is not None:
        hook.exchange.apply(pipe)


def _reinstall(hook: StrategyHook) -> None:
    """`_install` of a hook that was there before, on what the UNet holds by now."""
    hook.read_layers()
    hook.forget(hook.model)
    _install(hook)


def _uninstall(hook: StrategyHook) -> None:
    """Undo `_install`; a second time nothing."""
    hook.detach()
    undos, hook.undo = hook.undo, []
    for undo in undos:
        undo()
    hook.hooked = None
    pipe = hook.owner()
    if hook.exchange is not None:
        hook.exchange.undo(pipe)
    if _marked(pipe) is hook:
        delattr(pipe, _MARK)


def _belongs(hook: StrategyHook, pipe: Any) -> bool:
    """Whether a pipeline is the one that a strategy was enabled on. Where that is gone, or has another UNet since, it is whose UNet it is."""
    owner = hook.owner()
    if owner is pipe:
        return True
    return (owner is None or not has_model(owner, hook.model)) and has_model(pipe, hook.model)


def _own_scheduler(pipe: Any) -> Any:
    """The pipeline's scheduler, or where one is in its place the one that will be put back."""
    hook, shown = _marked(pipe), getattr(pipe, "scheduler", None)
    exchange = hook.exchange if hook is not None and hook.owner() is pipe else None
    return exchange.own if exchange is not None and exchange.new is shown else shown


def _marked(pipe: Any) -> StrategyHook | None:
    found = getattr(pipe, "__dict__", {}).get(_MARK)
    return found if isinstance(found, StrategyHook) else None


def _find(pipe: Any) -> StrategyHook | None:
    found = hook_of(denoiser_of(pipe))
    return found if isinstance(found, StrategyHook) else None
