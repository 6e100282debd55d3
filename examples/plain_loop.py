"""Vocabulary pruning, SVFit and CAME in a plain loop: python examples/plain_loop.py FOLDER"""

import sys

import torch
from sentiment import load
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

import leantune

STEPS, BATCH = 40, 16
SETTINGS = {"came.lr_scale": 0.5}  # few steps want a higher rate than the default 0.1

torch.manual_seed(0)
model, tokenizer, splits = load()
collate = DataCollatorWithPadding(tokenizer)

handle = leantune.apply(
    model,
    "vocab_pruning+svfit+came",
    data=splits,
    steps=STEPS,
    tokenizer=tokenizer,
    settings=SETTINGS,
)


def accuracy(model: torch.nn.Module) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for batch in DataLoader(splits["test"], 50, collate_fn=collate):
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(splits["test"])


print(f"before    accuracy {accuracy(handle.model):.3f}")
optimizer, scheduler = handle.optimizer(), handle.scheduler("linear", warmup=0.1)
handle.model.train()
for batch in DataLoader(splits["train"].select(range(STEPS * BATCH)), BATCH, collate_fn=collate):
    handle.model(**batch).loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()

trained = sum(p.numel() for p in handle.model.parameters() if p.requires_grad)
states = sum(
    t.nbytes
    for state in optimizer.state.values()
    for t in state.values()
    if isinstance(t, torch.Tensor)
)
print(f"trained   {trained:,} parameters, {states / 2**20:.1f} MiB of optimizer states")
vocabulary = handle.details["vocabulary"]
print(f"kept      {vocabulary['kept']:,} of {vocabulary['full']:,} tokens")
handle.export(sys.argv[1])
print(f"after     accuracy {accuracy(leantune.load(sys.argv[1])):.3f}")
