"""The MLflow model of a registered strategy: the pipeline it was found for, accelerated by it.

MLflow stores a copy of this file with every version and runs it when the version is loaded: there is no pickle. The
strategy beside it is plain JSON.

    model = mlflow.pyfunc.load_model("models:/dato-embedded@fastest")
    images = model.predict({"prompt": ["a handwritten seven"]}, params={"seed": 1})

``model_config`` of ``load_model`` may hold ``path`` (the pipeline's folder or hub id, in place of the one in the
strategy's provenance), ``components``, ``lora`` and ``mirror`` (likewise, see conf/README.md), ``device``, ``dtype`` and
``batch`` (images per call).
"""

from __future__ import annotations

import base64
import io
from typing import Any

import mlflow
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image

import dato
from search.evaluate.generate import to_bytes
from search.evaluate.model_spec import LATER, ModelError, ModelSpec
from search.evaluate.pipelines import load_pipeline


class AcceleratedPipeline(PythonModel):
    """Prompts to images. The pipeline is loaded once, and accelerated for good."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the strategy and the pipeline that its provenance names."""
        config = dict(context.model_config or {})
        self.batch = config.get("batch", 8)
        if not isinstance(self.batch, int) or self.batch < 1:
            raise ModelError(f"model_config batch is {self.batch!r}; give the images per call, at least 1")
        self.strategy = dato.Strategy.load(context.artifacts["strategy"])
        notes = self.strategy.provenance
        model, sampler = notes.get("model") or {}, notes.get("sampler") or {}
        path = config.get("path") or model.get("path")
        if not path:
            raise ModelError("this strategy does not say for which model it is; give one: load_model(uri, model_config={'path': <folder or hub id>})")
        own = sampler.get("unaccelerated") or sampler  # a strategy's own sampler is exchanged for the pipeline's by enabling it
        scheduler = (own.get("settings") or {}).get("class") or own.get("scheduler")
        # A path of one's own has other revisions and files; what is put into the pipeline belongs to it wherever it lies.
        elsewhere = ("revision", "variant", "mirror") if config.get("path") else ()
        parts = {k: config.get(k, model.get(k)) for k in LATER if k not in elsewhere or k in config}
        height, width = notes["size"] if isinstance(notes.get("size"), list) else (None, None)
        self.spec = ModelSpec(
            name=str(model.get("name") or path),
            path=str(path),
            dtype=config.get("dtype") or model.get("dtype") or "float32",
            device=config.get("device") or "auto",
            scheduler=None if scheduler == "the model's own" else scheduler,
            steps=len(self.strategy),
            guidance=float(sampler.get("guidance") or 7.5),
            height=height,
            width=width,
            **{k: v for k, v in parts.items() if v is not None},
        )
        self.pipe = load_pipeline(self.spec, as_published=True)
        dato.enable(self.pipe, self.strategy)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow takes type hints for a schema
        """Images of the column ``prompt``, one each.

        Args:
            context: MLflow's.
            model_input: A mapping or data frame with ``prompt``.
            params: ``seed`` of the first image, the next ones count up; ``output``: "pil", or "png" for base64 text.
        """
        given = {"seed": 0, "output": "pil", **(params or {})}
        if given["output"] not in ("pil", "png"):
            raise ValueError(f"params output is {given['output']!r}; allowed are 'pil' and 'png'")
        prompts = model_input.get("prompt")
        if prompts is None:
            raise ValueError(f"expected a column 'prompt', but got {list(model_input)}; call predict({{'prompt': ['a handwritten seven']}})")
        texts = [prompts] if isinstance(prompts, str) else [str(p) for p in prompts]
        images: list[Any] = []
        for start in range(0, len(texts), self.batch):
            part = texts[start : start + self.batch]
            made = self.pipe(
                part,
                num_inference_steps=self.spec.steps,
                guidance_scale=self.spec.guidance,
                height=self.spec.height,
                width=self.spec.width,
                generator=[torch.Generator().manual_seed(int(given["seed"]) + start + i) for i in range(len(part))],
                output_type="np",
            ).images
            # Bytes only of what is finite: diffusers' own conversion draws NaN black, without a word.
            images += [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in to_bytes(made)]
        return images if given["output"] == "pil" else [_png(image) for image in images]


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


mlflow.models.set_model(AcceleratedPipeline())
