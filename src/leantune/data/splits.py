"""Fixed seeded subsets: which examples are trained on, tuned on and scored, always the same for the
same seed."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from leantune.errors import BadInput

Rows = dict[str, list[Any]]  # columns

SPLITS = ("train", "validation", "test")
_SPACE = re.compile(r"\s")
# of a corpus, by characters
_REGIONS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
_FILES = ("train", "test", "validation", "all")  # in the order in which they are shuffled
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
    file_of = {
        split: "all" if "all" in raw else split if split in raw else "train" for split in SPLITS
    }
    # file -> its rows that are in no split yet, in a random order
    left = {
        file: _order(raw[file], generator, once=file == "all")
        for file in sorted(set(file_of.values()), key=_FILES.index)
    }
    first: dict[Any, int] = {}  # label -> a row that has it
    if kind == "classification":
        file = file_of["train"]
        for i in left[file]:
            first.setdefault(raw[file]["label"][i], i)
        if len(first) > sizes["train"]:
            raise BadInput(
                f"task '{task}' has {len(first)} labels and splits.train is {sizes['train']}; "
                "it must be large enough for one example of each"
            )
        kept = set(first.values())
        left[file] = [i for i in left[file] if i not in kept]
    taken: dict[str, list[int]] = {}
    for split in ("test", "validation", "train"):
        file = file_of[split]
        wanted = sizes[split] - (len(first) if split == "train" else 0)
        if len(left[file]) < wanted:
            raise BadInput(
                f"task '{task}' has {len(left[file])} examples left for {split}, not {wanted}; "
                "lower splits"
            )
        taken[split], left[file] = left[file][:wanted], left[file][wanted:]
        if "group" in raw[file]:  # the rest of a group that was begun belongs to no other split
            groups = raw[file]["group"]
            used = {groups[i] for i in taken[split]}
            left[file] = [i for i in left[file] if groups[i] not in used]
    taken["train"] += first.values()
    generator.shuffle(taken["train"])
    return {split: _select(raw[file_of[split]], taken[split]) for split in SPLITS}


def _order(rows: Rows, generator: random.Random, once: bool) -> list[int]:
    """Row numbers in a random order, examples of one group side by side; with `once` the first of
    equal texts only."""
    groups: dict[Any, list[int]] = {}
    seen = set()
    names = rows.get("group") or range(len(rows["text"]))
    pairs = rows.get("pair") or [""] * len(rows["text"])
    for i, (group, *texts) in enumerate(zip(names, rows["text"], pairs, strict=True)):
        if not once or tuple(texts) not in seen:
            groups.setdefault(group, []).append(i)
        seen.add(tuple(texts))
    order = list(groups)
    generator.shuffle(order)
    return [i for group in order for i in groups[group]]


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
        corpus = corpora["all" if "all" in corpora else split]
        low, high = region if "all" in corpora else (0.0, 1.0)
        passages = _passages(corpus, low * len(corpus), high * len(corpus), _PASSAGE * length)
        generator.shuffle(passages)
        texts: list[Any] = []
        ids: list[list[int]] = []
        for passage in passages:
            tokens = tokenizer(passage, add_special_tokens=False, verbose=False)["input_ids"]
            blocks = [tokens[i : i + body] for i in range(0, len(tokens) - body + 1, body)]
            texts += [tokenizer.decode(block) for block in blocks]
            ids += [[*begin, *block, *end] for block in blocks]
            if len(ids) >= sizes[split]:
                break
        if len(ids) < sizes[split]:
            raise BadInput(
                f"task '{task}' has {len(ids)} blocks of {length} tokens for {split}, not "
                f"{sizes[split]}; lower splits.{split} or the length"
            )
        made[split] = {
            "text": texts[: sizes[split]],
            "input_ids": ids[: sizes[split]],
            "attention_mask": [[1] * length for _ in range(sizes[split])],
        }
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
