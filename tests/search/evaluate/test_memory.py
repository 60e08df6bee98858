"""Running out of memory, with allocations that no machine has room for."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from search.evaluate.memory import OutOfMemoryError, tells_of_memory, with_another_try

CPU = torch.device("cpu")
TOO_MUCH = 1 << 50


def test_what_memory_errors_look_like() -> None:
    for allocate in (lambda: torch.empty(TOO_MUCH), lambda: np.empty(TOO_MUCH), lambda: bytearray(1 << 62)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert tells_of_memory(f"{type(caught.value).__name__}: {caught.value}")
    for said in (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free",
        "RuntimeError: CUDA error: out of memory",
        "AcceleratorError: HIP out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ):
        assert tells_of_memory(said)
    for said in ("RuntimeError: CUDA error: an illegal memory access was encountered", "ValueError: prune_ratio is 0.8", "RuntimeError: memory format is channels_last"):
        assert not tells_of_memory(said)


def test_it_is_tried_once_more_with_everything_let_go() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def heavy() -> torch.Tensor:
        if any(there() is not None for there in held):
            raise AssertionError("the first try's tensors are still there")
        mine = torch.zeros(1000)
        held.append(weakref.ref(mine))
        return torch.empty(TOO_MUCH if len(held) == 1 else 4)

    assert with_another_try(heavy, CPU, "a processor", 10).shape == (4,)
    assert len(held) == 2


def test_what_never_fits_says_where_how_much_and_what_to_do_and_holds_nothing() -> None:
    tries: list[weakref.ref[torch.Tensor]] = []

    def heavy() -> None:
        mine = torch.zeros(1000)
        tries.append(weakref.ref(mine))
        try:
            torch.empty(TOO_MUCH)
        except RuntimeError as error:
            raise RuntimeError(f"in the UNet: {error}") from error

    with pytest.raises(OutOfMemoryError, match=r"out of memory on a processor \(cpu\), twice.*; 4503599627370496 bytes were asked for, for 10 images.*protocol.batch.*cluster.cpus") as caught:
        with_another_try(heavy, CPU, "a processor", 10)
    gc.collect()
    assert [there() for there in tries] == [None, None]
    assert caught.value.__context__ is None
    assert "\n" not in str(caught.value)


def test_other_errors_pass_at_once() -> None:
    tries = []

    def wrong() -> None:
        tries.append(1)
        raise ValueError("prune_ratio is 0.8")

    with pytest.raises(ValueError, match="prune_ratio"):
        with_another_try(wrong, CPU, "a processor", 10)
    assert tries == [1]


def test_a_gpus_message_names_the_gpus_key_and_what_was_asked() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB")

    with pytest.raises(OutOfMemoryError, match=r"on NVIDIA H200 \(cuda:0\).*; 2.00 GiB were asked for, for 50 images.*cluster.gpus\). It said: OutOfMemoryError: CUDA out of memory"):
        with_another_try(full, torch.device("cuda:0"), "NVIDIA H200", 50)
