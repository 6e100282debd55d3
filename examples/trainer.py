"""SAFE, which freezes adapters on the way, under the transformers Trainer: python
examples/trainer.py FOLDER"""

import sys

import numpy as np
from sentiment import load
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

import leantune

STEPS = 40
SETTINGS = {"safe.lr": 3e-3}  # few steps want a higher rate than the default 1e-3

set_seed(0)
model, tokenizer, splits = load()

handle = leantune.apply(
    model, "safe", data=splits, steps=STEPS, tokenizer=tokenizer, settings=SETTINGS
)

arguments = TrainingArguments(
    f"{sys.argv[1]}/trainer",
    max_steps=STEPS,
    per_device_train_batch_size=16,
    per_device_eval_batch_size=50,
    warmup_steps=4,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
)
trainer = Trainer(
    handle.model,
    arguments,
    data_collator=DataCollatorWithPadding(tokenizer),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    compute_metrics=lambda found: {
        "accuracy": float(np.mean(found.predictions.argmax(-1) == found.label_ids))
    },
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
