"""What `dato bench pruning` measures is the paper's pruning: compared with a loop over tokens, in blocks of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dato import pruning
from dato.base_tokens import choose_base_tokens
from dato.options import Options
from dato.reuse import Kind
from launch.bench.pruned_attention import PrunedRun, attention_of, prune_attention
from tests.dato.transformer.pipelines import run, tiny

IMAGE, TEXT = 16, 5


def attention_call(family: str, batch: int) -> tuple[Any, dict[str, Any], int]:
    """An attention module, its arguments, and how many text tokens come first among its `hidden_states`."""
    model, single = tiny("flux" if family == "flux-single" else family).transformer, family == "flux-single"
    tokens = torch.randn(batch, IMAGE + TEXT * single, 16, dtype=torch.float64)
    call: dict[str, Any] = {"hidden_states": tokens}
    if family != "pixart" and not single:
        call["encoder_hidden_states"] = torch.randn(batch, TEXT, 16, dtype=torch.float64)
    if family.startswith("flux"):
        call["image_rotary_emb"] = (torch.randn(TEXT + IMAGE, 8, dtype=torch.float64), torch.randn(TEXT + IMAGE, 8, dtype=torch.float64))
    if family == "qwen-image":
        call["image_rotary_emb"] = (torch.randn(IMAGE, 4, dtype=torch.complex64), torch.randn(TEXT, 4, dtype=torch.complex64))
    block = (model.single_transformer_blocks if single else model.transformer_blocks)[1]
    return attention_of(block), call, TEXT if single else 0


def rows_of(call: dict[str, Any], image: int, kept: list[int], text: int) -> dict[str, Any]:
    """The call of one image with its kept tokens alone."""
    found = {k: v[image : image + 1] for k, v in call.items() if k != "image_rotary_emb"}
    found["hidden_states"] = torch.stack([found["hidden_states"][0, k] for k in [*range(text), *(text + k for k in kept)]])[None]
    if "image_rotary_emb" in call:
        first, second = call["image_rotary_emb"]
        if first.is_complex():
            found["image_rotary_emb"] = (torch.stack([first[k] for k in kept]), second)
        else:
            both = [*range(TEXT), *(TEXT + k for k in kept)]
            found["image_rotary_emb"] = tuple(torch.stack([table[k] for k in both]) for table in (first, second))
    return found


@pytest.mark.parametrize(("family", "batch"), [("pixart", 2), ("sd3", 2), ("sd3.5", 2), ("flux", 1), ("flux-single", 1), ("qwen-image", 1)])
@torch.no_grad()
def test_kept_tokens_attend_and_pruned_ones_take_their_source(family: str, batch: int) -> None:
    torch.manual_seed(5)
    module, call, text = attention_call(family, batch)
    plain = module(**call)
    made = pruning.plan(call["hidden_states"][:, text:], torch.tensor([[0, 3, 9, 14]]).expand(batch, -1), 7)
    handles = prune_attention(module, lambda _tokens, _own: made, text)
    pruned = module(**call)
    for handle in handles:
        handle.remove()
    for image in range(batch):
        kept = made.keep[image].tolist()
        naive = module(**rows_of(call, image, kept, text))
        source = dict(zip(made.pruned[image].tolist(), made.source[image].tolist(), strict=True))
        expected = naive[0] if isinstance(naive, tuple) else naive
        found = pruned[0] if isinstance(pruned, tuple) else pruned
        for token in range(IMAGE):
            assert torch.allclose(found[image, text + token], expected[0, text + kept.index(source.get(token, token))], atol=1e-6)
        if isinstance(naive, tuple):
            assert torch.allclose(pruned[1][image], naive[1][0], atol=1e-6)  # text tokens all stay
        elif text:
            assert torch.allclose(found[image, :text], expected[0, :text], atol=1e-6)
    again = module(**call)
    assert torch.equal(again[0], plain[0]) and (not isinstance(plain, tuple) or torch.equal(again[1], plain[1]))


def test_rotary_embeddings_of_several_images_are_refused() -> None:
    module, call, text = attention_call("flux", 2)
    made = pruning.plan(call["hidden_states"], torch.tensor([[0, 3], [1, 2]]), 7)
    prune_attention(module, lambda _tokens, _own: made, text)
    with pytest.raises(ValueError, match="its 2 images keeps other tokens: give a batch of 1"):
        module(**call)


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_a_run_prunes_in_turn_by_the_last_two_predictions_aligned(family: str) -> None:
    pipe = tiny(family)
    plain, predictions, plans = run(pipe), list[torch.Tensor](), list[Any]()

    def note(_model: Any, _args: Any, output: Any) -> None:
        predictions.append(output[0])
        plans.append(pruned.plan)

    with PrunedRun(pipe, [0.0, 0.5]) as pruned:
        handle = pipe.transformer.register_forward_hook(note)
        changed = run(pipe)
        handle.remove()
    assert not torch.equal(changed, plain)
    assert torch.equal(run(pipe), plain)
    assert [made and made.pruned.shape for made in plans[:4]] == [None, (2, 8), None, (2, 8)]
    kind = Kind.of(torch.empty(2, 4, 8, 8), guided=True)
    base = choose_base_tokens([2], kind, [predictions[2], predictions[1]], Options(), torch.Generator())[2]
    assert torch.equal(base[0], base[1])
    for row in range(2):
        assert set(plans[3].source[row].tolist()) <= set(base[row].tolist()) <= set(plans[3].keep[row].tolist())
