"""E2E NLG (arXiv 1706.09254) as the hub has it in parquet."""

from pathlib import Path

from datasets import Dataset

from leantune.datasetfiles import read_dataset

SPLITS = {split: split for split in ("train", "validation", "test")}
COLUMNS = {"text": "meaning_representation", "reference": "human_reference"}


def load(folder: Path) -> dict[str, Dataset]:
    """Meaning representations and their descriptions: one each to train on, all of a meaning's to be scored against.

    Descriptions of one meaning are a group.
    """
    read = read_dataset(folder, SPLITS, COLUMNS, str(folder))
    train = read.pop("train")
    rows = {"text": train["text"], "group": train["text"], "references": [[text] for text in train["reference"]]}
    return {"train": Dataset.from_dict(rows), **{split: _by_meaning(rows) for split, rows in read.items()}}


def _by_meaning(rows: Dataset) -> Dataset:
    found: dict[str, list[str]] = {}
    for meaning, text in zip(rows["text"], rows["reference"], strict=True):
        found.setdefault(meaning, []).append(text)
    return Dataset.from_dict({"text": list(found), "references": list(found.values())})
