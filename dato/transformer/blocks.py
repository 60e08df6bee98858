"""A transformer as its sequence of blocks, and a call that leaves some of them out.

The model's own forward makes every call. For the time of a call its lists of blocks hold fewer blocks, with probes among them that note
the tokens at a place, and where blocks are left out a stand-in that adds what these added in an earlier call: their residual, as
diffusers' FirstBlockCache reuses that of all blocks but the first. Blocks themselves are not touched.

Letters: B batch, N image tokens, T text tokens, C channels, n blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks._common import _ALL_TRANSFORMER_BLOCK_IDENTIFIERS
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from torch import nn

from dato.strategy import FULL, StrategyError


@dataclass(frozen=True)
class Blocks:
    """The blocks of a transformer in the order in which its forward runs them.

    Attributes:
        model: The transformer.
        lists: Its lists of blocks, by their name in the model, in that order.
        forms: What diffusers' registry says of each block: which argument its tokens are, and where they are in what it returns.
    """

    model: Any
    lists: tuple[str, ...]
    forms: tuple[TransformerBlockMetadata, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Blocks:
        """Read them off a model. Raises TypeError for one whose blocks diffusers' registry does not know."""
        lists = tuple(name for name, child in model.named_children() if name in _ALL_TRANSFORMER_BLOCK_IDENTIFIERS and isinstance(child, nn.ModuleList) and len(child))
        forms = []
        for name in lists:
            for block in getattr(model, name):
                try:
                    forms.append(TransformerBlockRegistry.get(type(block)))
                except ValueError:
                    raise TypeError(
                        f"{type(model).__name__} has blocks of {type(block).__name__}, which are not in diffusers' registry of transformer blocks, so it is not known what "
                        "they take and return: dato cannot cache them"
                    ) from None
        if len(forms) < 2:
            raise TypeError(f"{type(model).__name__} has no list of transformer blocks that diffusers knows ({', '.join(sorted(_ALL_TRANSFORMER_BLOCK_IDENTIFIERS))}): dato cannot cache it")
        return cls(model, lists, tuple(forms))

    def __len__(self) -> int:
        return len(self.forms)

    def modules(self) -> list[nn.Module]:
        """Every block, in order."""
        return [block for name in self.lists for block in getattr(self.model, name)]

    def left_out(self, depth: int) -> range:
        """The blocks that a call at a depth leaves out, of the outer ones `depth` are computed: all but the first ones."""
        return range(len(self), len(self)) if depth == FULL else range(depth, len(self))

    def require_depth(self, depth: int) -> None:
        """Raise `StrategyError` for a cache depth that this transformer does not have."""
        if depth != FULL and depth >= len(self):
            raise StrategyError(
                f"cache_depth {depth} is beyond this {type(self.model).__name__}, which has {len(self)} blocks; allowed are 0 to {len(self) - 1} but {FULL}, which is dato.FULL and computes everything"
            )

    @contextmanager
    def arranged(self, depth: int, probes: Mapping[int, Probe], residual: torch.Tensor | None) -> Iterator[None]:
        """Within the block, the model's forward makes a call at a depth.

        Args:
            depth: Cache depth, 1 to n - 1, or `FULL`.
            probes: By place: a probe at k sees what block k is given, and at n what comes after the last one.
            residual: What the blocks that are left out added; None where none is.
        """
        out, own, place = self.left_out(depth), {}, 0
        for name in self.lists:
            own[name] = getattr(self.model, name)
        try:
            for name, blocks in own.items():
                modules: list[nn.Module] = []
                for block in blocks:
                    modules += _at(probes, place, self.forms[place])
                    if place not in out:
                        modules.append(block)
                    elif place == out.stop - 1:
                        assert residual is not None
                        modules.append(StandIn(self.forms[place], residual))
                    place += 1
                if name == self.lists[-1]:
                    modules += _at(probes, place, self.forms[-1])
                self.model._modules[name] = nn.ModuleList(modules)
            yield
        finally:
            self.model._modules.update(own)


def _at(probes: Mapping[int, Probe], place: int, form: TransformerBlockMetadata) -> list[nn.Module]:
    if place not in probes:
        return []
    probes[place].form = form
    return [probes[place]]


class Probe(nn.Module):
    """In a list of blocks: notes the image tokens that come by, and hands all on as a block does.

    Attributes:
        form: That of the blocks around it.
        tokens: (B, N, C), with the text's first where blocks take both as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.form = TransformerBlockMetadata()
        self.tokens: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What it was given, in the form that a block returns."""
        self.tokens, text = _given(self.form, args, kwargs)
        return _returned(self.form, self.tokens, text)


class StandIn(nn.Module):
    """In the place of blocks that are left out: adds their residual to the image tokens. Text goes no further than the last block.

    Args:
        form: Theirs.
        residual: (B, N, C).
    """

    def __init__(self, form: TransformerBlockMetadata, residual: torch.Tensor) -> None:
        super().__init__()
        self.form, self.residual = form, residual

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The tokens as the blocks would have left them."""
        hidden, text = _given(self.form, args, kwargs)
        return _returned(self.form, hidden + self.residual, text)


def _given(form: TransformerBlockMetadata, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    hidden = form._get_parameter_from_args_kwargs(form.hidden_states_argument_name, args, kwargs)
    if form.return_encoder_hidden_states_index is None:
        return hidden, None
    return hidden, form._get_parameter_from_args_kwargs(form.encoder_hidden_states_argument_name, args, kwargs)


def _returned(form: TransformerBlockMetadata, hidden: torch.Tensor, text: torch.Tensor | None) -> Any:
    if form.return_encoder_hidden_states_index is None:
        return hidden
    found: list[Any] = [None, None]
    found[form.return_hidden_states_index], found[form.return_encoder_hidden_states_index] = hidden, text
    return tuple(found)
