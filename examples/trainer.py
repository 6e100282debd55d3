"""SAFE, which freezes adapters on the way, under the transformers Trainer: python examples/trainer.py FOLDER"""

import sys

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import leantune
from leantune import data, registry, sources

STEPS = 40
SETTINGS = {"safe.lr": 3e-3}  # few steps want a higher rate than the default 1e-3

# A model and texts that need no hub. Yours come from from_pretrained("...") and load_dataset("...").
checkpoint = sources.fetch(registry.get("models", "minilm-l6").spec["source"])
task = registry.get("tasks", "sentiment")
rows = data.load_rows({**task.spec, "folder": task.folder})["all"]  # columns text and label
texts = Dataset.from_dict(rows).shuffle(seed=0).select(range(1300))

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
examples = texts.map(
    lambda row: {**tokenizer(row["text"], truncation=True, max_length=48), "labels": int(row["label"] == "positive")},
    remove_columns=["text", "label"],
)
splits = {"train": examples.select(range(1000)), "test": examples.select(range(1000, 1300))}

handle = leantune.apply(model, "safe", data=splits, steps=STEPS, tokenizer=tokenizer, settings=SETTINGS)

arguments = TrainingArguments(
    f"{sys.argv[1]}/trainer", max_steps=STEPS, per_device_train_batch_size=16, per_device_eval_batch_size=50,
    warmup_steps=4, save_strategy="no", report_to=[], disable_tqdm=True,
)  # fmt: skip
trainer = Trainer(
    handle.model,
    arguments,
    data_collator=DataCollatorWithPadding(tokenizer),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    compute_metrics=lambda found: {"accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))},
    optimizers=(handle.optimizer(), None),
    callbacks=handle.callbacks(),
)
trained = sum(p.numel() for p in handle.model.parameters() if p.requires_grad)
print(f"before    accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
trainer.train()
left = sum(p.numel() for p in handle.model.parameters() if p.requires_grad)
print(f"trained   {trained:,} parameters at the start, {left:,} at the end")
print(f"after     accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
handle.export(sys.argv[1])
