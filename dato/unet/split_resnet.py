"""The resnet that joins a cached tensor with a skip, with the cached half's share of its work done once.

Shallow calls that follow one another join the same cached tensor with ever new skips. Group normalisation and activation
treat channels apart, and the convolutions after them are sums over channels: where the groups do not straddle the seam,
the cached channels' share of both convolutions is the same in all of these calls. It is the same arithmetic in another
order, so results agree to rounding.

A share is made of the resnet's modules and weights as they were, and holds for these only: a LoRA adapter that is fused
within a run, by a callback, changes them under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.modules import module as every_module


@dataclass(frozen=True)
class CachedShare:
    """What the cached channels add to a resnet's first convolution and to its shortcut, each (B, C_out, h, w).

    `origin` is what it was made of: modules and settings, marks of the weights, and their values where these can be compared
    without waiting for a device.
    """

    convolution: torch.Tensor
    shortcut: torch.Tensor
    channels: int
    origin: tuple[tuple[Any, ...], tuple[Any, ...], tuple[torch.Tensor, ...]]


def can_split(resnet: nn.Module, channels: int) -> bool:
    """Whether the first `channels` inputs of a resnet can be treated apart: plain parts, groups that do not straddle."""
    if type(resnet) is not ResnetBlock2D or resnet.upsample is not None or resnet.downsample is not None:
        return False
    plain = _plain(resnet.conv1) and _plain(resnet.conv_shortcut) and type(resnet.norm1) is nn.GroupNorm
    if not plain or resnet.time_embedding_norm != "default" or resnet.time_emb_proj is None:
        return False
    # Whatever watches or moves these modules counts on their being called.
    if every_module._global_forward_hooks or every_module._global_forward_pre_hooks:
        return False
    watched = (resnet, resnet.norm1, resnet.conv1, resnet.conv_shortcut)
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) or "_conv_forward" in vars(m) for m in watched):
        return False
    return channels < resnet.in_channels and channels % (resnet.in_channels // resnet.norm1.num_groups) == 0


def _plain(conv: Any) -> bool:
    # Seamless tiling sets another padding mode; quantised weights are tensors of another class.
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and conv.groups == 1 and conv.dilation == (1, 1) and type(conv.weight) is nn.Parameter


def share_holds(resnet: Any, share: CachedShare) -> bool:
    """Whether a share is still what `cached_share` would make of the same cached tensor. Asks nothing of a device.

    A weight that is written in place through `.data`, as fusing LoRA adapters does, bears no mark of it: on the CPU the values
    themselves are compared; on other devices no share may outlive code that could do so.
    """
    if not can_split(resnet, share.channels):
        return False
    parts, marks, values = share.origin
    if parts != _parts(resnet):
        return False
    if not values:
        return marks == _marks(resnet)
    now = _weights(resnet, share.channels)
    return len(values) == len(now) and all(a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(values, now, strict=True))


def _parts(resnet: Any) -> tuple[Any, ...]:
    conv, norm = resnet.conv1, resnet.norm1
    return resnet, norm, conv, resnet.conv_shortcut, resnet.nonlinearity, conv.stride, conv.padding, norm.eps, norm.num_groups


def _marks(resnet: Any) -> tuple[Any, ...]:
    tensors = [p for m in (resnet.norm1, resnet.conv1, resnet.conv_shortcut) for p in (m.weight, m.bias)]
    return tuple(None if t is None else (id(t), t.data_ptr(), t.dtype, t.device, 0 if t.is_inference() else t._version) for t in tensors)


def _weights(resnet: Any, channels: int) -> tuple[torch.Tensor, ...]:
    norm, conv, shortcut = resnet.norm1, resnet.conv1, resnet.conv_shortcut
    halves = (norm.weight[:channels], norm.bias[:channels], conv.weight[:, :channels], conv.bias, shortcut.weight[:, :channels], shortcut.bias)
    return tuple(t for t in halves if t is not None)


def cached_share(resnet: Any, cached: torch.Tensor) -> CachedShare:
    """The share of the first C channels, with both biases, from a (B, C, h, w) cached tensor."""
    channels = cached.shape[1]
    activated = _activated(resnet, cached, 0, channels)
    conv, shortcut = resnet.conv1, resnet.conv_shortcut
    return CachedShare(
        F.conv2d(activated, conv.weight[:, :channels], conv.bias, conv.stride, conv.padding),
        F.conv2d(cached, shortcut.weight[:, :channels], shortcut.bias),
        channels,
        (_parts(resnet), _marks(resnet), tuple(t.detach().clone() for t in _weights(resnet, channels)) if cached.device.type == "cpu" else ()),
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
