"""A control of the score: guesses that know the training labels and nothing of the texts."""

from __future__ import annotations

import random

from leantune.api import Context, Data, Method


class Random(Method):
    def fit_predict(self, data: Data, ctx: Context) -> list[float]:
        """One guess for each test example: a training label drawn with replacement, or for regression the training
        labels in a random order, from the first again where the test split is longer."""
        generator = random.Random(f"random-{ctx.seed}")
        labels = [float(label) for label in data.train["label"]]
        count = len(data.test)
        if data.kind == "classification":
            return generator.choices(labels, k=count)
        generator.shuffle(labels)
        return [labels[i % len(labels)] for i in range(count)]
