"""The package transformer-smaller-training-vocab on given models and texts. Run in `.venv-oracle`:
`smaller_vocab.py FOLDER`.

FOLDER holds a checkpoint in `model` and its `tokenizer.json`. `question.json`: `what`, one of the
functions below; `auto`, the model's auto class; `special`, the tokenizer's special tokens; `texts`,
which the package counts.
"""

import json
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformer_smaller_training_vocab import recreate_vocab, reduce_train_vocab_and_context
from transformers import PreTrainedTokenizerFast

Answer = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Reduced:
    """The checkpoint's model and tokenizer, reduced to the texts."""

    def __init__(self, folder: Path, question: dict[str, Any], frozen: bool = False) -> None:
        self.model = (
            getattr(transformers, question["auto"]).from_pretrained(folder / "model").eval()
        )
        file = str(folder / "tokenizer.json")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, **question["special"])
        self.full = self.model.get_input_embeddings().weight.detach().clone()
        self.parameters = count(self.model)
        self.model.get_input_embeddings().weight.requires_grad_(not frozen)

    def reduce(self, texts: list[str], optimizer: torch.optim.Optimizer | None = None) -> "Reduced":
        self.kept = reduce_train_vocab_and_context(
            self.model, self.tokenizer, texts, optimizer=optimizer
        )
        return self

    def recreate(self) -> None:
        recreate_vocab(self.model, self.tokenizer, *self.kept)

    def batch(self, texts: list[str]) -> dict[str, torch.Tensor]:
        padded = self.tokenizer(texts, padding=len(texts) > 1, return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask")}


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def failure(call: Any) -> str | None:
    """The name of the error that a call ends with."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


def usage(folder: Path, question: dict[str, Any]) -> Answer:
    """The package's own description, with its table of used vocabularies."""
    about = metadata("transformer-smaller-training-vocab")
    return {}, {
        "version": about["Version"],
        "description": about.get_payload() or about["Description"],
    }


def train(folder: Path, question: dict[str, Any]) -> Answer:
    """Steps of AdamW with dropout on the reduced model, then the whole embedding again."""
    reduced = Reduced(folder, question).reduce(question["texts"])
    model, answer = reduced.model, {}
    answer["kept"] = torch.tensor(reduced.kept[0])
    answer["reduced"] = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=question["lr"], weight_decay=0.0)
    model.train()
    for step, (texts, labels) in enumerate(question["batches"]):
        batch = reduced.batch(texts)
        torch.manual_seed(step)
        result = model(**batch, labels=torch.tensor(labels))
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        answer |= {f"ids{step}": batch["input_ids"], f"logits{step}": result.logits.detach()}
    reduced.recreate()
    model.eval()
    batch = reduced.batch(question["batches"][0][0])
    with torch.no_grad():
        answer |= {"ids_after": batch["input_ids"], "logits_after": model(**batch).logits}
    answer["whole"] = model.get_input_embeddings().weight.detach()
    return answer, {}


def padded_logits(folder: Path, question: dict[str, Any]) -> Answer:
    """Logits of one batch, in eval mode, before and after."""
    reduced = Reduced(folder, question)
    with torch.no_grad():
        before = reduced.model(**reduced.batch(question["batch"])).logits
        reduced.reduce(question["texts"])
        batch = reduced.batch(question["batch"])
        after: list[torch.Tensor] = []
        error = failure(lambda: after.append(reduced.model(**batch).logits))
    config = reduced.model.config
    facts = {
        "error": error,
        "pad": config.pad_token_id,
        "eos": config.eos_token_id,
        "rows": len(reduced.kept[0]),
    }
    return {"before": before, **({"after": after[0]} if after else {})}, facts


def unseen(folder: Path, question: dict[str, Any]) -> Answer:
    """What a text becomes that was not counted: its tokens before and after, and what the model
    makes of it."""
    reduced = Reduced(folder, question)
    before = reduced.tokenizer.tokenize(question["unseen"])
    reduced.reduce(question["texts"])
    after = reduced.tokenizer.tokenize(question["unseen"])
    ids = reduced.tokenizer(question["unseen"])["input_ids"]
    error = failure(lambda: reduced.model(**reduced.batch([question["unseen"]])))
    return {}, {
        "before": before,
        "after": after,
        "ids": ids,
        "rows": len(reduced.kept[0]),
        "error": error,
    }


def tied(folder: Path, question: dict[str, Any]) -> Answer:
    """A model whose output embedding is its input embedding."""
    reduced = Reduced(folder, question)
    embedding, output = reduced.model.get_input_embeddings(), reduced.model.get_output_embeddings()
    facts = {"tied_before": embedding.weight is output.weight, "before": reduced.parameters}
    reduced.reduce(question["texts"])
    embedding, output = reduced.model.get_input_embeddings(), reduced.model.get_output_embeddings()
    facts |= {
        "tied": embedding.weight is output.weight,
        "after": count(reduced.model),
        "rows": len(embedding.weight),
    }
    batch = reduced.batch(question["texts"][:1])
    facts["error"] = failure(lambda: reduced.model(**batch, labels=batch["input_ids"]))
    return {}, facts


def frozen(folder: Path, question: dict[str, Any]) -> Answer:
    """Whether an embedding that was frozen is trained, between and afterwards."""
    reduced = Reduced(folder, question, frozen=True).reduce(question["texts"])
    between = reduced.model.get_input_embeddings().weight.requires_grad
    reduced.recreate()
    return {}, {
        "between": between,
        "after": reduced.model.get_input_embeddings().weight.requires_grad,
    }


def targets(folder: Path, question: dict[str, Any]) -> Answer:
    """An encoder-decoder: sources counted, then a batch with targets."""
    reduced = Reduced(folder, question).reduce(question["texts"])
    batch = reduced.batch(question["texts"][:1])
    labels = reduced.tokenizer(question["targets"], return_tensors="pt")["input_ids"]
    error = failure(lambda: reduced.model(**batch, labels=labels))
    return {"kept": torch.tensor(reduced.kept[0])}, {"error": error}


def stale_optimizer(folder: Path, question: dict[str, Any]) -> Answer:
    """A step of an optimizer that was built before; `told`: the package is given it. It has two
    groups."""
    reduced = Reduced(folder, question)
    weight = reduced.model.get_input_embeddings().weight
    rest = [p for p in reduced.model.parameters() if p is not weight]
    optimizer = torch.optim.SGD([{"params": rest[:2]}, {"params": [weight, *rest[2:]]}], lr=0.1)
    reduced.reduce(question["texts"], optimizer if question["told"] else None)
    names = dict(reduced.model.named_parameters())
    listed = {id(p) for group in optimizer.param_groups for p in group["params"]}
    before = {n: p.detach().clone() for n, p in names.items()}
    reduced.model(
        **reduced.batch(question["texts"][:2]), labels=torch.tensor([0, 1])
    ).loss.backward()
    error = failure(optimizer.step)
    return {}, {
        "error": error,
        "unlisted": [n for n, p in names.items() if id(p) not in listed],
        "still": [
            n
            for n, p in names.items()
            if p.grad is not None and p.grad.any() and torch.equal(p, before[n])
        ],
        "stale": any(p is weight for group in optimizer.param_groups for p in group["params"]),
    }


def attributes(folder: Path, question: dict[str, Any]) -> Answer:
    """The embedding's attributes before, between and afterwards, and whether padding is trained."""
    reduced = Reduced(folder, question)
    seen = []
    for change in (None, lambda: reduced.reduce(question["texts"]), reduced.recreate):
        if change is not None:
            change()
        embedding = reduced.model.get_input_embeddings()
        seen.append([embedding.num_embeddings, embedding.padding_idx])
    return {}, {"seen": seen}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    asked = json.loads((place / "question.json").read_text())
    arrays, facts_found = globals()[asked["what"]](place, asked)
    save_file({k: v.contiguous() for k, v in arrays.items()}, place / "answer.safetensors")
    (place / "answer.json").write_text(json.dumps(facts_found))
