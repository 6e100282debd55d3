"""A control without a language model: scikit-learn's TF-IDF with a linear model."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from leantune.api import BadInput, Context, Data, Method


class Tfidf(Method):
    def fit_predict(self, data: Data, ctx: Context) -> list[float]:
        """One prediction for each test example: a class index, or the regression value."""
        labels = list(data.train["label"])
        if data.kind == "classification" and len(set(labels)) < 2:
            raise BadInput(f"the training split has {len(set(labels))} class(es); tfidf needs two or more")
        vectorizer = TfidfVectorizer(ngram_range=(1, self.params["ngrams"]))
        vectorizer.fit([*data.train["text"], *(data.train["pair"] if "pair" in data.train.column_names else ())])
        if data.kind == "regression":
            model = Ridge(alpha=self.params["alpha"])
        else:
            model = LogisticRegression(C=self.params["c"], max_iter=1000)
        model.fit(_features(vectorizer, data.train), labels)
        return [float(y) for y in model.predict(_features(vectorizer, data.test))]


def _features(vectorizer: TfidfVectorizer, rows: Dataset) -> Any:
    """The words of a text; of a pair those of the first, of the second, and of both."""
    first = vectorizer.transform(rows["text"])
    if "pair" not in rows.column_names:
        return first
    second = vectorizer.transform(rows["pair"])
    return sparse.hstack([first, second, first.multiply(second)], format="csr")
