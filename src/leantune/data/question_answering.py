"""Questions answered by a span of a context (kind `span`): its windows of tokens, and the best span
over them.

A context longer than the model reads is cut into windows that overlap, as BERT does for SQuAD
(arXiv 1810.04805, section 4.2 and its released code): a question has at most 64 of 384 tokens,
windows share 128, an answer has at most 30. Here the first two are a sixth and a third of the
length, so that other lengths work the same way.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from leantune.data.splits import Rows
from leantune.errors import BadInput

LONGEST = 30  # tokens of an answer
SHORTEST_LENGTH = 12  # of a window: below it the overlap leaves no room to go on
_CHUNK = 2000  # examples tokenized at once


def windows(rows: Rows, tokenizer: PreTrainedTokenizerBase, length: int, located: bool) -> Rows:
    """The examples as windows of at most `length` tokens: one or more of each, in order.

    Examples have `text` (the question), `pair` (the context), `references` (the right answers) and
    `start` (the first character of the first of them in the context). A window has these, the
    number of its `example`, `input_ids`, `token_type_ids` where the tokenizer makes them, and
    `label`, the first and last token of the first answer. Where a window does not hold the whole
    answer both are the class token, as in BERT's code: the model learns that most windows of a long
    context have none. With `located` (what is evaluated) each token of the context has its
    characters, `begins` to `ends`; other tokens have -1.

    Raises BadInput for a length below 12, a tokenizer without a class token, or an answer that is
    not where it should.
    """
    if length < SHORTEST_LENGTH:
        raise BadInput(
            f"answers are looked for in windows of {SHORTEST_LENGTH} tokens or more; length is "
            f"{length}"
        )
    if tokenizer.cls_token_id is None:
        raise BadInput(
            "spans need a tokenizer with a class token, which an encoder has; take another model"
        )
    made: Rows = {name: [] for name in (*rows, "example", "input_ids", "attention_mask", "label")}
    made |= {name: [] for name in ("token_type_ids",) if name in tokenizer.model_input_names}
    made |= {name: [] for name in ("begins", "ends") if located}
    for first in range(0, len(rows["text"]), _CHUNK):
        chunk = {name: values[first : first + _CHUNK] for name, values in rows.items()}
        _add_windows(made, chunk, first, tokenizer, length)
    return made


def _add_windows(
    made: Rows, rows: Rows, first: int, tokenizer: PreTrainedTokenizerBase, length: int
) -> None:
    found = tokenizer(
        _cut(rows["text"], tokenizer, length // 6),
        rows["pair"],
        truncation="only_second",
        max_length=length,
        stride=length // 3,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    for window, row in enumerate(found["overflow_to_sample_mapping"]):
        ids, sequences = found["input_ids"][window], found.sequence_ids(window)
        places = zip(found["offset_mapping"][window], sequences, strict=True)
        characters = [place if sequence == 1 else (-1, -1) for place, sequence in places]
        answer, start, context = rows["references"][row][0], rows["start"][row], rows["pair"][row]
        if context[start : start + len(answer)] != answer or not answer:
            raise BadInput(
                f"example {first + row}: '{answer[:60]}' does not start at character {start} of "
                "its context"
            )
        cls = ids.index(tokenizer.cls_token_id)
        for name, values in rows.items():
            made[name].append(values[row])
        made["example"].append(first + row)
        made["input_ids"].append(ids)
        made["attention_mask"].append([1] * len(ids))
        made["label"].append(tokens_of(characters, start, start + len(answer)) or (cls, cls))
        if "token_type_ids" in made:
            made["token_type_ids"].append(found["token_type_ids"][window])
        if "begins" in made:
            made["begins"].append([begin for begin, _ in characters])
            made["ends"].append([end for _, end in characters])


def tokens_of(characters: list[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """The first and last token that have characters from `start` to before `end`; None where some
    lie outside.

    `characters` has each token's own, first to before last, in order; (-1, -1) for tokens outside
    the context.
    """
    context = [token for token, (begin, _) in enumerate(characters) if begin >= 0]
    if not context or characters[context[0]][0] > start or characters[context[-1]][1] < end:
        return None
    touched = [
        token for token in context if characters[token][1] > start and characters[token][0] < end
    ]
    return (touched[0], touched[-1]) if touched else None


def best_spans(starts: Tensor, ends: Tensor, inside: Tensor) -> list[tuple[float, int, int]]:
    """(score, first token, last token) of each window's best span. All arguments are (windows,
    length).

    A span lies `inside`, does not end before it starts, and has at most 30 tokens.
    """
    inside = inside.to(starts.device)
    forward = torch.ones(starts.shape[1], starts.shape[1], dtype=torch.bool, device=starts.device)
    forward = forward.triu() & forward.tril(LONGEST - 1)
    allowed = inside[:, :, None] & inside[:, None, :] & forward
    scores = starts.float()[:, :, None] + ends.float()[:, None, :]
    score, place = scores.masked_fill(~allowed, -torch.inf).flatten(1).max(1)
    width = starts.shape[1]
    return [(s, p // width, p % width) for s, p in zip(score.tolist(), place.tolist(), strict=True)]


def _cut(questions: list[str], tokenizer: Any, tokens: int) -> list[str]:
    """Each question up to the end of its token number `tokens`."""
    found = tokenizer(
        questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    places = found["offset_mapping"]
    return [
        q if len(p) <= tokens else q[: p[tokens - 1][1]]
        for q, p in zip(questions, places, strict=True)
    ]
