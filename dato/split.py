"""The resnet that joins a cached tensor with a skip, with the cached half's share of its work done once.

Shallow calls that follow one another join the same cached tensor with ever new skips. Group normalisation and activation
treat channels apart, and the convolutions after them are sums over channels: where the groups do not straddle the seam,
the cached channels' share of both convolutions is the same in all of these calls. It is the same arithmetic in another
order, so results agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


@dataclass(frozen=True)
class CachedShare:
    """What the cached channels add to a resnet's first convolution and to its shortcut, each (B, C_out, h, w)."""

    convolution: torch.Tensor
    shortcut: torch.Tensor
    channels: int


def can_split(resnet: nn.Module, channels: int) -> bool:
    """Whether the first `channels` inputs of a resnet can be treated apart: plain parts, groups that do not straddle."""
    if type(resnet) is not ResnetBlock2D or resnet.upsample is not None or resnet.downsample is not None:
        return False
    plain = type(resnet.conv1) is nn.Conv2d and type(resnet.conv_shortcut) is nn.Conv2d and type(resnet.norm1) is nn.GroupNorm
    if not plain or resnet.time_embedding_norm != "default" or resnet.time_emb_proj is None:
        return False
    # Whatever watches or moves these modules counts on their being called.
    watched = (resnet, resnet.norm1, resnet.conv1, resnet.conv_shortcut)
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in watched):
        return False
    return channels < resnet.in_channels and channels % (resnet.in_channels // resnet.norm1.num_groups) == 0


def cached_share(resnet: Any, cached: torch.Tensor) -> CachedShare:
    """The share of the first C channels, with both biases, from a (B, C, h, w) cached tensor."""
    channels = cached.shape[1]
    activated = _activated(resnet, cached, 0, channels)
    conv, shortcut = resnet.conv1, resnet.conv_shortcut
    return CachedShare(
        F.conv2d(activated, conv.weight[:, :channels], conv.bias, conv.stride, conv.padding),
        F.conv2d(cached, shortcut.weight[:, :channels], shortcut.bias),
        channels,
    )


def run_resnet(resnet: Any, share: CachedShare, skip: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
    """The resnet's output for the cached tensor behind `share`, joined with a (B, C', h, w) skip.

    Args:
        resnet: A ResnetBlock2D of C + C' input channels that `can_split`.
        share: From `cached_share`.
        skip: The skip of this call.
        emb: (B, E) time embedding.

    Returns:
        (B, C_out, h, w), as ``resnet(torch.cat([cached, skip], 1), emb)``.
    """
    c = share.channels
    hidden = F.conv2d(_activated(resnet, skip, c, resnet.in_channels), resnet.conv1.weight[:, c:], None, resnet.conv1.stride, resnet.conv1.padding)
    emb = emb if resnet.skip_time_act else resnet.nonlinearity(emb)
    hidden = hidden + share.convolution + resnet.time_emb_proj(emb)[:, :, None, None]
    hidden = resnet.conv2(resnet.dropout(resnet.nonlinearity(resnet.norm2(hidden))))
    shortcut = F.conv2d(skip, resnet.conv_shortcut.weight[:, c:]) + share.shortcut
    return (shortcut + hidden) / resnet.output_scale_factor


def _activated(resnet: Any, x: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    norm = resnet.norm1
    groups = (end - begin) * norm.num_groups // resnet.in_channels
    return resnet.nonlinearity(F.group_norm(x, groups, norm.weight[begin:end], norm.bias[begin:end], norm.eps))
