"""The tales of Grimm and Andersen and excerpts from children's and adults' books."""

import random
from pathlib import Path

from datasets import Dataset

from leantune.tabfiles import read_tab

FILES = {"grimm-tales.tab": "Content", "andersen.tab": "Content", "book-excerpts.tab": "Text"}


def load(folder: Path) -> dict[str, Dataset]:
    """Whole tales and excerpts, in a fixed random order so that every part of the corpus holds all three kinds."""
    texts = [text for name, column in FILES.items() for text in read_tab(folder / name, {"text": column})["text"]]
    random.Random(0).shuffle(texts)
    return {"all": Dataset.from_dict({"text": texts})}
