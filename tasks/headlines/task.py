"""Reports of the Reuters collection R52, without their headlines."""

from pathlib import Path

from datasets import Dataset

from leantune.tabfiles import read_tab

LONGEST = 12  # words of a headline; what is longer has some of the report in it


def load(folder: Path) -> dict[str, Dataset]:
    """The report as `text`, its headline as `target`, by the collection's own splits."""
    return {split: _pairs(folder / f"reuters-r52-{split}.tab") for split in ("train", "test")}


def _pairs(file: Path) -> Dataset:
    """The collection has both in one line. A report that is about a company begins with the company's name, as its
    headline does: the headline ends where its first two words come again. Other reports are left out."""
    found: dict[str, str] = {}
    for line in read_tab(file, {"text": "Text"})["text"]:
        words = line.split()
        begins = (i for i in range(3, LONGEST + 1) if words[i : i + 2] == words[:2])
        if end := next(begins, 0):
            found.setdefault(" ".join(words[end:]), " ".join(words[:end]))
    return Dataset.from_dict({"text": list(found), "target": list(found.values())})
