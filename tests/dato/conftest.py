"""Tiny pipelines with the true block layouts of Stable Diffusion v1.5, v2 and XL, and how the tests run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import dato
from dato import FULL, Step, Strategy
from dato.hooked_model import hook_of
from dato.runs import Runs
from dato.unet.hook import UNetHook

STEPS = 6
SHALLOW = Strategy((Step(FULL), *[Step(2)] * (STEPS - 1)))
MIXED = Strategy((Step(FULL), Step(1), Step(1), Step(0), Step(1), Step(1)))
PRUNED = Strategy.uniform(STEPS, 3, depth=2, prune_ratio=0.5)
SAMPLERS = (
    "PNDMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


def use(pipe: Any, name: str, **changes: Any) -> Any:
    """Exchange the pipeline's sampler."""
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    return pipe


def run(pipe: Any, seeds: tuple[int, ...] = (0,), **changes: Any) -> torch.Tensor:
    """Latents of one prompt with each seed."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "latent", **changes}
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    return pipe(["a handwritten seven"] * len(seeds), generator=generators, **settings).images


def sharing(pipe: Any, kind: Any = StableDiffusionPipeline, **parts: Any) -> Any:
    """A pipeline of a kind with the same parts, but for those that are given."""
    own = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "controlnet")}
    other = kind(**{**own, **parts}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def random_controlnet(unet: Any) -> ControlNetModel:
    """A ControlNet for a UNet whose residuals are not zero, as those of an untrained one are."""
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False).eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)
    return net.to(unet.dtype)


def with_controlnet(pipe: Any, net: ControlNetModel | None = None) -> Any:
    """A pipeline with the same UNet and a ControlNet."""
    return sharing(pipe, StableDiffusionControlNetPipeline, controlnet=net or random_controlnet(pipe.unet))


def add_lora(unet: Any, targets: list[str]) -> None:
    """A LoRA adapter on layers of these names."""
    torch.manual_seed(3)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))


def add_ip_adapter(unet: Any) -> None:
    """An IP-Adapter of image embeddings of width 32."""
    torch.manual_seed(4)
    keys = {}
    for i, name in enumerate(n for n in unet.attn_processors if n.endswith("attn2.processor")):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        keys |= {f"{2 * i + 1}.to_k_ip.weight": torch.randn(width, 64), f"{2 * i + 1}.to_v_ip.weight": torch.randn(width, 64)}
    image = {"proj.weight": torch.randn(4 * 64, 32), "proj.bias": torch.zeros(4 * 64), "norm.weight": torch.ones(64), "norm.bias": torch.zeros(64)}
    unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": keys}])


def report_of(pipe: Any) -> dato.RunReport:
    """The status of a pipeline on which a strategy is enabled."""
    report = dato.status(pipe)
    assert report is not None
    return report


def untouched(model: nn.Module) -> bool:
    """Whether no hook is on a model and its forward is its own."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_diffusers_hook") for m in model.modules())
    return not hooked and "forward" not in vars(model)


def runs_of(unet: nn.Module) -> Runs:
    """The runs of a UNet that a strategy is enabled on."""
    hook = hook_of(unet)
    assert isinstance(hook, UNetHook)
    return hook.runs


def precomputed(unet: nn.Module) -> list[int]:
    """The depths of which something is precomputed for later calls of the last run."""
    last = runs_of(unet).last
    return sorted(depth for depth, _ in last.kept.precomputed) if last is not None and last.kept is not None else []


@pytest.fixture(scope="session")
def make_layout(make_pipe: Callable[..., StableDiffusionPipeline]) -> Callable[[str], Any]:
    """A factory of pipelines by layout: sd15, sd2 (v-prediction, linear projections, a head width for each block), sdxl."""

    def make(layout: str) -> Any:
        if layout == "sd15":
            return make_pipe()
        if layout == "sd2":
            pipe = make_pipe(attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
            pipe.scheduler.register_to_config(prediction_type="v_prediction")
            return pipe
        base = make_pipe(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(2, 2, 4),
            cross_attention_dim=96,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        )
        config: CLIPTextConfig = base.text_encoder.config
        second = {**config.to_dict(), "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "projection_dim": 32}
        torch.manual_seed(2)
        pipe = StableDiffusionXLPipeline(
            vae=base.vae,
            text_encoder=base.text_encoder,
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**second)).eval(),
            tokenizer=base.tokenizer,
            tokenizer_2=base.tokenizer,
            unet=base.unet,
            scheduler=base.scheduler,
            add_watermarker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def make(make_pipe: Callable[..., Any]) -> Callable[[], Any]:
    """Pipelines in double precision, so that what is only rounding is told from what is wrong."""
    return lambda: use(make_pipe().to(torch.float64), "DDIMScheduler", clip_sample=False)


def cast(pipe: Any, dtype: torch.dtype) -> Any:
    """The UNet and text encoders in another precision."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(dtype)
    return pipe
