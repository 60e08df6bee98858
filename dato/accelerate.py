"""Switch a strategy on and off on a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from diffusers.hooks import HookRegistry
from torch.utils.hooks import RemovableHandle

from dato.attention import prune_layer
from dato.runtime import Options, RunReport, Runtime
from dato.strategy import Strategy
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
        StrategyError: The strategy has a depth that the model does not have.
    """
    if not isinstance(strategy, Strategy):
        raise TypeError(f"expected a dato.Strategy, but got {type(strategy).__name__}; dato.Strategy.load reads files and names")
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise TypeError(f"{type(pipe).__name__} has no unet; dato accelerates pipelines with a UNet2DConditionModel")
    layout = Layout.of(unet)
    runtime = Runtime(pipe, layout, strategy, options or Options())
    active = _find(pipe)
    if active is not None and active.pipe is not pipe:
        raise ValueError("another pipeline shares this UNet and is accelerated already: call dato.disable on that pipeline first")
    disable(pipe)
    own_forward = "forward" in vars(unet)
    HookRegistry.check_if_exists_or_initialize(unet).register_hook(runtime, _HOOK)
    handles: list[RemovableHandle] = []
    for module, depth in runtime.captured.items():
        handles.append(module.register_forward_hook(partial(_capture, runtime, depth)))
    if runtime.options.diff_source == "feature":
        handles.append(layout.outputs[0].last.register_forward_hook(partial(_capture_feature, runtime)))
    for name, (layer, downsample) in runtime.layers.items():
        handles += prune_layer(layer, partial(runtime.plan, name, downsample))
    runtime.handles, runtime.own_forward = handles, own_forward


def disable(pipe: Any) -> None:
    """Undo `enable` exactly; does nothing where nothing is enabled."""
    runtime = _find(pipe)
    if runtime is None or runtime.pipe is not pipe:
        return
    unet = runtime.layout.unet
    for handle in runtime.handles:
        handle.remove()
    registry: HookRegistry = unet._diffusers_hook
    registry.remove_hook(_HOOK, recurse=False)
    if not registry.hooks:
        del unet._diffusers_hook
        if not runtime.own_forward:
            del unet.forward  # the registry leaves the class's forward behind as an attribute of the instance


@contextmanager
def accelerate(pipe: Any, strategy: Strategy, options: Options | None = None) -> Iterator[Any]:
    """`enable` within a ``with`` block; whatever was enabled before is back afterwards."""
    before = _find(pipe)
    enable(pipe, strategy, options)
    try:
        yield pipe
    finally:
        disable(pipe)
        if before is not None:
            enable(pipe, before.strategy, before.options)


def status(pipe: Any) -> RunReport | None:
    """None, or the enabled strategy with what the last run did: calls by depth, tokens pruned, layers touched."""
    runtime = _find(pipe)
    if runtime is None or runtime.pipe is not pipe:
        return None
    return runtime.report or RunReport(runtime.strategy, tuple(runtime.layers))


def _find(pipe: Any) -> Runtime | None:
    registry = getattr(getattr(pipe, "unet", None), "_diffusers_hook", None)
    hook = registry.get_hook(_HOOK) if registry is not None else None
    return hook if isinstance(hook, Runtime) else None


def _capture(runtime: Runtime, depth: int, _module: Any, _args: Any, output: Any) -> None:
    runtime.capture(depth, output)


def _capture_feature(runtime: Runtime, _module: Any, _args: Any, output: Any) -> None:
    runtime.capture_feature(output)
