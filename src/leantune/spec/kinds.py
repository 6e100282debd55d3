"""The kinds of task: what a model is asked for, and so its head, its loss and its examples."""

from typing import Literal, get_args

Kind = Literal[
    "classification", "regression", "causal_lm", "masked_lm", "span", "generation", "seq2seq_lm"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
