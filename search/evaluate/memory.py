"""Running out of memory: told from other errors, cleaned up after, tried once more, and then said so that somebody can do something."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")
# torch.OutOfMemoryError, the runtime's and the libraries' own errors, PyTorch's allocator of the CPU ("DefaultCPUAllocator: can't allocate
# memory", "not enough memory" on Windows), numpy ("Unable to allocate 7.28 PiB for an array") and Python.
_MEMORY = re.compile(r"out of memory|OutOfMemory|ALLOC_FAILED|MemoryAllocation|can't allocate memory|not enough memory|Unable to allocate|\b_?\w*MemoryError\b", re.IGNORECASE)
_ASKED = re.compile(r"(?:tr(?:ied|ying) to allocate|Unable to allocate) ([\d.]+ ?(?:bytes|[KMGTPE]?i?B))", re.IGNORECASE)
_SHOWN = 200
"""Characters of the original message that are kept."""


class OutOfMemoryError(RuntimeError):
    """What was to be computed does not fit: the message says where, how much was asked for, and what to do."""


def tells_of_memory(error: str) -> bool:
    """Whether an error, with the name of its class, says that memory ran out."""
    return bool(_MEMORY.search(error))


def with_another_try(call: Callable[[], _T], device: torch.device, name: str, images: int) -> _T:
    """What `call` returns, which is called once more, with everything freed that can be, where memory runs out.

    A first failure may be the fault of what was cached before, in pieces of other sizes, or of a neighbour on the same device; a second
    one is the call's own.

    Args:
        call: Leaves nothing behind where it fails.
        device: Where it computes.
        name: The device in words.
        images: How many it computes at once.

    Raises:
        OutOfMemoryError: It ran out of memory both times. Nothing that the call had made is held by it.
    """
    for _ in range(2):
        try:
            return call()
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if not tells_of_memory(said):
                raise
            _let_go(error)
        # After the handler: until its end the error itself is held, and everything that its frames hold.
        _empty()
    raise OutOfMemoryError(_in_words(said, device, name, images))


def _let_go(error: BaseException | None) -> None:
    """Free the local variables of the calls that an error, and what led to it, came through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _empty() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _in_words(said: str, device: torch.device, name: str, images: int) -> str:
    asked = _ASKED.search(said)
    fewer = "fewer workers a GPU (a larger cluster.gpus)" if device.type == "cuda" else "fewer workers a machine (a larger cluster.cpus)"
    return (
        f"out of memory on {name} ({device}), twice, the second time with everything else freed" + (f"; {asked[1]} were asked for" if asked else "")
        + f", for {images} images at once; set a smaller protocol.batch, or {fewer}. It said: {said[:_SHOWN]}{'...' if len(said) > _SHOWN else ''}"
    )  # fmt: skip
