"""SQuAD v1.1 (arXiv 1606.05250) as the hub has it."""

from pathlib import Path

from datasets import Dataset

from leantune.datasetfiles import read_dataset

SPLITS = {"train": "train", "test": "validation"}  # the dev set is scored; the test set is not public
COLUMNS = {"text": "question", "pair": "context", "answers": "answers"}


def load(folder: Path) -> dict[str, Dataset]:
    """Questions with their paragraph, all its right answers, and where the first of them starts.

    Questions on one paragraph are a group.
    """
    return {split: _questions(rows) for split, rows in read_dataset(folder, SPLITS, COLUMNS, str(folder)).items()}


def _questions(rows: Dataset) -> Dataset:
    columns = rows.to_dict()
    answers = columns.pop("answers")
    return Dataset.from_dict(
        {
            **columns,
            "group": columns["pair"],
            "references": [each["text"] for each in answers],
            "start": [each["answer_start"][0] for each in answers],
        }
    )
