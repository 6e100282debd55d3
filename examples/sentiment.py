"""What the examples train: a model, its tokenizer and texts that need no hub.

Yours come from `from_pretrained("...")` and `load_dataset("...")`.
"""

from datasets import DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import leantune


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """MiniLM with a head drawn from torch's generator, and 1,000 training and 300 test snippets of
    films, tokenized."""
    data = leantune.load_data("sentiment", "minilm-l6", splits={"train": 1000, "test": 300})
    checkpoint = data.tokenizer.name_or_path  # a folder, which holds the weights too
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    splits = DatasetDict(train=data.train, test=data.test)
    return model, data.tokenizer, splits.remove_columns("text").rename_column("label", "labels")
