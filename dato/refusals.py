"""What cannot follow a strategy, by name and with the way out."""

from __future__ import annotations

from typing import Any

from dato.caller import GUIDES, Caller
from dato.options import Options
from dato.scheduler import samples_with
from dato.strategy import FULL, Strategy

# No call of theirs has one timestep, and one place in the image, to itself.
_SEVERAL_CALLS = {
    "StableDiffusionPanoramaPipeline": "for each of its views",
    "StableDiffusionSAGPipeline": "with and without its guidance",
    "StableDiffusionAttendAndExcitePipeline": "to refine its latents",
    "StableDiffusionPix2PixZeroPipeline": "to compare its attention maps",
    "StableDiffusionGLIGENTextImagePipeline": "with and without its grounding",
    "StableDiffusionParadigmsPipeline": "for many steps at once",
    "TextToVideoZeroPipeline": "over several stretches of its timesteps",
    "TextToVideoZeroSDXLPipeline": "over several stretches of its timesteps",
}
_ATTENTION_MAPS = ("LEditsPPPipelineStableDiffusion", "LEditsPPPipelineStableDiffusionXL")
_BOTH = 'give the strategy\'s steps guidance "both", Strategy([replace(s, guidance="both") for s in strategy], sampler=strategy.sampler)'
_NOT_SAMPLING = ("invert", "generate_mask")


def refuse_pipeline(pipe: Any, unet: Any, strategy: Strategy, options: Options) -> None:
    """Raise ValueError for a pipeline that cannot follow the strategy: one that is enabled, or one that runs on its UNet."""
    name = type(pipe).__name__
    kinds = [kind.__name__ for kind in type(pipe).__mro__]
    for kind in kinds:
        if kind in _SEVERAL_CALLS:
            raise ValueError(
                f"{name} calls its UNet more than once in a step, {_SEVERAL_CALLS[kind]}, so what one call keeps does "
                "not fit the next; dato accelerates pipelines that call it once in a step, such as StableDiffusionPipeline. "
                "Where the UNet is shared: dato.disable on the enabled pipeline first"
            )
        if kind in _ATTENTION_MAPS:
            raise ValueError(
                f"{name} reads the attention maps of every call, in invert and in the edit itself, and shallow, replayed and pruned calls do not "
                "make them: run it without a strategy (where the UNet is shared: dato.disable on the enabled pipeline first)"
            )
    shallow = any(s.cache_depth not in (0, FULL) for s in strategy)
    reused = any(s.cache_depth != FULL for s in strategy)
    if shallow and getattr(pipe, "adapter", None) is not None:
        raise ValueError(f"{name}: T2I-Adapter residuals do not work with cached features; use cache depths {FULL} and 0 only")
    if shallow and getattr(unet, "position_net", None) is not None:
        raise ValueError(f"{name}: GLIGEN does not work with cached features; use cache depths {FULL} and 0 only")
    if any(s.guidance == "cond" for s in strategy):
        if hasattr(type(pipe), "image_guidance_scale") or hasattr(type(pipe), "pag_scale"):
            raise ValueError(f'{name} guides three ways, and a step with guidance "cond" takes the conditional half of [uncond, cond]; {_BOTH}')
        if not (hasattr(type(pipe), GUIDES) or GUIDES in vars(pipe)):
            raise ValueError(f'{name} does not say whether it guides (it has no {GUIDES}), so it is not known which rows a step with guidance "cond" computes; {_BOTH}')
    if aligned(strategy, options):
        if hasattr(type(pipe), "image_guidance_scale") or hasattr(type(pipe), "pag_scale"):
            raise ValueError(f'{name} guides three ways, and only [uncond, cond] can be aligned; use dato.Options(align="none") or prune_ratio 0')
        if options.use_score and not (hasattr(type(pipe), GUIDES) or GUIDES in vars(pipe)):
            raise ValueError(
                f'{name} does not say whether it guides (it has no {GUIDES}), so [uncond, cond] cannot be aligned; use dato.Options(align="none") or prune_ratio 0'
            )
    if reused and hasattr(type(pipe), "pag_scale"):
        raise ValueError(f"{name}: perturbed-attention guidance changes its batch as it runs; use dato with the pipeline without PAG")


def refuse_run(pipe: Any, caller: Caller | None, strategy: Strategy) -> None:
    """Raise ValueError for a run that is none of sampling, or with another sampler.

    Args:
        pipe: The pipeline that runs, or in a loop of one's own the enabled one.
        caller: Its place on the stack; None in a loop of one's own.
        strategy: The enabled one.
    """
    name = type(pipe).__name__
    if caller is not None and caller.method in _NOT_SAMPLING:
        raise ValueError(
            f"{name}.{caller.method} does not sample by its scheduler's timesteps, so it cannot follow a strategy, which is for sampling: call "
            f"dato.disable on the enabled pipeline before {caller.method}, and dato.enable again after it"
        )
    sampler = strategy.sampler
    if sampler is not None and not samples_with(pipe.scheduler, sampler):
        raise ValueError(
            f"{name} runs with {type(pipe.scheduler).__name__}, and the enabled strategy is for the sampler {sampler}: a pipeline that was given another scheduler "
            "since needs dato.enable again, and one that shares the model needs the scheduler of the enabled one (or call dato.disable on that one first)"
        )


def refuse_unknown_guidance(pipe: Any, guided: bool | None, strategy: Strategy, options: Options) -> None:
    """Raise ValueError for a run of which it is not known whether it guides, where that matters.

    Args:
        pipe: The pipeline that runs.
        guided: Whether its batch is [uncond, cond]; None where that is not known.
        strategy: The enabled one.
        options: The enabled ones.
    """
    name = type(pipe).__name__
    if any(s.guidance == "cond" for s in strategy) and guided is None:
        raise ValueError(
            f"{name} does not say whether it guides ({GUIDES} is not set), so it is not known whether the batch is [uncond, cond]: set it before a loop "
            f'of your own (on a diffusers pipeline by pipe._guidance_scale); or {_BOTH}'
        )
    if aligned(strategy, options) and options.use_score and guided is None:
        raise ValueError(
            f"{name} does not say whether it guides ({GUIDES} is not set), so it is not known whether the batch is [uncond, cond]: set it before a loop "
            f'of your own (on a diffusers pipeline by pipe._guidance_scale), or use dato.Options(align="none") or prune_ratio 0'
        )


def refuse_halves(pipe: Any, rows: int) -> None:
    """Raise ValueError for a batch that has no conditional half."""
    if rows % 2:
        raise ValueError(
            f'{type(pipe).__name__} guides, and calls its UNet with {rows} rows, where a step with guidance "cond" takes the conditional half of [uncond, cond]: '
            f"give an even batch, or {_BOTH}"
        )


def aligned(strategy: Strategy, options: Options) -> bool:
    """Whether some call imposes one guidance half's base tokens on the other."""
    return options.align != "none" and any(s.cache_depth and s.prune_ratio for s in strategy)


def refuse_compiled(unet: Any) -> None:
    """Raise ValueError for a UNet that is compiled as a whole or in regions."""
    if hasattr(unet, "_orig_mod") or any(m._compiled_call_impl is not None for m in unet.modules()):
        raise ValueError(
            "this UNet is compiled, and a compiled whole cannot follow a strategy from step to step: give the pipeline its plain "
            'UNet and let dato compile each action apart, dato.enable(pipe, strategy, dato.Options(compile="default"))'
        )


def token_mismatch(unet: Any, layer: str, found: tuple[int, int], expected: tuple[int, int], grid: tuple[int, int]) -> str:
    """The message for a layer that was given other tokens than its grid has: (batch, tokens) found and expected."""
    tome = hasattr(unet, "_tome_info") and any(type(m).__name__ == "ToMeBlock" for m in unet.modules())
    tool = "ToMeSD's patch is on: call tomesd.remove_patch(pipe)" if tome else "remove the tool that merges, splits or tiles them (tomesd.remove_patch(pipe) for ToMeSD)"
    return (
        f"{layer} is given {found[0]} x {found[1]} tokens, where this call has {expected[0]} x {expected[1]}, on a grid of {grid[0]} x {grid[1]}: another "
        f"tool changes the tokens before they come here, and then it is not known which of them to prune. {tool}, or use prune_ratio 0"
    )
