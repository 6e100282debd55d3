"""Loss and perplexity of a language model."""

from __future__ import annotations

import math

from leantune.metrics.local import REAL, LocalMetric


class Metric(LocalMetric):
    """Predictions are the summed negative log-likelihoods of examples in nats, references their
    token counts.

    `loss` is the mean negative log-likelihood per token over all tokens, so that long examples
    count more. `perplexity` is its exponential, infinite where that overflows.
    """

    values = (REAL, REAL)

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        loss = float(sum(predictions) / sum(references))
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
