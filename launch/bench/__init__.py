"""``dato bench``: the measurements behind every figure in the README, as JSON and a table."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from launch.config import ConfigError

BENCHES = {
    "unet": "[geometry=sd15] [batch=2] [dtype=float32]: one call of every action and whole schedules, against DeepCache and tomesd",
    "transformer": "[geometry=flux] [double=2] [single=4] [latent=32]: what our hook adds to a call of a transformer, and what a shallow call costs, against FirstBlockCache",
    "pipeline": "[model=embedded] [batch=20]: whole images, with text encoder, UNet and VAE apart",
    "cost": "[model=embedded] [strategies=20]: how well the cost table predicts the latency of strategies that it was not made from",
    "latency": "[model=embedded] [load=2]: how well candidates are ordered by latency while the machine is busy, in three ways",
    "intervals": "[sets=40] [counts=50,100,200]: how often 95 % intervals cover what other images give",
    "search": "[seeds=5] [candidates=500]: hypervolume over UNet MACs of our searches, Optuna, pymoo and random, on replayed evaluations",
    "fidelity": "[counts=12,25,50,100,200] [strategies=24]: how well FIDs on few images order strategies",
    "prefix": "folders=<search folders>: what resuming candidates from stored latents would have saved",
    "memory": "[geometry=sd15] [batch=2] [dtype=float32]: peak memory of a process that runs the UNet, plain and accelerated",
    "pruning": "[parts=images,calls,price] [images=100] [tokens=1024,4096]: whether pruning tokens in a diffusion transformer pays",
    "scale": "[workers=1,8,64] [mean_s=2] [simulated_workers=1000]: how busy a search keeps its workers, by way of scheduling",
    "tracking": "[candidates=2000] [steps=50]: logging the candidates of a large search into MLflow, and listing them",
}
"""Each benchmark, with its line of help, is run by the module of this package with its name."""


def run(arguments: Sequence[str]) -> int:
    """Run one benchmark, or list them."""
    if not arguments:
        print("\n".join(f"  dato bench {name:<10} {line}" for name, line in BENCHES.items()))
        return 0
    if arguments[0] not in BENCHES:
        raise ConfigError(f"there is no benchmark {arguments[0]!r}; there are {', '.join(BENCHES)}")
    return importlib.import_module(f"launch.bench.{arguments[0]}").run(arguments[1:])
