"""Small data sets in the columns and files that the hub's SQuAD and E2E NLG have, made of sentences
of our own, and cells on them."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hub_samples import write_repository
from tests.host import Host, cell_words

from leantune.files import record

TOWNS = ["Ashford", "Brixham", "Corby", "Dunster", "Elland", "Fowey", "Goole", "Hythe"]
THINGS = [
    "the old mill",
    "a stone bridge",
    "the town hall",
    "a glass lighthouse",
    "the market cross",
]
NAMES = ["Blue Spice", "The Mill", "Green Man", "Cotto", "Zizzi", "The Punter"]


def write_squad(folder: Path, train: int = 60, dev: int = 12) -> Path:
    """The config `plain_text` with `train` and `validation`, three questions to a paragraph."""
    generator = random.Random(0)
    splits = {}
    for split, count in (("train", train), ("validation", dev)):
        rows = [row for n in range(-(-count // 3)) for row in _paragraph(n, split, generator)][
            :count
        ]
        splits[split] = Dataset.from_list(rows)
    write_repository(folder, {"plain_text": splits})
    return folder


def _paragraph(number: int, split: str, generator: random.Random) -> list[dict[str, Any]]:
    town, other = generator.sample(TOWNS, 2)
    thing, year = generator.choice(THINGS), str(generator.randint(1200, 1990))
    more = " ".join(
        f"The road to {generator.choice(TOWNS)} is {generator.randint(2, 90)} miles long."
        for _ in range(4)
    )
    context = f"{town} lies north of {other}. {more} Its pride is {thing}, built in {year}."
    asked = {
        f"Which town has {thing}?": town,
        "When was it built?": year,
        f"What is {town} proud of?": thing,
    }
    rows = []
    for i, (question, answer) in enumerate(asked.items()):
        texts = [answer] if split == "train" else [answer, answer.removeprefix("the "), answer]
        answers = {"text": texts, "answer_start": [context.index(text) for text in texts]}
        name = f"{split}-{number}-{i}"
        rows.append(
            {
                "id": name,
                "title": town,
                "context": context,
                "question": question,
                "answers": answers,
            }
        )
    return rows


def write_e2e(folder: Path, train: int = 60, scored: int = 10) -> Path:
    """As the hub's branch of converted files has them, without a README:
    `default/{train,validation,test}/0000.parquet`, one to three descriptions of a meaning."""
    generator = random.Random(0)
    for split, count in (("train", train), ("validation", scored), ("test", scored)):
        rows: list[dict[str, Any]] = []
        for number in range(count):
            name, town = generator.choice(NAMES), generator.choice(TOWNS)
            meaning = f"name[{name}], eatType[pub], area[{town}], number[{split} {number}]"
            texts = [
                f"{name} is a pub in {town}.",
                f"There is a pub, {name}, in {town}.",
                f"In {town} is {name}.",
            ]
            rows += [
                {"meaning_representation": meaning, "human_reference": text}
                for text in texts[: generator.randint(1, 3)]
            ]
        file = folder / "default" / split / "0000.parquet"
        file.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return folder


def plugin(root: Path, task: str, settings: str) -> Path:
    """A plugin folder with the task `<task>-sample`: the task's loader on files of our own in its
    folder `data`."""
    folder = root / "tasks" / f"{task}-sample"
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text(
        f"name: {task}-sample\nsummary: A few examples in the columns of {task}.\nloader: {task}\n"
        f"source: {{local: data}}\n{settings}\n"
    )
    {"squad": write_squad, "e2e": write_e2e}[task](folder / "data")
    return root


def run_sample(host: Host, root: Path, out: Path, method: str, model: str, task: str) -> Any:
    """The record of a cell of a task in a plugin folder."""
    done = host.run(
        cell_words(method, out, model=model, task=task),
        environment={**os.environ, "LEANTUNE_PLUGINS": str(root)},
    )
    assert done.returncode == 0, done.stderr
    row = record.read_record(out)
    assert row["status"] == "ok", row["reason"]
    return row


def check_answers(row: Any, count: int, metrics: set[str]) -> None:
    """A record of a task whose answers are texts: a score of each example, whose mean is the
    task's."""
    quality = row["quality"]
    assert len(quality["predictions"]) == len(quality["references"]) == count
    assert quality["value"] == pytest.approx(sum(quality["predictions"]) / count, abs=1e-4)
    assert set(quality["metrics"]) == metrics
    assert len(quality["curve"]) == 1
    assert row["memory"]["predicted"]["peak_bytes"] == row["memory"]["tensors"]["peak_bytes"]
    assert row["inference"]["tokens_per_second"] > 0
