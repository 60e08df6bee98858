"""Image-to-image in place of text-to-image: what is edited, and how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from search.data.datasets import Data
from search.evaluate.generate import generate
from search.evaluate.pipelines import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Image-to-image in place of text-to-image.

    Steps are those of the whole schedule, as a strategy's entries are: of n steps diffusers runs the last int(strength * n), by the last
    entries of the strategy.
    """

    strength: float = 0.6
    """How much of the noise schedule is run again, in (0, 1]."""
    inputs: str = "generated"
    """"generated": by the same model, unaccelerated, as in the paper's Table 5; or "real": the data's real images."""
    size: int | None = None
    """Side that the inputs are resized to, in pixels; None leaves them as they are."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"evaluation.edit.strength is {self.strength!r}; give a number above 0, at most 1")
        if self.inputs not in ("generated", "real"):
            raise ValueError(f"evaluation.edit.inputs is {self.inputs!r}; allowed are 'generated' and 'real'")
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ValueError(f"evaluation.edit.size is {self.size!r}; give a multiple of 8, or null")


class Editor:
    """A pipeline's image-to-image pipeline, with the images that it edits.

    Attributes:
        pipe: diffusers' own, of the modules of the text-to-image pipeline.
    """

    def __init__(self, edit: Edit, pipe: Any, model: ModelSpec, data: Data) -> None:
        from diffusers import AutoPipelineForImage2Image  # which imports every pipeline: not for whoever edits nothing

        self._edit, self._source, self._model, self._data = edit, pipe, model, data
        self.pipe: Any = AutoPipelineForImage2Image.from_pipe(pipe)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.watermark = None  # from_pipe makes one, where invisible-watermark is installed
        self._inputs: tuple[tuple[int, ...], torch.Tensor] | None = None

    def prepare(self, indices: Sequence[int]) -> None:
        """Have the inputs of these images, (B, 3, H, W) float in [0, 1], before anything is accelerated; they stay for the batch's other variants."""
        if self._inputs is not None and self._inputs[0] == tuple(indices):
            return
        if self._edit.inputs == "generated":
            images = generate(self._source, self._model, self._data, indices).images
        else:
            images = _stack([self._data.real(i) for i in indices])
        x = images.float() / 255
        if self._edit.size:
            side = (self._edit.size, self._edit.size)
            x = F.interpolate(x, side, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        self._inputs = (tuple(indices), x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, prompts: Sequence[str], *, height: int | None, width: int | None, **settings: Any) -> Any:
        """Called like a text-to-image pipeline; the inputs have a size of their own."""
        assert self._inputs is not None
        steps, strength = settings["num_inference_steps"], self._edit.strength
        if not int(steps * strength):
            raise ValueError(f"evaluation.edit.strength is {strength:g}, so that none of {steps} steps is run; give a strategy of at least {math.ceil(1 / strength)} steps")
        return self.pipe(prompts, image=self._inputs[1], strength=self._edit.strength, **settings)


def _stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(x.shape) for x in images}
    if len(shapes) > 1:
        raise ValueError(f"real images of one batch have different sizes, such as {sorted(shapes)[:2]}; set data.image_size")
    return torch.stack(list(images))
