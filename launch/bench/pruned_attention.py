"""Tokens pruned in the attention of a diffusion transformer, to measure what that would save and cost; `dato` prunes in UNets alone.

The paper's way (Eqs. 6-9): of the image tokens the kept ones take part in attention, the text's all do, rotary embeddings are those of the
kept ones, and a pruned token takes what comes out for its most similar base token. Forward hooks around the attention modules do it.

Letters: B batch, N image tokens, T text tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.hooks import RemovableHandle

from dato.base_tokens import choose_base_tokens
from dato.denoiser import denoiser_name
from dato.options import Options
from dato.pruning import PrunePlan, plan
from dato.reuse import Kind
from dato.unet.attention import chosen_layers
from dato.unet.units import Layout

Planner = Callable[[torch.Tensor, Callable[[], torch.Tensor]], PrunePlan | None]
"""From a module's (B, N, C) image tokens, and what would give its own (B, N, C) output for them, to its plan; None where it prunes nothing."""


def prune_attention(module: nn.Module, planner: Planner, text: int = 0) -> list[RemovableHandle]:
    """Make an attention module see the kept image tokens only; removing the handles undoes it.

    Args:
        module: Of a block of PixArt (`attn1`), SD3, FLUX.1 or Qwen-Image (`attn`).
        planner: Decides in each call.
        text: Text tokens that come first among its `hidden_states`, as in FLUX.1's single blocks.
    """
    hooks = _PrunedAttention(planner, text)
    return [module.register_forward_pre_hook(hooks.before, with_kwargs=True), module.register_forward_hook(hooks.after)]


class _PrunedAttention:
    def __init__(self, planner: Planner, text: int) -> None:
        self.planner, self.text = planner, text
        self.plan: PrunePlan | None = None

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = args[0] if args else kwargs["hidden_states"]

        def own() -> torch.Tensor:
            output = module.forward(*args, **kwargs)
            return (output[0] if isinstance(output, tuple) else output)[:, self.text :]

        self.plan = self.planner(given[:, self.text :], own)
        if self.plan is None:
            return None
        kept = self._image(given, self.plan.prune)
        if kwargs.get("image_rotary_emb") is not None:
            kwargs = {**kwargs, "image_rotary_emb": _rotary_of_kept(kwargs["image_rotary_emb"], self.plan)}
        return ((kept, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": kept})

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if self.plan is None:
            return None
        image, *others = output if isinstance(output, tuple) else (output,)
        image = self._image(image, self.plan.recover)
        return (image, *others) if isinstance(output, tuple) else image

    def _image(self, tokens: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The tokens with the image's changed."""
        return torch.cat([tokens[:, : self.text], change(tokens[:, self.text :])], 1) if self.text else change(tokens)


def _rotary_of_kept(rotary: tuple[torch.Tensor, torch.Tensor], plan: PrunePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """FLUX.1's are a cosine and a sine of (T + N, D), Qwen-Image's are complex, (N, D / 2) of the image and apart from it the text's."""
    if len(plan.keep) > 1:
        raise ValueError(f"rotary embeddings are common to a batch, and each of its {len(plan.keep)} images keeps other tokens: give a batch of 1")
    rows = plan.keep[0]
    if rotary[0].is_complex():
        return rotary[0].index_select(0, rows), rotary[1]
    text = len(rotary[0]) - (len(rows) + plan.pruned.shape[1])
    first, second = (torch.cat([table[:text], table[text:].index_select(0, rows)]) for table in rotary)
    return first, second


class PrunedRun:
    """Within a ``with`` block, one run of a pipeline prunes in the attention of every block, planned once a call.

    Args:
        pipe: Of SD3 or PixArt; or of a UNet, in whose self-attention on the finest grid it prunes as `dato` does, to compare with. It guides by a batch [uncond, cond].
        ratios: Shares of the image tokens that the calls prune, in turn.
        best: Plan anew in every layer, by the similarity of what attention really gives: as good as a choice of tokens can be. It costs more than it saves.

    Attributes:
        compared: The last two predictions that a call computed, whose difference is the score of Eq. 6, the last one first.
        plan: Of the last call; None where it pruned nothing.
    """

    def __init__(self, pipe: Any, ratios: Sequence[float], best: bool = False) -> None:
        self.model, self.ratios, self.best = getattr(pipe, denoiser_name(pipe) or ""), ratios, best
        self.compared: list[torch.Tensor] = []
        self._generator = torch.Generator().manual_seed(Options().seed)
        self._calls, self._ran = 0, False
        self._bases: torch.Tensor | None = None
        self.plan: PrunePlan | None = None

    def __enter__(self) -> Self:
        if isinstance(self.model, UNet2DConditionModel):
            layers = list(chosen_layers(Layout.of(self.model), Options()).values())
            modules, self._downsample, first = [m for m, _ in layers], layers[0][1], self.model.conv_in
        else:
            blocks = self.model.transformer_blocks
            modules, self._downsample, first = [attention_of(b) for b in blocks], self.model.config.patch_size, blocks[0]
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end),
            first.register_forward_pre_hook(self._note),
        ]
        for module in modules:
            self._handles += prune_attention(module, self._planner)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, *_: Any) -> None:
        self._ran = True

    def _begin(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ratio, self._ran, self.plan = self.ratios[self._calls % len(self.ratios)], False, None
        self._calls += 1
        if self._ratio:
            given = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
            self._bases = choose_base_tokens([self._downsample], Kind.of(given, guided=True), self.compared, Options(), self._generator)[self._downsample]

    def _end(self, _model: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self._ran:  # what is replayed says nothing of how tokens change
            self.compared = [output[0] if isinstance(output, tuple) else output.sample, *self.compared[:1]]

    def _planner(self, tokens: torch.Tensor, own: Callable[[], torch.Tensor]) -> PrunePlan | None:
        if not self._ratio:
            return None
        if self.plan is None or self.best:
            assert self._bases is not None
            self.plan = plan(own() if self.best else tokens, self._bases, int(self._ratio * tokens.shape[1] + 1e-9))
        return self.plan


def attention_of(block: Any) -> nn.Module:
    """The attention of a block in which image tokens see each other."""
    found: nn.Module = block.attn if hasattr(block, "attn") else block.attn1
    return found
