"""Modules that hold the used rows of a matrix and look like the whole one from outside.

A pruned module keeps its place, its parameters' names and its class's name: only its class is exchanged for a
subclass, as `torch.nn.utils.parametrize` does, so ties, scaled embeddings and wrappers around it go on working.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leantune.errors import BadInput, Unsupported

from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Store:
    """The whole [V, ...] parameter, on disk. Without a file (while memory is predicted) it has a shape only."""

    vocabulary: Vocabulary
    shape: torch.Size
    folder: Path
    file: Path | None

    @classmethod
    def of(cls, whole: Tensor, vocabulary: Vocabulary, folder: Path, write: bool) -> Store:
        """Write `whole` under the name of its content, unless it is there already."""
        if not write:
            return cls(vocabulary, whole.shape, folder, None)
        data = whole.detach().cpu().contiguous()
        file = folder / f"{hashlib.sha256(memoryview(data.view(torch.uint8).numpy())).hexdigest()}.safetensors"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            save_file({"weight": data}, part)
            os.replace(part, file)
        return cls(vocabulary, whole.shape, folder, file)

    def whole(self, part: Tensor) -> Tensor:
        """[V, ...] with the kept rows as in `part` [V', ...]; dtype and device of `part`."""
        if self.file is None:
            return part.new_empty(self.shape)
        if not self.file.exists():
            raise BadInput(f"the whole embedding is gone: {self.file} was deleted while its rows were being trained")
        whole = load_file(self.file)["weight"].to(part)
        return whole.index_copy_(0, self.rows(part.device), part.detach())

    def rows(self, device: torch.device) -> Tensor:
        """The kept ids, int64 [V']."""
        return torch.from_numpy(self.vocabulary.keep).to(device)


class Pruned:
    """Mixed into a module some of whose parameters are pruned: saves and loads the whole ones."""

    stores: dict[str, Store]  # by the parameter's name
    replaced: dict[str, Any]  # attributes as they were

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name, store in self.stores.items():
            destination[prefix + name] = store.whole(getattr(self, name))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, store in self.stores.items():
            whole = state_dict.get(prefix + name)
            if whole is None:
                continue  # torch reports what is missing
            if whole.shape != store.shape:
                errors = args[-1]
                errors.append(f"{prefix}{name} is {tuple(whole.shape)}; load the whole matrix, {tuple(store.shape)}")
                continue
            whole = whole.to(getattr(self, name).dtype)
            state_dict = {**state_dict, prefix + name: whole[store.rows(whole.device)]}
            now = store.whole(getattr(self, name))
            now[store.rows(now.device)] = whole[store.rows(whole.device)].to(now)
            if not torch.equal(now, whole.to(now)):  # other unused rows than those on disk
                self.stores[name] = Store.of(whole, store.vocabulary, store.folder, write=store.file is not None)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class LookUp(Pruned):
    """An embedding [V', H] that takes original ids: `table` int32 [V] gives their rows."""

    table: Tensor

    def forward(self, input: Tensor) -> Tensor:
        try:
            rows = self.table.index_select(0, input.reshape(-1)).view(input.shape)
            if rows.is_cuda and bool((rows < 0).any()):  # a bad index would end the CUDA context
                raise IndexError
            return super().forward(rows)  # type: ignore[misc]
        except IndexError as error:
            raise BadInput(self.stores["weight"].vocabulary.explain(input) or str(error)) from error


class Output(Pruned):
    """A tied output embedding: scores of the used tokens while training, of the whole vocabulary in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:  # type: ignore[attr-defined]
            return super().forward(input)  # type: ignore[misc]
        whole = {name: store.whole(getattr(self, name)) for name, store in self.stores.items()}
        return nn.functional.linear(input, whole["weight"], whole.get("bias"))


def language_model_class(cls: type) -> type:
    """A subclass of a transformers language model whose `labels` stay original ids while its output is pruned."""
    original: Callable[..., Any] = cls.forward  # type: ignore[attr-defined]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = self.get_output_embeddings()
        if not output.training:
            return original(self, *args, **kwargs)
        values = signature.bind_partial(self, *args, **kwargs)
        labels = values.arguments.get("labels")
        shifts = "decoder_input_ids" in signature.parameters and values.arguments.get("decoder_input_ids") is None
        if labels is not None and shifts:  # the model would shift what it gets as labels: rows, from here on
            values.arguments["decoder_input_ids"] = self.prepare_decoder_input_ids_from_labels(labels)
        whole = self.config.vocab_size  # transformers reads the number of classes here
        self.config.vocab_size = output.out_features
        try:
            if labels is not None:
                values.arguments["labels"] = self.label_rows(labels)
            return original(*values.args, **values.kwargs)
        except IndexError as error:  # the loss met a class of -1
            reason = None if labels is None else output.stores["weight"].vocabulary.explain(labels)
            raise (BadInput(f"label: {reason}") if reason else error) from error
        finally:
            self.config.vocab_size = whole

    def label_rows(self: Any, labels: Tensor) -> Tensor:
        rows = self.label_table.index_select(0, labels.reshape(-1).clamp(min=0)).view(labels.shape).long()
        if rows.is_cuda and bool((rows < 0).any()):  # there a bad class would end the CUDA context
            raise IndexError
        return torch.where(labels < 0, labels, rows)

    return _subclass(cls, Pruned, {"forward": forward, "label_rows": label_rows})


def _subclass(cls: type, mixin: type, body: dict[str, Any] | None = None) -> type:
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "original": cls, **(body or {})})


class PrunedAway(nn.Parameter):
    """What a replaced parameter becomes: whoever still holds it (an optimizer) hears of it."""

    @property
    def grad(self) -> Tensor:  # type: ignore[override]
        raise BadInput(
            "this optimizer was built before vocab_pruning replaced the embedding; build it after attach, "
            "from the model's new parameters"
        )


def prune(model: Any, vocabulary: Vocabulary, unseen: Any, folder: Path, write: bool, masked: bool) -> None:
    """Replace the input embedding of a transformers model, and an output tied to it, by their used rows."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embedding.weight
    tied = output is not None and output.weight is weight
    if output is not None and output.weight.shape[0] != len(weight):
        raise Unsupported(f"vocab_pruning: {type(model).__name__} keeps its output embedding where it cannot be pruned")
    bias = getattr(output, "bias", None) if tied else None
    device = weight.device

    for old in (weight, bias):
        if old is None:
            continue
        store = Store.of(old, vocabulary, folder, write)
        rows = torch.empty(len(vocabulary.keep), *old.shape[1:], dtype=old.dtype, device=device)
        if not old.is_meta:
            torch.index_select(old.detach(), 0, store.rows(device), out=rows)
        new = nn.Parameter(rows, requires_grad=old.requires_grad)
        new.__dict__.update(old.__dict__)
        if not tied:
            new.full_numel = old.numel()  # type: ignore[attr-defined]  # CAME: the other rows have zero gradient
        for module in list(model.modules()):
            for name, parameter in list(module._parameters.items()):
                if parameter is old:
                    module._parameters[name] = new
                    _mark(module, name, store, LookUp if isinstance(module, nn.Embedding) else Pruned)
        old.grad = None
        old.data = old.data.new_empty(0)
        old.__class__ = PrunedAway

    table = vocabulary.table(device, unseen)
    for module in model.modules():
        if isinstance(module, LookUp):
            padding = module.padding_idx  # type: ignore[attr-defined]
            row = None if padding is None else int(vocabulary.keep.searchsorted(padding))
            _set(module, num_embeddings=len(vocabulary.keep), padding_idx=row)
            module.register_buffer("table", table, persistent=False)  # type: ignore[attr-defined]
    if tied:
        output.__class__ = _subclass(output.original, Output)
        _set(output, out_features=len(vocabulary.keep))
        model.__class__ = language_model_class(type(model))
        model.stores, model.replaced = {}, {}
        strict = vocabulary.table(device) if masked else table
        model.register_buffer("label_table", strict, persistent=False)


def _mark(module: Any, name: str, store: Store, mixin: type) -> None:
    if not isinstance(module, Pruned):
        module.__class__ = _subclass(type(module), mixin)
        module.stores, module.replaced = {}, {}
    module.stores[name] = store


def _set(module: Any, **attributes: Any) -> None:
    for name, value in attributes.items():
        module.replaced[name] = getattr(module, name)
        setattr(module, name, value)


def restore(model: nn.Module) -> None:
    """Give every pruned module its class, attributes and whole parameters back; ties and frozenness stay."""
    whole: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, Pruned):
            continue
        for name, store in module.stores.items():
            part: Any = getattr(module, name)
            if id(part) not in whole:
                new = nn.Parameter(store.whole(part), requires_grad=part.requires_grad)
                new.__dict__.update({k: v for k, v in part.__dict__.items() if k != "full_numel"})
                whole[id(part)] = new
            module._parameters[name] = whole[id(part)]  # type: ignore[attr-defined]
        for name, value in module.replaced.items():
            setattr(module, name, value)
        for name in ("table", "label_table"):
            module._buffers.pop(name, None)  # type: ignore[attr-defined]
            module._non_persistent_buffers_set.discard(name)  # type: ignore[attr-defined]
        del module.stores, module.replaced
        module.__class__ = module.original  # type: ignore[attr-defined, assignment]
