"""ControlNet beside an accelerated UNet: not run where the UNet is not."""

from __future__ import annotations

from typing import Any

from diffusers.hooks import ModelHook
from diffusers.models.controlnets.controlnet import ControlNetOutput

from dato.runtime import Runtime


class ControlSkip(ModelHook):
    """Skips a ControlNet's forward before UNet calls at d = 0, which replay a prediction and read no residuals.

    Only where the enabled pipeline's run goes on: another pipeline may share the ControlNet.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The ControlNet's residuals, or one zero in the place of each kind."""
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        if not self.runtime.replays(timestep):
            return self.fn_ref.original_forward(*args, **kwargs)
        assert self.runtime.report is not None
        self.runtime.report.controls_skipped += 1
        sample = args[0] if args else kwargs["sample"]
        nothing = sample.new_zeros(1)
        return ControlNetOutput(down_block_res_samples=(nothing,), mid_block_res_sample=nothing) if kwargs.get("return_dict", True) else ([nothing], nothing)
