"""What the examples train: a model, its tokenizer and texts that need no hub.

Yours come from `from_pretrained("...")` and `load_dataset("...")`.
"""

from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from leantune.data.load import load_rows
from leantune.fetch import source
from leantune.spec import plugins


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase, DatasetDict]:
    """MiniLM with a head drawn from torch's generator, and 1,000 training and 300 test snippets of
    films, tokenized."""
    checkpoint = source.fetch(plugins.get("models", "minilm-l6").raw["source"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    task = plugins.get("tasks", "sentiment")
    rows = load_rows({**task.raw, "folder": task.folder})["all"]  # columns text and label
    texts = Dataset.from_dict(rows).shuffle(seed=0).select(range(1300))
    examples = texts.map(
        lambda row: {
            **tokenizer(row["text"], truncation=True, max_length=48),
            "labels": int(row["label"] == "positive"),
        },
        remove_columns=["text", "label"],
    )
    splits = DatasetDict(
        train=examples.select(range(1000)), test=examples.select(range(1000, 1300))
    )
    return model, tokenizer, splits
