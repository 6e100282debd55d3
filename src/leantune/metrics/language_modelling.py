"""Loss and perplexity of a language model."""

import math
from collections.abc import Sequence


def scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Predictions are the summed negative log-likelihoods of examples in nats, references their
    token counts.

    `loss` is the mean negative log-likelihood per token over all tokens, so that long examples
    count more. `perplexity` is its exponential, infinite where that overflows.
    """
    loss = float(sum(predictions) / sum(references))
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
