"""A control without a language model: scikit-learn's TF-IDF with a linear model."""

from __future__ import annotations

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
        features = vectorizer.fit_transform(list(data.train["text"]))
        if data.kind == "regression":
            model = Ridge(alpha=self.params["alpha"])
        else:
            model = LogisticRegression(C=self.params["c"], max_iter=1000)
        model.fit(features, labels)
        return [float(y) for y in model.predict(vectorizer.transform(list(data.test["text"])))]
