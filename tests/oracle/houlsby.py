"""Bottleneck adapters of the library `adapters` with given weights. Run in `.venv-oracle`:
`houlsby.py FOLDER`.

FOLDER holds a transformers checkpoint in `model`. `question.json`: `config`, changes to the
library's double_seq_bn; `dtype`; `seed`, with which dropout is on, or null. `question.safetensors`:
the batch and the adapters' weights.
"""

import json
import sys
from pathlib import Path

import adapters
import torch
from adapters import DoubleSeqBnConfig
from adapters.methods.modeling import Adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification


def main(folder: Path) -> None:
    question = json.loads((folder / "question.json").read_text())
    tensors = load_file(folder / "question.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    adapters.init(model)
    model.add_adapter("task", config=DoubleSeqBnConfig(**question["config"]))
    model.train_adapter("task")
    model.to(getattr(torch, question["dtype"]))
    found = [m for m in model.modules() if isinstance(m, Adapter)]
    ours = {
        f"{i}.{name}": p
        for i, a in enumerate(found)
        for name, p in (
            ("down.weight", a.adapter_down[0].weight),
            ("down.bias", a.adapter_down[0].bias),
            ("up.weight", a.adapter_up.weight),
            ("up.bias", a.adapter_up.bias),
        )
    }
    own = {id(p) for a in found for p in a.parameters()}
    with torch.no_grad():
        for name, p in ours.items():
            p.copy_(tensors[f"adapter.{name}"])
    model.train(question["seed"] is not None)
    torch.manual_seed(question["seed"] or 0)
    result = model(**{name: tensors[name] for name in ("input_ids", "attention_mask", "labels")})
    result.loss.backward()
    answer = {f"gradient.{name}": p.grad for name, p in ours.items()}
    answer |= {"logits": result.logits.detach(), "loss": result.loss.detach()}
    save_file({k: v.contiguous() for k, v in answer.items()}, folder / "answer.safetensors")
    counts = {
        "adapters": len(found),
        "parameters": sum(p.numel() for a in found for p in a.parameters()),
        "trained_in_the_base": [
            n
            for n, p in model.base_model.named_parameters()
            if p.requires_grad and id(p) not in own
        ],
    }
    (folder / "answer.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
