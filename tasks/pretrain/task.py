"""All texts of the language-modelling tasks: Friends episodes, tales and book excerpts."""

import random
from itertools import groupby
from pathlib import Path

from datasets import Dataset

from leantune.tabfiles import read_tab

TALES = {"grimm-tales.tab": "Content", "andersen.tab": "Content", "book-excerpts.tab": "Text"}


def load(folder: Path) -> dict[str, Dataset]:
    """Whole episodes, tales and excerpts, in a fixed random order."""
    lines = read_tab(folder / "friends-transcripts.tab", {"text": "Quote", "episode": "Season & Episode"})
    spoken = zip(lines["episode"], lines["text"], strict=True)
    texts = ["\n".join(text for _, text in part) for _, part in groupby(spoken, key=lambda line: line[0])]
    for name, column in TALES.items():
        texts += read_tab(folder / name, {"text": column})["text"]
    random.Random(0).shuffle(texts)
    return {"all": Dataset.from_dict({"text": texts})}
