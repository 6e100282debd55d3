"""Small data sets with the files, columns, features and front matter of the hub's repositories,
random words in them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_INFERENCE = ["entailment", "neutral", "contradiction"]
# Of each config: its text columns, the class names (None: a number), and its splits.
_PLAIN = ("train", "validation", "test")
GLUE: dict[str, tuple[tuple[str, ...], list[str] | None, tuple[str, ...]]] = {
    "ax": (("premise", "hypothesis"), _INFERENCE, ("test",)),
    "cola": (("sentence",), ["unacceptable", "acceptable"], _PLAIN),
    "mnli": (
        ("premise", "hypothesis"),
        _INFERENCE,
        ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
    ),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"], _PLAIN),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"], _PLAIN),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"], _PLAIN),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"], _PLAIN),
    "sst2": (("sentence",), ["negative", "positive"], _PLAIN),
    "stsb": (("sentence1", "sentence2"), None, _PLAIN),
    "wnli": (("sentence1", "sentence2"), ["not_entailment", "entailment"], _PLAIN),
}
SIZES = {"train": 60, "validation": 20, "test": 20}
_WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "saw",
    "old",
    "new",
    "house",
    "river",
    "quickly",
    "never",
    "people",
    "who",
    "and",
    "with",
    "to",
    "of",
]


def sentence(generator: random.Random, words: int = 9) -> str:
    return " ".join(generator.choices(_WORDS, k=words)).capitalize() + "."


def write_repository(
    folder: Path, configs: dict[str, dict[str, datasets.Dataset]], skip: tuple[str, ...] = ()
) -> None:
    """Parquet files and a README.md that declares them, as a push to the hub makes them; the files
    of the configs in `skip` are declared and left out. The files carry no features of `datasets`,
    so those of the README count."""
    infos, declared = [], []
    for config, splits in configs.items():
        features = next(iter(splits.values())).features
        infos.append({"config_name": config, "features": features._to_yaml_list()})
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        declared.append({"config_name": config, "data_files": files})
        for split, rows in splits.items() if config not in skip else ():
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table: pa.Table = rows.data.table
            pq.write_table(table.replace_schema_metadata(None), path)
    front = yaml.safe_dump({"dataset_info": infos, "configs": declared}, sort_keys=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front}---\n# A sample\n")


def _classified(
    columns: tuple[str, ...],
    names: list[str] | None,
    split: str,
    generator: random.Random,
    with_idx: bool,
) -> datasets.Dataset:
    """GLUE hides the labels of its test splits: they are -1."""
    count = SIZES[split.partition("_")[0]]
    rows: dict[str, list[Any]] = {
        column: [sentence(generator) for _ in range(count)] for column in columns
    }
    if with_idx and split.startswith("test"):
        rows["label"] = [-1] * count
    else:
        rows["label"] = [
            i % len(names) if names else round(generator.uniform(0, 5), 2) for i in range(count)
        ]
    label = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
    features: dict[str, Any] = {
        **{column: datasets.Value("string") for column in columns},
        "label": label,
    }
    if with_idx:
        rows["idx"], features["idx"] = list(range(count)), datasets.Value("int32")
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


def _articles(lines: int, generator: random.Random) -> datasets.Dataset:
    """Lines as WikiText has them: a heading, empty lines, paragraphs that end with a line end."""
    kinds = [
        lambda: "",
        lambda: f" = {sentence(generator, 2)} = \n",
        lambda: f" {sentence(generator, 60)} \n",
    ]
    return datasets.Dataset.from_dict({"text": [kinds[i % 3]() for i in range(lines)]})


def write_mirror(root: Path) -> None:
    """`nyu-mll/glue`, `facebook/xnli` (English) and `Salesforce/wikitext` (version 2, raw) below
    `root`."""
    generator = random.Random(0)
    glue = {
        config: {split: _classified(columns, names, split, generator, True) for split in splits}
        for config, (columns, names, splits) in GLUE.items()
    }
    write_repository(root / "nyu-mll/glue", glue, skip=("ax",))
    languages = ("all_languages", "ar", "en")
    xnli = {
        language: {
            split: _classified(("premise", "hypothesis"), _INFERENCE, split, generator, False)
            for split in _PLAIN
        }
        for language in languages
    }
    write_repository(root / "datasets/facebook/xnli", xnli, skip=("all_languages", "ar"))
    configs = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    lines = {"test": 60, "train": 300, "validation": 60}
    wikitext = {
        c: {split: _articles(count, generator) for split, count in lines.items()} for c in configs
    }
    write_repository(root / "Salesforce/wikitext", wikitext, skip=configs[:1])
