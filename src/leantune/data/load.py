"""A task's examples: fixed seeded subsets, tokenized once, and the batches that the loop asks for.

Raw examples come from the `files:` of a task.yaml (tab-separated files with three header lines),
from its `dataset:` (a data set in the hub's layout, see datasetfiles.py), or from the task's own
`task.py`, or that of the task which `loader:` names: `load(folder) -> {"all": Dataset}` or
`{"train": Dataset, "test": Dataset}`, with `validation` if it has one of its own. Columns: `text`,
`label`, `pair` where an example has two texts and, where several examples come from one document
that no two splits may share, `group`; question_answering.py and generation.py name their own. A
column `target` is the one right answer: `references` with one text in each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from leantune.api import Data
from leantune.data import generation, question_answering
from leantune.data.collate import Collate
from leantune.data.splits import SPLITS, Rows, blocks_of, split_rows
from leantune.datasetfiles import read_dataset
from leantune.errors import BadInput, naming_extras
from leantune.fetch.source import fetch
from leantune.spec.hashes import loader_folder
from leantune.spec.plugins import Plugin
from leantune.tabfiles import read_tab

if TYPE_CHECKING:
    from leantune.spec.schema import TaskFile

_CHUNK = 2000  # texts tokenized at once


def load_data(
    task: Plugin[TaskFile],
    tokenizer: PreTrainedTokenizerBase | None,
    length: int,
    splits: Mapping[str, int] | None = None,
    max_new_tokens: int | None = None,
) -> Data:
    """The task's three splits, cut to `length` tokens; `tokenizer` None (controls) leaves
    `input_ids` out.

    `splits` (the sizes and their seed) and `max_new_tokens` (of an answer that is written) are the
    task's own unless given. Class labels become indices into the sorted names (a `ClassLabel` keeps
    its own order), regression labels floats. Language models get blocks of exactly `length` tokens,
    spans windows of at most as many.

    Raises BadInput for an empty split, too few examples, or a label that training does not have.
    """
    kind, sizes = task.spec.kind, splits or task.raw["splits"]
    empty = [split for split in SPLITS if sizes.get(split, 0) < 1]
    if empty:
        raise BadInput(
            f"task '{task.name}' has an empty {empty[0]} split; set splits.{empty[0]} to 1 or more"
        )
    names: tuple[str, ...] = ()
    raw, classes = _load(task)
    for columns in raw.values():
        if "target" in columns:
            columns["references"] = [[text] for text in columns.pop("target")]
    if kind in ("causal_lm", "masked_lm"):
        if tokenizer is None:
            raise BadInput(
                f"task '{task.name}' is language modelling: it needs a model with a tokenizer"
            )
        rows = blocks_of(raw, sizes, tokenizer, length, kind=kind, task=task.name)
    else:
        rows = split_rows(raw, sizes, kind, task.name)
        if kind in ("classification", "regression"):
            names = _number_labels(rows, kind, task.name, classes)
        if tokenizer is not None:
            most = max_new_tokens or task.spec.training.max_new_tokens
            for split in SPLITS:
                rows[split] = _tokenized(kind, split, rows[split], tokenizer, length, most)
    made = {split: Dataset.from_dict(rows[split]) for split in SPLITS}
    collate = Collate.of(kind, tokenizer) if tokenizer is not None else None
    return Data(kind=kind, label_names=names, tokenizer=tokenizer, collate=collate, **made)


def load_rows(task: Plugin[TaskFile]) -> dict[str, Rows]:
    """The raw examples by file split (`train` and `test`, or `all`), as columns."""
    return _load(task)[0]


def _load(task: Plugin[TaskFile]) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The raw examples, and the names of the classes where their labels are numbers already."""
    block: Mapping[str, Any] = task.raw.get("files") or task.raw.get("dataset") or {}
    columns = {name: block[name] for name in ("text", "pair", "label", "target") if name in block}
    files = {split: block[split] for split in (*SPLITS, "all") if split in block}
    source = fetch(task.raw["source"], task.folder)
    if "files" in task.raw:
        return {split: read_tab(source / name, columns) for split, name in files.items()}, ()
    if "dataset" in task.raw:
        name = str(task.raw["source"].get("hub", source))
        loaded = read_dataset(source, files, columns, name, block.get("config"))
    else:
        loaded = dict(_own_loader(loader_folder(task.raw, task.folder))(source))
    label = next(iter(loaded.values())).features.get("label")
    classes = tuple(label.names) if isinstance(label, ClassLabel) else ()
    return {split: rows.to_dict() for split, rows in loaded.items()}, classes


def sample_hash(data: Data) -> str:
    """sha256 over the texts, their pairs and the labels (or all right answers) of train, validation
    and test, in order."""
    digest = hashlib.sha256()
    for split in (data.train, data.validation, data.test):
        columns = split.column_names
        right = next((column for column in ("references", "label") if column in columns), None)
        labels = split[right] if right else [None] * len(split)
        for text, label in zip(split["text"], labels, strict=True):
            digest.update(f"{label!r}\t{len(text)}\t{text}\n".encode("utf-8", "surrogatepass"))
        for pair in split["pair"] if "pair" in columns else ():
            digest.update(f"{len(pair)}\t{pair}\n".encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _tokenized(
    kind: str,
    split: str,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    max_new_tokens: int | None,
) -> Rows:
    """A split's examples with their tokens; the written answers of a test split are not among
    them."""
    if kind == "span":
        return question_answering.windows(rows, tokenizer, length, located=split != "train")
    if kind == "seq2seq_lm":
        written = split == "test" and max_new_tokens is not None
        apart = generation.encode_apart(rows, tokenizer, length, max_new_tokens, not written)
        return {**rows, **apart}
    if kind == "generation":
        assert max_new_tokens is not None  # a task of this kind has it
        answered = split != "test"
        return {**rows, **generation.encode(rows, tokenizer, length, max_new_tokens, answered)}
    return {**rows, **_tokens(rows, tokenizer, length)}


def _tokens(rows: Rows, tokenizer: PreTrainedTokenizerBase, length: int) -> Rows:
    """`input_ids` cut to `length`, and `token_type_ids` of pairs where the tokenizer makes them.

    Two texts are framed as the tokenizer frames pairs and the longer one is cut first; for a
    tokenizer without a separator they are one text with a line end between. Words of a single text
    that cannot be among the tokens are dropped first: newsgroups run to pages.
    """
    texts, pairs = rows["text"], rows.get("pair")
    if pairs is not None and tokenizer.sep_token is None:
        texts, pairs = [f"{text}\n{pair}" for text, pair in zip(texts, pairs, strict=True)], None
    words = re.compile(rf"(?:\s*\S+){{0,{length + 16}}}")
    columns: Rows = {"input_ids": []}
    for start in range(0, len(texts), _CHUNK):
        end = start + _CHUNK
        if pairs is None:
            found = [words.match(text) for text in texts[start:end]]
            given = [[match[0] for match in found if match]]  # all of them match
        else:
            given = [texts[start:end], pairs[start:end]]
        made = tokenizer(*given, truncation=True, max_length=length)
        kept = ["input_ids", *(["token_type_ids"] if pairs and "token_type_ids" in made else [])]
        for name in kept:
            columns.setdefault(name, []).extend(made[name])
    return {**columns, "attention_mask": [[1] * len(ids) for ids in columns["input_ids"]]}


def _number_labels(
    splits: dict[str, Rows], kind: str, task: str, classes: tuple[str, ...]
) -> tuple[str, ...]:
    """Replace labels by numbers, in place; returns the class names: `classes`, whose numbers the
    labels are already, or else the sorted labels."""
    if kind == "regression":
        for rows in splits.values():
            rows["label"] = [float(label) for label in rows["label"]]
        return ()
    names = classes or tuple(sorted({str(label) for label in splits["train"]["label"]}))
    numbers = {name: i for i, name in enumerate(names)}
    for split, rows in splits.items():
        if classes:
            hidden = set(rows["label"]) - set(range(len(classes)))
            if hidden:
                raise BadInput(
                    f"label {min(hidden)} of task '{task}' in the {split} split is none of its "
                    f"{len(classes)} classes; a split whose labels are hidden cannot be used"
                )
            continue
        unseen = {str(label) for label in rows["label"]} - set(names)
        if unseen:
            raise BadInput(
                f"label '{min(unseen)}' of task '{task}' is in the {split} split and never in "
                "training; leave its examples out or enlarge splits.train"
            )
        rows["label"] = [numbers[str(label)] for label in rows["label"]]
    return names


def _own_loader(folder: Path) -> Callable[[Path], Mapping[str, Dataset]]:
    path = folder / "task.py"
    if not path.is_file():
        raise BadInput(
            f"task {folder.name} has neither `files:` in task.yaml nor a task.py with load(folder)"
        )
    spec = importlib.util.spec_from_file_location(f"leantune_task_{folder.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with naming_extras(f"task '{folder.name}'"):
        spec.loader.exec_module(module)
    return module.load
