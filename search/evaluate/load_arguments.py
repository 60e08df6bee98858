"""What of diffusers' from_pretrained a configuration may set, and why not the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dato.files import written


class ModelError(ValueError):
    """A model that cannot be loaded: the message says what was given, what is allowed and what to do."""


PLAIN = ("disable_mmap", "low_cpu_mem_usage")
"""What any pipeline takes. Besides: what its own class takes, see `check_arguments`."""
_CODE = "it would run code that comes with the model, and whoever can change that would run it on every worker"
_WHERE = "a worker has one device and holds the whole pipeline on it, or its latency would be that of moving weights; set model.device, and cluster.gpus for a worker's share"
_OURS = "measuring sets it: a checker's black images and a watermark are no part of a pipeline's images"
REFUSED = {
    "trust_remote_code": _CODE,
    "custom_pipeline": f"{_CODE}; use a class of diffusers, or save the model with one",
    "custom_revision": _CODE,
    "use_safetensors": "weights are read from safetensors only: other files are pickles, which run code; convert them with pipe.save_pretrained(folder)",
    "use_onnx": "strategies act on PyTorch modules",
    "use_flashpack": "weights are read from safetensors only",
    "provider": "strategies act on PyTorch modules",
    "sess_options": "strategies act on PyTorch modules",
    "provider_options": "strategies act on PyTorch modules",
    "dtype": "set model.dtype",
    "torch_dtype": "set model.dtype",
    "revision": "set model.revision",
    "variant": "set model.variant",
    "mirror": "set model.mirror, or the environment variable HF_ENDPOINT",
    "subfolder": "a pipeline is the whole folder; give that folder as model.path, or one of its models as model.components",
    "device_map": _WHERE,
    "max_memory": _WHERE,
    "offload_folder": _WHERE,
    "offload_state_dict": _WHERE,
    "quantization_config": "it is no plain value; save the quantised model with pipe.save_pretrained(folder) and give that folder as model.path or in model.components",
    "token": "a configuration is written into ledgers and MLflow; set the environment variable HF_TOKEN on every node",
    "use_auth_token": "a configuration is written into ledgers and MLflow; set the environment variable HF_TOKEN on every node",
    "proxies": "set the environment variable HTTPS_PROXY on every node",
    "cache_dir": "set the environment variable HF_HOME",
    "local_files_only": "set the environment variable HF_HUB_OFFLINE=1",
    "force_download": "remove the model's folder from the Hugging Face cache",
    "resume_download": "a download always goes on where it stopped",
    "output_loading_info": "nothing would read it",
    "load_connected_pipeline": "one pipeline is measured",
    "return_cached_folder": "nothing would read it",
    "scheduler": "set model.scheduler",
    "safety_checker": _OURS,
    "requires_safety_checker": _OURS,
    "feature_extractor": _OURS,
    "add_watermarker": _OURS,
}
"""Argument to why it is not for `model.load`, and what to do."""


def check_load(given: Mapping[str, Any]) -> None:
    """Refuse what a configuration may not pass to from_pretrained, whatever the pipeline. Raises `ModelError`."""
    for name, value in given.items():
        if name in REFUSED:
            raise ModelError(f"model.load holds {name}: {REFUSED[name]}")
        if not (value is None or isinstance(value, bool | int | float | str)):
            raise ModelError(f"model.load.{name} is {written(value)}; give a number, a text, true, false or null; models go into model.components")
        if name in PLAIN and not isinstance(value, bool):
            raise ModelError(f"model.load.{name} is {written(value)}; give true or false")


def check_arguments(given: Mapping[str, Any], takes: Collection[str], components: Collection[str], pipeline: str) -> None:
    """Refuse what the pipeline's class does not take: diffusers would ignore it.

    Args:
        given: `model.load`.
        takes: Names of its class's arguments.
        components: Those that are models, tokenizers and so on, which may be left out (null) and are given elsewhere.
        pipeline: The class's name.

    Raises:
        ModelError: With what is allowed.
    """
    own = sorted(set(takes) - set(components) - set(REFUSED))
    for name, value in given.items():
        if name in components and value is not None:
            raise ModelError(f"model.load.{name} is {written(value)}; only null, for a pipeline without it, is allowed there: other models go into model.components")
        if name not in (*PLAIN, *own, *components):
            raise ModelError(f"model.load holds {name}, which {pipeline} does not take; allowed are {', '.join([*PLAIN, *own])}, and a component that may be missing as null")
