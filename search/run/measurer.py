"""What measures a strategy where no driver puts shards together: in a trial of Ray Tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dato.strategy import Strategy
from search.evaluate.evaluator import EvaluatorSpec
from search.evaluate.measure import Metrics, load_metrics, measure
from search.measurements import Measurement
from search.metrics.similarity import PlainFeatures, with_distance


class Measurer(Protocol):
    """Measures a strategy. Picklable until it is built, inside the trial's actor."""

    def build(self) -> Measurer:
        """Load everything once."""
        ...

    def measure(self, strategy: Strategy) -> Measurement:
        """Its measurement; raises where it fails."""
        ...


@dataclass
class PipelineMeasurer:
    """An evaluator with its metrics.

    Attributes:
        spec: The evaluator's.
        metrics: With their reference, made once for all trials; None to make them where this is built.
        plain: Of the unaccelerated images, for feature distances; None for none.
    """

    spec: EvaluatorSpec
    metrics: Metrics | None = None
    plain: PlainFeatures | None = None

    def build(self) -> PipelineMeasurer:
        """Load everything once."""
        self._evaluator, self._metrics = self.spec.build(), self.metrics or load_metrics(self.spec)
        return self

    def measure(self, strategy: Strategy) -> Measurement:
        """On the protocol's least number of images. Raises where the images or their features are no good."""
        protocol = self.spec.protocol
        shards = self._evaluator.run([strategy], protocol.batches(last=protocol.counts[0]))
        return with_distance(measure(shards, self._metrics), shards, self.plain)
