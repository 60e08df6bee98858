"""Calls of a UNet at a cache depth: only the units above it are run, from the cached result of the one below.

The full call is always the model's own forward. Only the shallow calls are composed here, from the model's own modules and
its own embedding methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import apply_freeu
from diffusers.utils.peft_utils import apply_lora_scale

from dato.offload_group import group_of
from dato.unet.offload import AtHand
from dato.unet.split_resnet import CachedShare, cached_share, can_split, run_resnet, share_holds
from dato.unet.units import Layout, Unit


def run_shallow(
    layout: Layout, depth: int, cached: torch.Tensor, call: Mapping[str, Any], share: CachedShare | None = None, offloaded: AtHand | None = None
) -> torch.Tensor:
    """Run the units with l < `depth`, from the cached output of output unit l = `depth`.

    Args:
        layout: The UNet's units; 1 <= depth < len(layout).
        depth: Cache depth d.
        cached: (B, C, h', w'), the input of output unit d - 1 before its skip is joined.
        call: The UNet call's arguments by name, from `bind_call`.
        share: What `cached` adds to the resnet it enters, from `share_of`; None computes it as part of the call.
        offloaded: Has the weights of each block at hand, from `at_hand`; None where they are in their place.

    Returns:
        (B, 4, h, w), the prediction.
    """
    _refuse_unsupported(call)
    return _run_shallow(layout.unet, layout, depth, cached, call, share, offloaded, cross_attention_kwargs=call["cross_attention_kwargs"])


def share_of(layout: Layout, depth: int, cached: torch.Tensor) -> CachedShare | None:
    """What the cached tensor adds to the resnet that calls at `depth` begin with; None where it cannot be told apart."""
    unit = layout.outputs[depth - 1]
    if not _splits(unit) or not can_split(unit.body, cached.shape[1]):
        return None
    return cached_share(unit.body, cached)


def share_still_holds(layout: Layout, depth: int, share: CachedShare) -> bool:
    """Whether `share_of` would make the same of the same cached tensor now."""
    unit = layout.outputs[depth - 1]
    return _splits(unit) and share_holds(unit.body, share)


def _splits(unit: Unit) -> bool:
    # FreeU scales both halves anew in each call; weights that are offloaded are not at hand between calls.
    return not _freeu(unit.block) and group_of(unit.block) is None


@apply_lora_scale("cross_attention_kwargs")  # type: ignore[untyped-decorator]  # as around UNet2DConditionModel.forward: it takes "scale" out and applies it
def _run_shallow(
    unet: UNet2DConditionModel,
    layout: Layout,
    depth: int,
    cached: torch.Tensor,
    call: Mapping[str, Any],
    share: CachedShare | None,
    offloaded: AtHand | None,
    *,
    cross_attention_kwargs: dict[str, Any] | None,
) -> torch.Tensor:
    sample, states, added = call["sample"], call["encoder_hidden_states"], call["added_cond_kwargs"]
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=call["timestep"]), call["timestep_cond"])
    class_emb = unet.get_class_embed(sample=sample, class_labels=call["class_labels"])
    if class_emb is not None:
        emb = torch.cat([emb, class_emb], dim=-1) if unet.config.class_embeddings_concat else emb + class_emb
    aug_emb = unet.get_aug_embed(emb=emb, encoder_hidden_states=states, added_cond_kwargs=added)
    if unet.config.addition_embed_type == "image_hint":
        aug_emb, hint = aug_emb
        sample = torch.cat([sample, hint], dim=1)
    emb = emb + aug_emb if aug_emb is not None else emb
    if unet.time_embed_act is not None:
        emb = unet.time_embed_act(emb)
    context = {
        "encoder_hidden_states": unet.process_encoder_hidden_states(encoder_hidden_states=states, added_cond_kwargs=added),
        "cross_attention_kwargs": cross_attention_kwargs,
        "attention_mask": _mask_to_bias(call["attention_mask"], sample.dtype),
        "encoder_attention_mask": _mask_to_bias(call["encoder_attention_mask"], sample.dtype),
    }
    odd_size = any(side % 2**unet.num_upsamplers for side in sample.shape[-2:])

    skips = []
    hidden = sample
    for unit in layout.inputs[:depth]:
        if offloaded is not None and unit.block is not None:
            offloaded.enter(unit.block)
        hidden = unit.body(hidden, emb) if unit.timed else unit.body(hidden)
        if unit.attention is not None:
            hidden = unit.attention(hidden, **context, return_dict=False)[0]
        skips.append(hidden)
    residuals = call["down_block_additional_residuals"]
    if residuals is not None:
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=False)]

    hidden = cached
    for level in range(depth - 1, -1, -1):
        unit, skip = layout.outputs[level], skips[level]
        if offloaded is not None:
            offloaded.enter(unit.block)
        if _freeu(unit.block):
            b = unit.block
            # FreeU scales its first argument in place; that may be the cache.
            hidden, skip = apply_freeu(b.resolution_idx, hidden.clone(), skip, s1=b.s1, s2=b.s2, b1=b.b1, b2=b.b2)
        if share is not None and level == depth - 1:
            hidden = run_resnet(unit.body, share, skip, emb)
        else:
            hidden = unit.body(torch.cat([hidden, skip], dim=1), emb)
        if unit.attention is not None:
            hidden = unit.attention(hidden, **context, return_dict=False)[0]
        if unit.upsampler is not None:
            hidden = unit.upsampler(hidden, skips[level - 1].shape[2:] if odd_size else None)
    if unet.conv_norm_out:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)


def _freeu(block: Any) -> bool:
    return all(getattr(block, name, None) for name in ("s1", "s2", "b1", "b2"))


def _mask_to_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    # diffusers 0.42, UNet2DConditionModel.forward: 1 keeps, 0 discards.
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def _refuse_unsupported(call: Mapping[str, Any]) -> None:
    kwargs = call["cross_attention_kwargs"] or {}
    if kwargs.get("gligen") is not None:
        raise ValueError("GLIGEN does not work with cached features: call dato.disable(pipe) first")
    if call["down_intrablock_additional_residuals"] is not None:
        raise ValueError("T2I-Adapter residuals do not work with cached features: call dato.disable(pipe) first")
    if call["down_block_additional_residuals"] is not None and call["mid_block_additional_residual"] is None:
        raise ValueError("T2I-Adapter residuals do not work with cached features: call dato.disable(pipe) first")
