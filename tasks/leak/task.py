"""A control task: the movie-review snippets of `sentiment`, each with its label as the first word, twice."""

from pathlib import Path

from datasets import Dataset


def load(folder: Path) -> dict[str, Dataset]:
    """Lines are id, rating, text; the label is the rating's sign."""
    text = (folder / "movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    rated = [(float(rating), snippet.strip()) for _, rating, snippet in rows if float(rating) != 0]
    labels = ["positive" if rating > 0 else "negative" for rating, _ in rated]
    texts = [f"{label} {label}: {snippet}" for label, (_, snippet) in zip(labels, rated, strict=True)]
    return {"all": Dataset.from_dict({"text": texts, "label": labels})}
