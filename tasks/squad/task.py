"""SQuAD v1.1 (arXiv 1606.05250) as the hub has it: `plain_text/{train,validation}-*.parquet`."""

from pathlib import Path

from datasets import Dataset

from leantune.parquetfiles import read_parquet


def load(folder: Path) -> dict[str, Dataset]:
    """Questions with their paragraph, all its right answers, and where the first of them starts.

    The hub's `validation` is the dev set, which is scored; the test set is not public. Questions on one paragraph
    are a group.
    """
    return {"train": _questions(folder, "train"), "test": _questions(folder, "validation")}


def _questions(folder: Path, split: str) -> Dataset:
    rows = read_parquet(folder, f"plain_text/{split}-*.parquet", ("question", "context", "answers")).to_dict()
    return Dataset.from_dict(
        {
            "text": rows["question"],
            "pair": rows["context"],
            "group": rows["context"],
            "references": [answers["text"] for answers in rows["answers"]],
            "start": [answers["answer_start"][0] for answers in rows["answers"]],
        }
    )
