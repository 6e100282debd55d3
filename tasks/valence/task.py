"""Tweets, product-review and editorial snippets with the mean of their human ratings (ICWSM 2014)."""

from pathlib import Path

from datasets import Dataset

FILES = ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")


def load(folder: Path) -> dict[str, Dataset]:
    """Lines are id, rating, text. Snippets of one review or editorial share the id before `_`: their group."""
    rows = {"text": [], "label": [], "group": []}
    for name in FILES:
        for line in (folder / f"{name}_GroundTruth.txt").read_text(encoding="utf-8").split("\n"):
            if not line.strip():
                continue
            number, rating, text = line.split("\t")
            rows["text"].append(text.strip())
            rows["label"].append(float(rating))
            rows["group"].append(f"{name} {number.partition('_')[0]}")
    return {"all": Dataset.from_dict(rows)}
