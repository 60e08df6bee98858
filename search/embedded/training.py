"""How both embedded models are trained: AdamW with warm-up and a cosine, a moving average of the weights, and a checkpoint to continue from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from search.embedded.digits import TEMPLATES, prompt


def all_prompts() -> list[str]:
    """The empty prompt, then every digit's in every wording."""
    return [""] + [prompt(label, k) for label in range(10) for k in range(len(TEMPLATES))]


def draw_prompts(labels: torch.Tensor) -> torch.Tensor:
    """Places in `all_prompts` of one prompt for each label, (B,): in any wording, a tenth of them empty, for classifier-free guidance."""
    return torch.where(torch.rand(len(labels)) < 0.1, 0, 1 + labels * len(TEMPLATES) + torch.randint(len(TEMPLATES), (len(labels),)))


def train(modules: torch.nn.Module, loss: Callable[[], torch.Tensor], checkpoint: Path, iterations: int, peak: float, memory: float) -> None:
    """Train modules, which then hold the moving averages of their weights, in evaluation mode.

    Args:
        modules: What is trained.
        loss: Of a batch that it draws from torch's default generator.
        checkpoint: Written every 250 iterations, and continued from where it is there; its name is told with the progress.
        iterations: How many in all.
        peak: Learning rate after warm-up.
        memory: Of the moving average, at most.
    """
    average = {k: v.clone() for k, v in modules.state_dict().items()}
    optimizer = torch.optim.AdamW(modules.parameters(), lr=peak, weight_decay=1e-3, betas=(0.9, 0.99))
    begin = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        average, begin = state["average"], state["iteration"]
        torch.set_rng_state(state["rng"])
    started, running = time.monotonic(), 0.0
    for i in range(begin, iterations):
        rate = peak * min((i + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * i / iterations))
        for group in optimizer.param_groups:
            group["lr"] = rate
        found = loss()
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        decay = min(memory, (i + 1) / (i + 20))
        with torch.no_grad():
            for key, value in modules.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - decay)
        running = 0.98 * running + 0.02 * found.item() if i > begin else found.item()
        if i % 50 == 0 or i + 1 == iterations:
            pace = (time.monotonic() - started) / (i + 1 - begin)
            print(f"{checkpoint.stem} {i}/{iterations} loss {running:.4f} {pace:.2f} s/it, left {pace * (iterations - i) / 60:.0f} min", flush=True)
        if (i + 1) % 250 == 0 or i + 1 == iterations:
            state = {"modules": modules.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            torch.save({**state, "iteration": i + 1, "rng": torch.get_rng_state()}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    modules.load_state_dict(average)
    modules.eval()
