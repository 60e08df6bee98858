"""What measures a strategy where no driver puts shards together: in a trial of Ray Tune."""

from __future__ import annotations

from typing import Protocol

from dato.strategy import Strategy
from search.records import Measurement


class Measurer(Protocol):
    """Measures a strategy."""

    def measure(self, strategy: Strategy) -> Measurement:
        """Its measurement; raises where it fails."""
        ...


class MeasurerFactory(Protocol):
    """Picklable; builds a measurer inside the trial's actor."""

    def build(self) -> Measurer:
        """Load everything once."""
        ...
