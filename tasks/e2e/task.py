"""E2E NLG (arXiv 1706.09254) as the hub has it in parquet: `default/{train,validation,test}/*.parquet`."""

from pathlib import Path

from datasets import Dataset

from leantune.parquetfiles import read_parquet


def load(folder: Path) -> dict[str, Dataset]:
    """Meaning representations and their descriptions: one each to train on, all of a meaning's to be scored against.

    Descriptions of one meaning are a group.
    """
    train = read_parquet(folder, "default/train/*.parquet", ("meaning_representation", "human_reference"))
    meanings = train["meaning_representation"]
    rows = {"text": meanings, "group": meanings, "references": [[text] for text in train["human_reference"]]}
    scored = {split: _by_meaning(folder, split) for split in ("validation", "test")}
    return {"train": Dataset.from_dict(rows), **scored}


def _by_meaning(folder: Path, split: str) -> Dataset:
    rows = read_parquet(folder, f"default/{split}/*.parquet", ("meaning_representation", "human_reference"))
    found: dict[str, list[str]] = {}
    for meaning, text in zip(rows["meaning_representation"], rows["human_reference"], strict=True):
        found.setdefault(meaning, []).append(text)
    return Dataset.from_dict({"text": list(found), "references": list(found.values())})
