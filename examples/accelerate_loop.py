"""Vocabulary pruning and LoRA under accelerate: python examples/accelerate_loop.py FOLDER"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sentiment import load
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

import leantune

STEPS, BATCH = 40, 16

set_seed(0)
model, tokenizer, splits = load()
collate = DataCollatorWithPadding(tokenizer)

accelerator = Accelerator()
handle = leantune.apply(
    model.to(accelerator.device),
    "vocab_pruning+lora",
    data=splits,
    steps=STEPS,
    tokenizer=tokenizer,
    settings={"lora.rank": 16, "lora.alpha": 32},
)
model, optimizer, scheduler, loader, test = accelerator.prepare(
    handle.model,
    handle.optimizer(),
    handle.scheduler("linear", warmup=0.1),
    DataLoader(splits["train"].select(range(STEPS * BATCH)), BATCH, collate_fn=collate),
    DataLoader(splits["test"], 50, collate_fn=collate),
)


def accuracy(model: torch.nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(**batch).logits.argmax(-1) == batch["labels"]).sum()) for batch in test
        )
    return right / len(splits["test"])


print(f"before    accuracy {accuracy(model):.3f}")
model.train()
for batch in loader:
    accelerator.backward(model(**batch).loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()

trained = sum(p.numel() for p in handle.model.parameters() if p.requires_grad)
print(f"trained   {trained:,} parameters")
vocabulary = handle.details["vocabulary"]
print(f"kept      {vocabulary['kept']:,} of {vocabulary['full']:,} tokens")
print(f"after     accuracy {accuracy(handle.export(sys.argv[1])):.3f}")
