"""Fixed seeded subsets: which examples are trained on, tuned on and scored, always the same for the
same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from leantune.errors import BadInput

Rows = dict[str, list[Any]]  # columns

_SPACE = re.compile(r"\s")
_REGIONS = {
    "train": (0.0, 0.8),
    "validation": (0.8, 0.9),
    "test": (0.9, 1.0),
}  # of a corpus, by characters
_FILES = ("train", "test", "validation")  # in the order in which they are drawn from
# characters of a passage per token of a block: several blocks each, so that little is cut off
_PASSAGE = 24


def split_rows(
    raw: Mapping[str, Rows], sizes: Mapping[str, int], kind: str, task: str
) -> dict[str, Rows]:
    """Train, validation and test of the sizes wanted. Validation comes out of its own file if there
    is one, else out of the training file, never the test's.

    Every class of the training file has an example in train. Examples of one `group` stay in one
    split; where there is only one file (`all`), a text that comes twice is taken once, so that no
    split repeats another's.
    """
    generator = random.Random(f"{task}-{sizes.get('seed', 0)}")
    if "all" in raw:
        rows = raw["all"]
        pools = {"train": rows, "validation": rows, "test": rows}
        free = {id(rows): _order(rows, generator, once=True)}
    else:
        pools = {"validation": raw["train"], **raw}
        free = {
            id(raw[split]): _order(raw[split], generator, once=False)
            for split in sorted(raw, key=_FILES.index)
        }
    taken: dict[str, list[int]] = {}
    first: list[int] = []
    if kind == "classification":
        left = free[id(pools["train"])]
        first = _one_of_each(pools["train"]["label"], left)
        if len(first) > sizes["train"]:
            raise BadInput(
                f"task '{task}' has {len(first)} labels and splits.train is {sizes['train']}; "
                "it must be large enough for one example of each"
            )
        kept = set(first)
        free[id(pools["train"])] = [i for i in left if i not in kept]
    for split in ("test", "validation", "train"):
        pool = pools[split]
        wanted = sizes[split] - (len(first) if split == "train" else 0)
        left = free[id(pool)]
        if len(left) < wanted:
            raise BadInput(
                f"task '{task}' has {len(left)} examples left for {split}, not {wanted}; lower splits"
            )
        taken[split] = left[:wanted]
        rest = left[wanted:]
        if "group" in pool:  # the rest of a group that was begun belongs to no other split
            used = {pool["group"][i] for i in taken[split]}
            rest = [i for i in rest if pool["group"][i] not in used]
        free[id(pool)] = rest
    taken["train"] += first
    generator.shuffle(taken["train"])
    return {split: _select(pools[split], taken[split]) for split in ("train", "validation", "test")}


def _order(rows: Rows, generator: random.Random, once: bool) -> list[int]:
    """Row numbers in a random order, examples of one group side by side."""
    seen: set[tuple[str, ...]] = set()
    groups: dict[Any, list[int]] = {}
    names = rows.get("group") or range(len(rows["text"]))
    pairs = rows.get("pair") or [""] * len(rows["text"])
    for i, (group, *texts) in enumerate(zip(names, rows["text"], pairs, strict=True)):
        if once and tuple(texts) in seen:
            continue
        seen.add(tuple(texts))
        groups.setdefault(group, []).append(i)
    order = list(groups)
    generator.shuffle(order)
    return [i for group in order for i in groups[group]]


def _one_of_each(labels: Sequence[Any], order: Sequence[int]) -> list[int]:
    first: dict[Any, int] = {}
    for i in order:
        first.setdefault(labels[i], i)
    return list(first.values())


def _select(rows: Rows, indices: Sequence[int]) -> Rows:
    return {
        column: [values[i] for i in indices] for column, values in rows.items() if column != "group"
    }


def blocks_of(
    raw: Mapping[str, Rows],
    sizes: Mapping[str, int],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    kind: str,
    task: str,
) -> dict[str, Rows]:
    """Blocks of exactly `length` tokens, drawn by seed from each split's own texts, or from
    contiguous regions of the corpus where there is only one (`all`).

    A block is a stretch of the texts joined by line ends. Masked models get their special tokens
    inside the block. Only the passages that are needed are tokenized.
    """
    generator = random.Random(f"{task}-{sizes.get('seed', 0)}")
    begin, end = frame(tokenizer) if kind == "masked_lm" else ([], [])
    body = length - len(begin) - len(end)
    corpora = {split: "\n".join(rows["text"]) for split, rows in raw.items()}
    made: dict[str, Rows] = {}
    for split, region in _REGIONS.items():
        corpus, (low, high) = (
            (corpora["all"], region) if "all" in corpora else (corpora[split], (0.0, 1.0))
        )
        passages = _passages(corpus, low * len(corpus), high * len(corpus), _PASSAGE * length)
        generator.shuffle(passages)
        rows: Rows = {"text": [], "input_ids": []}
        for passage in passages:
            ids = tokenizer(passage, add_special_tokens=False, verbose=False)["input_ids"]
            for start in range(0, len(ids) - body + 1, body):
                block = ids[start : start + body]
                rows["text"].append(tokenizer.decode(block))
                rows["input_ids"].append([*begin, *block, *end])
            if len(rows["text"]) >= sizes[split]:
                break
        if len(rows["text"]) < sizes[split]:
            raise BadInput(
                f"task '{task}' has {len(rows['text'])} blocks of {length} tokens for {split}, not {sizes[split]}; "
                f"lower splits.{split} or the length"
            )
        made[split] = {column: values[: sizes[split]] for column, values in rows.items()}
        made[split]["attention_mask"] = [[1] * length for _ in range(sizes[split])]
    return made


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after one text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    at = framed.index(plain[0])
    return framed[:at], framed[at + len(plain) :]


def _passages(text: str, low: float, high: float, size: int) -> list[str]:
    """The characters `low` to `high` in passages of about `size`, cut at white space."""
    passages = []
    start, end = _gap(text, low), _gap(text, high)
    while start < end:
        stop = min(_gap(text, start + size), end)
        passages.append(text[start:stop].strip())
        start = stop
    return passages


def _gap(text: str, position: float) -> int:
    """The first white space at or after `position`; 0 stays 0."""
    found = _SPACE.search(text, int(position)) if position else None
    return found.start() if found else (len(text) if position else 0)
