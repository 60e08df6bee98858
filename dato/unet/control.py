"""ControlNet beside an accelerated UNet: not run where the UNet is not."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import ModelHook
from diffusers.models.controlnets.controlnet import ControlNetOutput

from dato.hooked_model import HookedModel
from dato.unet.hook import UNetHook


class ControlSkip(ModelHook):
    """Skips a ControlNet's forward before UNet calls at d = 0, which replay a prediction and read no residuals.

    Only where a run of the accelerated UNet goes on, and the prediction is of use to it: another pipeline may share the
    ControlNet, and a batch or size that changed within the run makes the coming call a full one.

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
        run = self.unet_hook.runs.replaying(timestep, sample, bool(kwargs.get("guess_mode", False)))
        if run is None:
            return self.fn_ref.forward(*args, **kwargs)
        run.report.controls_skipped += 1
        nothing = sample.new_zeros(1)
        return ControlNetOutput(down_block_res_samples=(nothing,), mid_block_res_sample=nothing) if kwargs.get("return_dict", True) else ([nothing], nothing)
