"""Where the files of a model are: in the package, in a folder, in a mirror, or fetched from the hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from dato.files import user_path
from search.evaluate.hub import HubId, commit_of, fetched
from search.evaluate.load_arguments import ModelError
from search.evaluate.model_spec import ModelSpec

EMBEDDED = Path(__file__).parents[1] / "embedded" / "pipeline"
EMBEDDED_MODELS = {"embedded": EMBEDDED, "embedded_dit": EMBEDDED.with_name("transformer")}
"""What ships with the package, by model.path: a Stable Diffusion with a UNet, and one with a diffusion transformer."""
LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls LoRA weights in a folder."""
PINNED = ("revision", "components", "lora")
"""What `pins` may change."""
_FORMS = "give 'embedded' or 'embedded_dit', a folder in diffusers' layout, or a hub id such as 'stable-diffusion-v1-5/stable-diffusion-v1-5'"


@dataclass(frozen=True)
class Part:
    """One thing that a model is made of: the pipeline itself, a component, or LoRA weights.

    Attributes:
        key: What gives it, such as model.components.vae.
        given: As it was given.
        file: What tells that a folder is one: a file in it.
        revision: On the hub.
    """

    key: str
    given: str
    file: str
    revision: str | None = None

    @property
    def local(self) -> Path | None:
        """The folder or file that it is on this machine, there or not; None for a hub id."""
        path = user_path(self.given)
        return path if os.path.exists(path) or path.is_absolute() or self.given.startswith((".", "~")) else None

    @property
    def hub(self) -> HubId | None:
        """Where it is on the hub; None for what is on this machine or no hub id."""
        found = None if self.local else HubId.parse(self.given)
        return found.at(self.revision) if found and self.revision else found


def parts(spec: ModelSpec) -> list[Part]:
    """The pipeline, and what is put into it."""
    found = [] if spec.path in EMBEDDED_MODELS else [Part("model.path", spec.path, "model_index.json", spec.revision)]
    found += [Part(f"model.components.{name}", given, "config.json") for name, given in spec.components.items()]
    return found + [Part("model.lora", given, LORA_FILE) for given in spec.lora]


def check_model(spec: ModelSpec) -> None:
    """Refuse what is no model, as far as this machine can tell, before anything is started. Raises `ModelError`."""
    if spec.mirror is not None and not mirror_folder(spec.mirror).is_dir():
        raise ModelError(f"model.mirror is {spec.mirror!r}, which is no folder; give one that holds models by id (<mirror>/<owner>/<name>), as a path or file://<path>, or null")
    pipeline = next((p for p in parts(spec) if p.key == "model.path"), None)
    if spec.revision and (pipeline is None or pipeline.local):
        raise ModelError(f"model.revision is {spec.revision!r}, but model.path is {spec.path!r}, which has no revisions; give a hub id, or model.revision=null")
    for part in parts(spec):
        if part.local:
            _check_local(part, part.local)
        elif part.hub is None or (part.key == "model.path" and (part.given.count("/") != 1 or "@" in part.given)):
            what = _FORMS if part.key == "model.path" else "give one, or a hub id such as owner/name, owner/name/folder or owner/name@revision"
            also = "; its revision goes into model.revision" if part.key == "model.path" and "@" in part.given else ""
            raise ModelError(f"{part.key} is {part.given!r}, neither a folder here nor a hub id (owner/name){also}; {what}")
        elif part.file == LORA_FILE and part.hub.inner and not part.hub.inner.endswith(".safetensors"):
            raise ModelError(_no_pickles(part))


def _check_local(part: Part, path: Path) -> None:
    forms = _FORMS if part.key == "model.path" else "give a folder in diffusers' layout, or a hub id" if part.file == "config.json" else f"give a .safetensors file, a folder with {LORA_FILE}, or a hub id"
    if not os.path.exists(path):
        raise ModelError(f"{part.key} is {part.given!r}, which does not exist; {forms}")
    if part.file == LORA_FILE and path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(_no_pickles(part))
    elif not os.path.isfile(path / part.file):
        raise ModelError(f"{part.key} is {part.given!r}, which has no {part.file}; {forms}")


def _no_pickles(part: Part) -> str:
    return f"{part.key} is {part.given!r}; give a .safetensors file: other files are pickles, which run code"


def mirror_folder(given: str) -> Path:
    """The folder of `model.mirror`."""
    return user_path(re.sub("^file://", "", given))


def here(part: Part, mirror: str | None) -> Path | None:
    """The folder or file of a part that is on this machine, or in the mirror; None for what is to be fetched."""
    if part.local or mirror is None or part.hub is None:
        return part.local
    at = f"@{part.hub.revision}" if part.hub.revision else ""
    found = mirror_folder(mirror) / f"{part.hub.repo}{at}" / part.hub.inner
    return found if found.is_file() or (found / part.file).is_file() else None


def local_files(spec: ModelSpec) -> dict[str, Path]:
    """A file of each part that is a path on this machine, which every node must have, by its key."""
    found: dict[str, Path] = {}
    for part in parts(spec):
        path = here(part, spec.mirror)
        if path is not None:
            key = f"{part.key} {part.given}" if part.key == "model.lora" else part.key
            found[key] = path if path.is_file() else path / part.file
    return found


def pins(spec: ModelSpec) -> dict[str, Any]:
    """The keys of `model` that name commits where these name branches, tags or nothing: what the hub has now. {} where nothing is on the hub.

    Raises:
        UnreachableError: The hub does not answer, and this machine's cache does not tell.
        ModelError: A model or revision is not there.
    """
    new = {(p.key, p.given): str(p.hub.at(commit_of(p.hub, p.key))) for p in parts(spec) if p.hub and here(p, spec.mirror) is None}
    found: dict[str, Any] = {}
    if ("model.path", spec.path) in new:
        found["revision"] = new["model.path", spec.path].partition("@")[2]
    components = {n: new.get((f"model.components.{n}", given), given) for n, given in spec.components.items()}
    lora = tuple(new.get(("model.lora", given), given) for given in spec.lora)
    found |= {"components": components} if components != spec.components else {}
    found |= {"lora": list(lora)} if lora != spec.lora else {}
    return {k: v for k, v in found.items() if v != getattr(spec, k)}


def pinned(spec: ModelSpec, known: Mapping[str, Any]) -> ModelSpec:
    """A model at the commits that `pins` told."""
    return replace(spec, **{k: v for k, v in known.items() if k in PINNED})


def pipeline_source(spec: ModelSpec) -> Path | HubId:
    """The folder of the pipeline, or where it is on the hub, at its commit. Raises `ModelError` where there is none."""
    if spec.path in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[spec.path]
    part = parts(spec)[0]
    if found := here(part, spec.mirror):
        return found
    assert part.hub is not None  # `check_model` refuses anything else
    return part.hub.at(commit_of(part.hub, part.key))


def pipeline_config(source: Path | HubId) -> Mapping[str, Any]:
    """The content of a pipeline's model_index.json. Raises `ModelError`, or what diffusers raises for a folder that is none."""
    if isinstance(source, Path):
        return DiffusionPipeline.load_config(str(source))
    model = source
    return DiffusionPipeline.load_config(str(fetched(model, "model.path", "index", lambda: Path(hf_hub_download(model.repo, "model_index.json", revision=model.revision)).parent)))


def pipeline_folder(source: Path | HubId, variant: str | None, without: Iterable[str]) -> Path:
    """The folder of a pipeline's files on this machine, fetched where they are not: those that it is loaded from and no others.

    Args:
        source: See `pipeline_source`.
        variant: Of the weight files.
        without: Components that it is loaded without.

    Raises:
        ModelError: Naming node, model and cause.
    """
    if isinstance(source, Path):
        return source
    left_out = sorted(without)

    def fetch() -> str:
        try:
            return str(DiffusionPipeline.download(source.repo, revision=source.revision, variant=variant, use_safetensors=True, **dict.fromkeys(left_out)))
        except ValueError as error:
            if variant and "variant" in str(error):
                raise ModelError(_no_variant(source, variant)) from None
            raise

    return fetched(source, "model.path", f"variant {variant} without {left_out}", fetch)


def _no_variant(model: HubId, variant: str) -> str:
    files = [s.rfilename for s in HfApi().model_info(model.repo, revision=model.revision).siblings or []]
    there = sorted({m[1] for f in files if (m := re.search(r"\.(\w+)(?:-\d+-of-\d+)?\.safetensors$", f))})
    return f"model.variant is {variant!r}, and {str(model)!r} has no weight files of it; set model.variant=null" + (f", or one that it has: {', '.join(there)}" if there else "")


def part_path(part: Part, spec: ModelSpec) -> Path:
    """The folder of a component, or the file of LoRA weights, on this machine, fetched where it is not. Raises `ModelError`."""
    found = here(part, spec.mirror)
    if found is None:
        assert part.hub is not None  # `check_model` refuses anything else
        model = part.hub.at(commit_of(part.hub, part.key))
        found = _lora(model, part) if part.file == LORA_FILE else _component(model, part, spec.variant)
    return found / LORA_FILE if part.file == LORA_FILE and found.is_dir() else found


def _lora(model: HubId, part: Part) -> Path:
    file = model.inner or LORA_FILE
    folder = fetched(model, part.key, file, lambda: str(hf_hub_download(model.repo, file, revision=model.revision)).removesuffix(file))
    return folder / file


def _component(model: HubId, part: Part, variant: str | None) -> Path:
    def fetch() -> str:
        files = [s.rfilename for s in HfApi().model_info(model.repo, revision=model.revision).siblings or []]
        wanted = weight_files_of((f for f in files if os.path.dirname(f) == model.inner), variant)
        return snapshot_download(model.repo, revision=model.revision, allow_patterns=[os.path.join(model.inner, "config.json"), *wanted])

    return fetched(model, part.key, f"{model.inner} variant {variant}", fetch) / model.inner


def weight_files_of(files: Iterable[str], variant: str | None) -> list[str]:
    """The safetensors files, and their index, that a model is loaded from; those of the variant where it has some."""

    def of(variant: str) -> list[str]:
        form = re.compile(rf"(diffusion_pytorch_model|model)({variant}(-\d+-of-\d+)?|(-\d+-of-\d+)?{variant})\.safetensors|\w+\.safetensors\.index{variant}\.json")
        return sorted(f for f in files if form.fullmatch(os.path.basename(f)))

    files = list(files)
    return (of(rf"\.{re.escape(variant)}") if variant else []) or of("")


def folder_of(spec: ModelSpec, component: str) -> Path | None:
    """The folder of a component on this machine, its replacement's where it has one; None for what is on the hub."""
    replaced = next((p for p in parts(spec) if p.key == f"model.components.{component}"), None)
    if replaced:
        return here(replaced, spec.mirror)
    if spec.path in EMBEDDED_MODELS:
        return EMBEDDED_MODELS[spec.path] / component
    folder = here(parts(spec)[0], spec.mirror)
    return folder / component if folder else None


def added_digests(spec: ModelSpec) -> dict[str, str]:
    """SHA-256 of the weight files of components and LoRA weights that are on this machine, by what gives them; {} where there are none."""
    found: dict[str, str] = {}
    for part in parts(spec):
        path = None if part.key == "model.path" else here(part, spec.mirror)
        if path is not None:
            found[f"{part.key} {part.given}"] = files_digest(sorted(path.glob("*.safetensors")) if part.file == "config.json" else [path / LORA_FILE if path.is_dir() else path])
    return found


def files_digest(files: Iterable[Path]) -> str:
    """SHA-256 of the files' content, one after the other."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                whole.update(chunk)
    return whole.hexdigest()


