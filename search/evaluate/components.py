"""Models that are put into a pipeline in place of its own, and LoRA weights that are merged into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import is_peft_available

from search.evaluate.load_arguments import ModelError
from search.evaluate.model_files import LORA_FILE, part_path, parts, weight_files_of
from search.evaluate.model_spec import ModelSpec


def load_components(spec: ModelSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """The models of `model.components`, in the model's precision.

    Args:
        spec: Whose.
        config: Of the pipeline, its model_index.json.

    Raises:
        ModelError: The pipeline has no such model, or it cannot be loaded.
    """
    found = {}
    for part in parts(spec):
        name = part.key.rpartition(".")[2]
        if part.file == "config.json":
            folder = part_path(part, spec)
            found[name] = _load(part.key, part.given, folder, _class_for(name, part.key, folder, config), spec)
    return found


def _class_for(name: str, key: str, folder: Path, config: Mapping[str, Any]) -> Any:
    kinds = {k: getattr(diffusers if v[0] == "diffusers" else transformers, v[1], None) for k, v in config.items() if _is_entry(v)}
    models: dict[str, Any] = {k: c for k, c in kinds.items() if isinstance(c, type) and issubclass(c, ModelMixin | transformers.PreTrainedModel)}
    if name not in models:
        raise ModelError(f"{key}: {config.get('_class_name')} has no model of that name; it has {', '.join(sorted(models))}" + ("; set model.scheduler" if name == "scheduler" else ""))
    if not issubclass(models[name], ModelMixin):
        return models[name]
    own = getattr(diffusers, str(models[name].load_config(str(folder)).get("_class_name")), None)  # a small autoencoder is another class than a large one
    same = own is models[name] or {getattr(k, "__module__", "").rpartition(".")[0] for k in (own, models[name])} == {"diffusers.models.autoencoders"}
    if not same:
        found = f"is a {own.__name__}" if isinstance(own, type) else "names no model of diffusers as _class_name"
        raise ModelError(f"{key}: {folder / 'config.json'} {found}, and {config.get('_class_name')} has a {models[name].__name__} there; give the folder of one")
    return own


def _is_entry(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in ("diffusers", "transformers") and isinstance(value[1], str)


def _load(key: str, given: str, folder: Path, kind: Any, spec: ModelSpec) -> Any:
    names = [p.name for p in folder.iterdir()]
    if not weight_files_of(names, None) and not weight_files_of(names, spec.variant):
        raise ModelError(f"{key} is {given!r}, and {folder} holds no weights as .safetensors; save it with save_pretrained(folder)")
    variant = spec.variant if any(f".{spec.variant}." in name or f".{spec.variant}-" in name for name in names) else None
    try:
        return kind.from_pretrained(str(folder), dtype=getattr(torch, spec.dtype), use_safetensors=True, variant=variant, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"cannot load {key} {given!r}: {str(error).strip().splitlines()[0]}") from error


def merge_lora(pipe: DiffusionPipeline, spec: ModelSpec) -> None:
    """Merge the weights of `model.lora` into the pipeline, each with its scale, as a team that serves them merged does.

    Raises:
        ModelError: They do not fit this pipeline, or cannot be read.
    """
    if not spec.lora:
        return
    if not is_peft_available():
        raise ModelError("model.lora needs the package peft, which is not installed here; pip install -c constraints.txt peft on every node")
    given = [p for p in parts(spec) if p.file == LORA_FILE]
    for number, (part, scale) in enumerate(zip(given, spec.lora_scales or (1.0,) * len(given), strict=True)):
        file, name = part_path(part, spec), f"lora_{number}"
        try:
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, use_safetensors=True, local_files_only=True)
            if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
                raise ValueError("none of its weights are of a layer that this pipeline has")
            pipe.set_adapters([name], [scale])
            pipe.fuse_lora(adapter_names=[name], components=[c for c, adapters in pipe.get_list_adapters().items() if name in adapters])
            pipe.unload_lora_weights()
        except (AttributeError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise ModelError(f"cannot merge model.lora {part.given!r} into a {type(pipe).__name__}: {str(error).strip().splitlines()[0]}") from error
