"""What a model is called with: its arguments by name, and the conditional half of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def bind_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a model by name, with its forward's defaults."""
    bound = _signature(type(model)).bind(model, *args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


_SIGNATURES: dict[type, inspect.Signature] = {}


def _signature(kind: type) -> inspect.Signature:
    if kind not in _SIGNATURES:
        _SIGNATURES[kind] = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    return _SIGNATURES[kind]


def conditional_half(given: Any, rows: int) -> Any:
    """Arguments of a guided call, without the unconditional half.

    Tensors with a row for each of the batch lose the first half of them, at any depth of lists, tuples and mappings: embeddings of
    images for IP-Adapter, and residuals. Whatever has no such rows is for all of the batch, or has lost that half already.

    Args:
        given: An argument, or all of them.
        rows: B, of the batch [uncond, cond].
    """
    if isinstance(given, torch.Tensor):
        return given[rows // 2 :] if given.ndim and len(given) == rows else given
    if isinstance(given, Mapping):
        # IP-Adapter's masks have a row for each adapter or image.
        return {k: v if k == "ip_adapter_masks" else conditional_half(v, rows) for k, v in given.items()}
    if type(given) in (list, tuple):
        return type(given)(conditional_half(v, rows) for v in given)
    return given
