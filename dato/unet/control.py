"""ControlNet beside an accelerated UNet: run for what the UNet computes, and not where that computes nothing."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import ModelHook
from diffusers.models.controlnets.controlnet import ControlNetOutput

from dato.call_arguments import conditional_half
from dato.hooked_model import HookedModel
from dato.unet.hook import UNetHook


class ControlSkip(ModelHook):
    """Skips a ControlNet's forward before UNet calls at d = 0, which reuse predictions and read no residuals, and gives it the
    conditional half of its batch before those that compute this half alone.

    Only where a run of the accelerated UNet goes on, and what is kept is of use to it: another pipeline may share the
    ControlNet, and a batch or size that changed within the run makes the coming call a full one. Before the first call of a run
    it is given all: that the run begins is known with the UNet's call.

    Args:
        module: The ControlNet, hooked from now on until `undo`.
        unet_hook: Of the UNet beside it.
    """

    def __init__(self, module: Any, unet_hook: UNetHook) -> None:
        super().__init__()
        self.unet_hook = unet_hook
        self.undo = HookedModel(module, self).undo

    def serves(self, module: Any) -> bool:
        """Whether the pipeline that it was made for is still there, and still has this ControlNet."""
        return getattr(self.unet_hook.owner(), "controlnet", None) is module

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The ControlNet's residuals, or one zero in the place of each kind."""
        sample = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        halved = bool(kwargs.get("guess_mode", False))
        run, step = self.unet_hook.runs.coming(timestep, sample, halved) or (None, None)
        if run is None or step is None or step.cache_depth:
            if step is not None and step.guidance == "cond" and not halved:
                args, kwargs = conditional_half(args, len(sample)), conditional_half(kwargs, len(sample))
            return self.fn_ref.forward(*args, **kwargs)
        run.report.controls_skipped += 1
        nothing = sample.new_zeros(1)
        return ControlNetOutput(down_block_res_samples=(nothing,), mid_block_res_sample=nothing) if kwargs.get("return_dict", True) else ([nothing], nothing)
