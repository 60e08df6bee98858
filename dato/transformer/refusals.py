"""What of transformers and their pipelines cannot follow a strategy, by name and with the way out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NoReturn

from dato.options import Options
from dato.strategy import FULL, Step, Strategy
from dato.transformer.blocks import Blocks
from dato.transformer.offload import prefetches

FAMILIES = ("PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel", "QwenImageTransformer2DModel", "CogView4Transformer2DModel")
"""Transformers whose calls at every depth are compared with a naive loop over their blocks, in the tests."""
BATCHED = ("PixArtTransformer2DModel", "SD3Transformer2DModel")
"""Those of them whose pipelines guide with a batch [uncond, cond]; the others' make a call for each half."""
_RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples", "block_controlnet_hidden_states")


def require_family(model: Any, whose: str = "") -> str:
    """The family of a transformer, the name of its class. Raises ValueError for one that is not accelerated."""
    kind = type(model).__name__
    if kind not in FAMILIES:
        raise ValueError(f"{whose}{kind}, whose calls with blocks left out are not tested; dato accelerates {', '.join(FAMILIES)}")
    return kind


def refuse_pruning(subject: str) -> NoReturn:
    """Raise ValueError for a prune ratio; `subject` is what a transformer is or has."""
    raise ValueError(
        f"{subject}, in which dato prunes no tokens: on the SD3 that ships a call with a tenth of them pruned is further off than the last call's "
        "prediction, which costs nothing (measured by dato bench pruning). Give prune_ratio 0 in every step, "
        "Strategy([replace(s, prune_ratio=0.0) for s in strategy], sampler=strategy.sampler)"
    )


def refuse_compiled(model: Any) -> None:
    """Raise ValueError for a transformer that is compiled as a whole; compiled blocks are run as they are."""
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise ValueError(
            "this transformer is compiled, and a compiled whole cannot follow a strategy from step to step: give the pipeline its plain transformer and "
            "compile its blocks, pipe.transformer.compile_repeated_blocks()"
        )


def refuse_pipeline(pipe: Any, strategy: Strategy, options: Options) -> None:
    """Raise ValueError for a pipeline that cannot follow the strategy: one that is enabled, or one that runs on its transformer."""
    name, model = type(pipe).__name__, getattr(pipe, "transformer", None)
    if model is not None:
        require_family(model, f"{name} has a ")
    if any(s.cache_depth and s.prune_ratio for s in strategy):
        refuse_pruning(f"{name} has a transformer")
    if options.compile is not None:
        raise ValueError(f"Options(compile={options.compile!r}) compiles the actions of a UNet; compile a transformer's blocks by pipe.transformer.compile_repeated_blocks()")
    given = [f"{f.name}={getattr(options, f.name)!r}" for f in fields(options) if getattr(options, f.name) != f.default]
    if given:
        raise ValueError(f"{name} has a transformer, in which dato prunes no tokens, and Options({', '.join(given)}) would say which: leave the options out, dato.enable(pipe, strategy)")
    shallow = any(s.cache_depth not in (0, FULL) for s in strategy)
    if shallow and getattr(pipe, "controlnet", None) is not None:
        raise ValueError(f"{name}: a ControlNet adds to a transformer between its blocks, which does not work with blocks left out; use cache depths full and 0 only")
    if shallow and model is not None and prefetches(Blocks.of(model).modules()):
        raise ValueError(f"{name}: group offloading with a stream loads each block while the one before runs, so none can be left out; give use_stream=False, or cache depths full and 0 only")
    if any(s.guidance == "cond" for s in strategy) and (hasattr(type(pipe), "pag_scale") or hasattr(type(pipe), "image_guidance_scale")):
        raise ValueError(f'{name} guides three ways, and a step with guidance "cond" takes the conditional half alone; give every step guidance "both"')


def refuse_call(pipe: Any, call: dict[str, Any], step: Step) -> None:
    """Raise ValueError for a call that cannot be made at a step's depth."""
    name = type(pipe).__name__
    if call.get("skip_layers") is not None:
        raise ValueError(f"{name} guides by calls that skip layers (skip_guidance_layers), which is more than one call a step: leave these out, or call dato.disable(pipe)")
    given = [key for key in _RESIDUALS if call.get(key) is not None]
    if given and step.cache_depth not in (0, FULL):
        raise ValueError(f"{name}: a ControlNet's residuals ({given[0]}) do not work with blocks left out; use cache depths full and 0 only")
