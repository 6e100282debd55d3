"""Movie-review snippets with the mean of their human ratings, from Hutto and Gilbert (ICWSM 2014)."""

from pathlib import Path

from datasets import Dataset


def load(folder: Path) -> dict[str, Dataset]:
    """Lines are id, rating, text. The few snippets rated exactly 0 have no polarity and are left out."""
    text = (folder / "movieReviewSnippets_GroundTruth.txt").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    rated = [(float(rating), snippet.strip()) for _, rating, snippet in rows if float(rating) != 0]
    labels = ["positive" if rating > 0 else "negative" for rating, _ in rated]
    return {"all": Dataset.from_dict({"text": [snippet for _, snippet in rated], "label": labels})}
