"""Switch a strategy on and off on a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook

from dato.attention import prune_layer
from dato.control import ControlSkip
from dato.options import Options
from dato.provenance import check
from dato.runtime import RunReport, Runtime, refuse_compiled
from dato.strategy import FULL, Strategy
from dato.units import Layout

_HOOK = "dato"


def enable(pipe: Any, strategy: Strategy, options: Options | None = None) -> None:
    """Make every later run of the pipeline follow the strategy, until `disable`.

    Enabling again replaces the strategy. The run must have as many steps as the strategy; see `Strategy.resample`.

    Args:
        pipe: A diffusers pipeline with a UNet2DConditionModel, such as StableDiffusionPipeline.
        strategy: One entry per sampler step.
        options: How tokens are chosen; None for the paper's way.

    Raises:
        TypeError: The pipeline's model is of another kind.
        StrategyError: The strategy has a depth that the model does not have, or was found on another architecture.
        ValueError: Something on the pipeline cannot follow a strategy: the message says what, and the way out.

    A strategy whose provenance names other weights, another sampler or other steps is a `dato.provenance.ProvenanceWarning`.
    """
    _enable(pipe, strategy, options)


def _enable(pipe: Any, strategy: Strategy, options: Options | None) -> Runtime:
    if not isinstance(strategy, Strategy):
        raise TypeError(f"expected a dato.Strategy, but got {type(strategy).__name__}; dato.Strategy.load reads files and names")
    if options is not None and not isinstance(options, Options):
        raise TypeError(f"options is {options!r} of type {type(options).__name__}; give dato.Options(...), such as dato.Options(patch=3), or None for the paper's way")
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise TypeError(f"{type(pipe).__name__} has no unet; dato accelerates pipelines with a UNet2DConditionModel")
    refuse_compiled(unet)
    runtime = Runtime(pipe, Layout.of(unet), strategy, options or Options())
    _refuse_unsupported(pipe, runtime)
    active = _find(pipe)
    if active is not None and active.pipe is not pipe:
        raise ValueError("another pipeline shares this UNet and is accelerated already: call dato.disable on that pipeline first")
    control = _hook_of(getattr(pipe, "controlnet", None))
    if isinstance(control, ControlSkip) and control.runtime is not active:
        raise ValueError("another pipeline shares this ControlNet and is accelerated already: call dato.disable on that pipeline first")
    check(pipe, strategy)
    if active is not None:
        _uninstall(active)
    try:
        _install(runtime)
    except BaseException:
        if active is not None:
            _reinstall(active)
        raise
    return runtime


def disable(pipe: Any) -> None:
    """Undo `enable` exactly; does nothing where nothing is enabled."""
    runtime = _find(pipe)
    if runtime is not None and runtime.pipe is pipe:
        _uninstall(runtime)


@contextmanager
def accelerate(pipe: Any, strategy: Strategy, options: Options | None = None) -> Iterator[Any]:
    """`enable` within a ``with`` block; whatever was enabled before is back afterwards."""
    before = _find(pipe)
    runtime = _enable(pipe, strategy, options)
    try:
        yield pipe
    finally:
        _uninstall(runtime)  # also where the pipeline has been given another UNet since
        disable(pipe)
        if before is not None:
            _reinstall(before)


def status(pipe: Any) -> RunReport | None:
    """None, or the enabled strategy with what the last run did: calls by depth, tokens pruned, layers touched.

    Raises:
        RuntimeError: Another tool exchanged the UNet's forward since `enable`, so the strategy is no longer followed.
    """
    runtime = _find(pipe)
    if runtime is None or runtime.pipe is not pipe:
        return None
    if not _reachable(runtime):
        raise RuntimeError(
            "the strategy is enabled, but another tool has since put back the UNet's earlier forward, as "
            "enable_model_cpu_offload does when it was called before: call dato.enable(pipe, strategy) again, after that tool"
        )
    return runtime.report or RunReport(runtime.strategy, tuple(runtime.layers))


def _install(runtime: Runtime) -> None:
    """Hook a runtime on its UNet, or leave everything as it was."""
    try:
        runtime.undo.append(_hook(runtime.layout.unet, runtime))
        for module, depth in runtime.captured.items():
            runtime.undo.append(module.register_forward_hook(partial(_capture, runtime, depth)).remove)
        if runtime.options.diff_source == "feature":
            runtime.undo.append(runtime.layout.outputs[0].last.register_forward_hook(partial(_capture_feature, runtime)).remove)
        for name, (layer, downsample) in runtime.layers.items():
            runtime.undo += [handle.remove for handle in prune_layer(layer, partial(runtime.plan, name, downsample))]
        if getattr(runtime.pipe, "controlnet", None) is not None:
            runtime.undo.append(_hook(runtime.pipe.controlnet, ControlSkip(runtime)))
    except BaseException:
        _uninstall(runtime)
        raise


def _reinstall(runtime: Runtime) -> None:
    """`_install` of a runtime that was there before, on what the UNet holds by now."""
    runtime.prepare()
    _install(runtime)


def _uninstall(runtime: Runtime) -> None:
    """Undo `_install`; a second time nothing."""
    undos, runtime.undo = runtime.undo, []
    for undo in undos:
        undo()


def _hook(module: Any, hook: ModelHook) -> Callable[[], None]:
    """Register a hook on a model; returns what undoes it exactly, also below a hook that accelerate added later."""
    own_forward = "forward" in vars(module)
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook, _HOOK)
    ours = module.forward

    def undo() -> None:
        outer = vars(module).get("forward")
        registry.remove_hook(_HOOK, recurse=False)
        if outer is not ours and not registry.hooks and getattr(module, "_old_forward", None) is ours:
            module._old_forward, module.forward = module.forward, outer  # accelerate's forward calls _old_forward
        elif outer is not ours and not registry.hooks:
            module.forward = outer
        if not registry.hooks:
            del module._diffusers_hook
            if not own_forward and outer is ours:
                del module.forward  # the registry leaves the class's forward behind as an attribute of the instance

    if isinstance(hook, Runtime):
        hook.forward = ours
    return undo


def _reachable(runtime: Runtime) -> bool:
    unet = runtime.layout.unet
    order = unet._diffusers_hook._hook_order
    return order[-1] != _HOOK or runtime.forward in (vars(unet).get("forward"), getattr(unet, "_old_forward", None))


# Of diffusers' deprecated pipelines: no call of theirs has one timestep, and one place in the image, to itself.
_SEVERAL_CALLS = {
    "StableDiffusionPanoramaPipeline": "for each of its views",
    "StableDiffusionSAGPipeline": "with and without its guidance",
    "StableDiffusionAttendAndExcitePipeline": "to refine its latents",
}


def _refuse_unsupported(pipe: Any, runtime: Runtime) -> None:
    for kind in type(pipe).__mro__:
        if kind.__name__ in _SEVERAL_CALLS:
            raise ValueError(
                f"{type(pipe).__name__} calls its UNet more than once in a step, {_SEVERAL_CALLS[kind.__name__]}, so what one call keeps does "
                "not fit the next; dato accelerates pipelines that call it once in a step, such as StableDiffusionPipeline"
            )
    shallow = any(0 < s.cache_depth < FULL for s in runtime.strategy)
    reused = any(s.cache_depth < FULL for s in runtime.strategy)
    pruned = any(s.cache_depth and s.prune_ratio for s in runtime.strategy)
    name = type(pipe).__name__
    if shallow and getattr(pipe, "adapter", None) is not None:
        raise ValueError(f"{name}: T2I-Adapter residuals do not work with cached features; use cache depths {FULL} and 0 only")
    if shallow and getattr(runtime.layout.unet, "position_net", None) is not None:
        raise ValueError(f"{name}: GLIGEN does not work with cached features; use cache depths {FULL} and 0 only")
    if pruned and runtime.options.align != "none" and (hasattr(type(pipe), "image_guidance_scale") or hasattr(type(pipe), "pag_scale")):
        raise ValueError(f'{name} guides three ways, and only [uncond, cond] can be aligned; use dato.Options(align="none") or prune_ratio 0')
    guides = "do_classifier_free_guidance"
    if pruned and runtime.options.align != "none" and runtime.options.use_score and not (hasattr(type(pipe), guides) or guides in vars(pipe)):
        raise ValueError(
            f'{name} does not say whether it guides (it has no {guides}), so [uncond, cond] cannot be aligned; use dato.Options(align="none") or prune_ratio 0'
        )
    if reused and hasattr(type(pipe), "pag_scale"):
        raise ValueError(f"{name}: perturbed-attention guidance changes its batch as it runs; use dato with the pipeline without PAG")


def _find(pipe: Any) -> Runtime | None:
    hook = _hook_of(getattr(pipe, "unet", None))
    return hook if isinstance(hook, Runtime) else None


def _hook_of(module: Any) -> ModelHook | None:
    registry = getattr(module, "_diffusers_hook", None)
    return registry.get_hook(_HOOK) if registry is not None else None


def _capture(runtime: Runtime, depth: int, _module: Any, _args: Any, output: Any) -> None:
    runtime.capture(depth, output)


def _capture_feature(runtime: Runtime, _module: Any, _args: Any, output: Any) -> None:
    runtime.capture_feature(output)
