"""The model around pruned modules: what follows the vocabulary's size, its labels, its scores, its generation."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import LogitsProcessor, PretrainedConfig

from leantune.errors import BadInput, Unsupported

from .pruned import LookUp, Pruned, Store, as_whole, cut, mark, place, replace, restore, subclass, trains
from .vocabulary import Unseen, Vocabulary

MORE = 64  # tokens more in the model that shows what follows the vocabulary's size
# What may be asked of kept scores without making them whole: their shape, other facts, and another dtype or device.
SHAPES: set[Any] = {Tensor.shape, Tensor.size, Tensor.numel, Tensor.__len__}
FACTS: set[Any] = {Tensor.dtype, Tensor.device, Tensor.requires_grad, Tensor.grad_fn, Tensor.is_leaf, Tensor.ndim}
FACTS |= {Tensor.is_cuda, Tensor.is_meta, Tensor.layout, Tensor.dim, Tensor.is_floating_point, Tensor.is_complex}
FACTS |= {torch.is_floating_point, torch.is_complex}
CASTS: set[Any] = {Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.detach, Tensor.cpu}


def prune(model: Any, vocabulary: Vocabulary, unseen: Any, folder: Path, write: bool, masked: bool) -> None:
    """Replace the input embedding of a transformers model, and an output computed with it, by their used rows.

    Raises Unsupported, the model as it was, where a training step of its class cannot follow.
    """
    weight, output, full = model.get_input_embeddings().weight, model.get_output_embeddings(), vocabulary.full
    tied = output is not None and (output.weight is weight or output.weight.shape[0] != full)
    tensors, counts = _followers(model, weight) if tied else ([], [])
    device = weight.device
    cut(model, weight, Store.of(weight, vocabulary, folder, write), tied)
    for module, name, dim in tensors:
        old = place(module, name)[name]
        if old is not None and old.shape[dim] == full:  # one that two modules hold is cut once
            cut(model, old, Store.of(old, vocabulary, folder, write, dim), tied)
    table, check = vocabulary.table(device, unseen), Unseen(vocabulary)
    for module in model.modules():
        if isinstance(module, LookUp):
            padding = module.padding_idx  # type: ignore[attr-defined]  # of nn.Embedding
            row = None if padding is None else int(vocabulary.keep.searchsorted(padding))
            replace(module, num_embeddings=len(vocabulary.keep), padding_idx=row)
            module.register_buffer("table", table, persistent=False)  # type: ignore[attr-defined]  # of nn.Module
            module.unseen = check
    mark(model, PrunedModel)
    model.vocabulary, model.unseen = vocabulary, check
    if not tied:
        model.__class__ = subclass(model.original, PrunedModel)
        return
    model.__class__ = _language_model(model.original)
    strict = vocabulary.table(device) if masked else table
    model.register_buffer("label_table", strict, persistent=False)
    for owner, name in counts:
        if isinstance(owner, Pruned) and owner is not model:
            replace(owner, **{name: len(vocabulary.keep)})
    model.counts = [(o, name) for o, name in counts if o is model or not isinstance(o, Pruned)]
    _prove(model)


def _followers(model: Any, weight: Tensor) -> tuple[list[tuple[nn.Module, str, int]], list[tuple[Any, str]]]:
    """What has the vocabulary's size beside the embedding: (module, tensor, dimension) of the head, and (owner,
    attribute) of the head and the configs. They are what differs in a model of the same class with a larger
    vocabulary, so a size that is equal by chance is none of them."""
    full, cls = len(weight), type(model)
    config = copy.deepcopy(model.config)
    for one in _configs([config]):
        for name in _sizes(one, full):
            one.__dict__[name] = full + MORE
    try:
        with torch.device("meta"):
            larger = cls(config)
    except Exception as error:
        raise Unsupported(f"vocab_pruning: {cls.__name__} cannot be made with a larger vocabulary: {error}") from error
    tensors, counts = [], []
    head = dict(_head("", model, model.get_input_embeddings(), model.get_output_embeddings()))
    there = dict(larger.named_modules(remove_duplicate=False))
    for path, module in head.items():
        other = there.get(path)
        if other is None:  # added by the user
            continue
        for name, old in [*module._parameters.items(), *module._buffers.items()]:
            new = place(other, name).get(name)
            if old is None or new is None or old is weight or old.dim() != new.dim():
                continue
            tensors += [(module, name, d) for d, (n, m) in enumerate(zip(old.shape, new.shape, strict=True)) if n < m]
        for name, value in vars(module).items():
            if type(value) is int and value == full and vars(other).get(name) == full + MORE:
                counts.append((module, name))
    for one in _configs([m.config for m in head.values() if hasattr(m, "config")]):
        counts += [(one, name) for name in _sizes(one, full)]
    return tensors, counts


def _head(path: str, module: nn.Module, embedding: nn.Module, output: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The language-model class and its modules, by path, but for the body: what holds the input embedding."""
    yield path, module
    for name, child in module.named_children():
        inside, below = list(child.modules()), f"{path}.{name}" if path else name
        if not any(isinstance(m, nn.Embedding) and m.weight is embedding.weight for m in inside):
            yield from child.named_modules(prefix=below)
        elif any(m is output for m in inside):
            yield from _head(below, child, embedding, output)


def _configs(given: list[Any]) -> list[Any]:
    """Configs and those inside of them."""
    found: dict[int, Any] = {}
    for config in given:
        inner = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
        found |= {id(config): config} | {id(c): c for c in _configs(inner)}
    return list(found.values())


def _sizes(config: Any, full: int) -> list[str]:
    """The attributes of a config that say how many tokens there are."""
    alias = config.attribute_map.get("vocab_size")
    return [name for name, value in vars(config).items() if value == full and ("vocab" in name or name == alias)]


def _prove(model: Any) -> None:
    """One training forward without values. A class that fails only when it is pruned is put back and refused."""
    twin = copy.deepcopy(model, {id(t): _empty(t) for t in [*model.parameters(), *model.buffers()]})
    error = _failure(twin)
    if error is None:
        return
    name = type(model).__name__
    restore(twin)
    if (whole := _failure(twin)) is not None and str(whole) == str(error):
        return  # the class needs values for a step, or other inputs, so nothing is proven
    restore(model)
    said = str(error).strip().split("\n")[0]
    raise Unsupported(f"vocab_pruning: a training step of {name} fails over the used tokens: {said}") from error


def _empty(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _failure(model: Any) -> Exception | None:
    """What goes wrong in a training forward of two sequences of eight tokens."""
    ids = torch.zeros(2, 8, dtype=torch.int64, device="meta")
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            out = model.train()(input_ids=ids, labels=ids, return_dict=True)
            if isinstance(model, Pruned) and not any(isinstance(v, KeptScores) for v in out.values()):
                return ValueError("its scores are still over the whole vocabulary")
    except Exception as error:  # whatever it is, it is said
        return error
    return None


class PrunedModel(Pruned):
    """Mixed into the whole model."""

    vocabulary: Vocabulary
    unseen: Unseen

    def resize_token_embeddings(self, *_: Any, **__: Any) -> Any:
        raise BadInput(
            "the vocabulary of this model is pruned; call resize_token_embeddings before vocab_pruning, or after export"
        )

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        processors = super()._get_logits_processor(*args, **kwargs)  # type: ignore[misc]  # of GenerationMixin
        processors.insert(0, KeptOnly(self.vocabulary))
        return processors

    def _save_to_state_dict(self, *args: Any) -> None:
        self.unseen.report(wait=True)
        super()._save_to_state_dict(*args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A pickle is of the whole model, which needs nothing of this method to be read again."""
        plain = copy.deepcopy(self)
        restore(plain)  # type: ignore[arg-type]  # it is a module
        return copy.copy, (plain,)  # a function that any process has


class KeptOnly(LogitsProcessor):
    """Lets `generate` choose among the tokens that were kept; the others have not been trained."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.keep, self.full = torch.from_numpy(vocabulary.keep), vocabulary.full

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.shape[-1] != self.full:  # of another vocabulary
            return scores
        self.keep = self.keep.to(scores.device)
        return torch.full_like(scores, -torch.inf).index_copy(-1, self.keep, scores.index_select(-1, self.keep))


class KeptScores(Tensor):
    """Scores [..., V'] of the kept tokens that read as [..., V]: whatever looks at them sees the whole vocabulary,
    with the lowest number for a token that was not kept. They take no room until somebody looks."""

    vocabulary: Vocabulary

    @classmethod
    def of(cls, scores: Tensor, vocabulary: Vocabulary) -> KeptScores:
        made = scores.as_subclass(cls)
        made.vocabulary = vocabulary
        return made

    def rows(self) -> Tensor:
        """The scores of the kept tokens, [..., V']."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    def whole(self) -> Tensor:
        """The scores as a plain tensor [..., V]."""
        part = self.rows()
        keep = torch.from_numpy(self.vocabulary.keep).to(part.device)
        full = part.new_full((*part.shape[:-1], self.vocabulary.full), torch.finfo(part.dtype).min)
        return full.index_copy(-1, keep, part)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked, first = {func, getattr(func, "__self__", None)}, args[0] if args else None
        if isinstance(first, KeptScores):
            rows = first.rows()
            if asked & SHAPES:
                whole = torch.empty((*rows.shape[:-1], first.vocabulary.full), device="meta")
                return func(whole, *args[1:], **(kwargs or {}))
            if asked & FACTS:
                return func(rows, *args[1:], **(kwargs or {}))
            if asked & CASTS:
                return cls.of(func(rows, *args[1:], **(kwargs or {})), first.vocabulary)
        args, kwargs = tree_map(lambda x: x.whole() if isinstance(x, KeptScores) else x, (args, kwargs or {}))
        return func(*args, **kwargs)


def _language_model(cls: type) -> type:
    """A subclass of a transformers language model whose `labels` stay original ids while its output is pruned."""
    original: Callable[..., Any] = cls.forward  # type: ignore[attr-defined]  # of nn.Module
    names = list(inspect.signature(original).parameters)[1:]

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs |= dict(zip(names, args, strict=False))
        labels = kwargs.get("labels")
        if labels is None or not trains(self):  # whoever makes a loss of their own gets all scores
            with as_whole(self.modules()):
                return original(self, **kwargs)
        if "decoder_input_ids" in names and kwargs.get("decoder_input_ids") is None:
            kwargs["decoder_input_ids"] = _shifted(self, labels)  # the model would shift rows
        for name in ("labels", "shift_labels"):
            if kwargs.get(name) is not None:
                kwargs[name] = self.label_rows(kwargs[name])
        asked = kwargs.get("return_dict")
        tuples = not (self.config.return_dict if asked is None else asked)
        if tuples:
            kwargs["return_dict"] = True
        with _as_rows(self):
            out = original(self, **kwargs)
        for name, value in out.items():
            # a fake tensor has a class of its own, and nobody reads it
            if "logits" in name and type(value) is Tensor and value.shape[-1] == len(self.vocabulary.keep):
                out[name] = KeptScores.of(value, self.vocabulary)
        return out.to_tuple() if tuples else out

    def label_rows(self: Any, labels: Tensor) -> Tensor:
        ids = labels.clamp(min=0)
        rows = self.label_table.index_select(0, ids.reshape(-1)).view(labels.shape)
        rows = self.unseen.check(labels, rows.where(labels >= 0, 0), "label: ")
        return torch.where(labels < 0, labels, rows.long())

    return subclass(cls, PrunedModel, {"forward": forward, "label_rows": label_rows})


def _shifted(model: Any, labels: Tensor) -> Tensor:
    """The decoder's input ids, as the model makes them of its labels."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        made: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return made
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    if shift is None:
        raise BadInput(f"give {type(model).__name__} decoder_input_ids: how it makes them of labels is not known")
    config = model.config
    needed = len(inspect.signature(shift).parameters)
    made = shift(labels, *(config.pad_token_id, config.decoder_start_token_id)[: needed - 1])
    return made


@contextlib.contextmanager
def _as_rows(model: Any) -> Iterator[None]:
    """The head over the used tokens: what counts the vocabulary counts them."""
    rows = len(model.vocabulary.keep)
    pruned = [m for m in model.modules() if isinstance(m, Pruned)]
    whole = [getattr(owner, name) for owner, name in model.counts]
    try:
        for owner, name in model.counts:
            owner.__dict__[name] = rows
        for module in pruned:
            module.mode = "rows"
        yield
    finally:
        for (owner, name), value in zip(model.counts, whole, strict=True):
            owner.__dict__[name] = value
        for module in pruned:
            module.mode = None
