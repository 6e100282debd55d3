"""Modules that hold the used rows of a matrix and look like the whole one from outside.

A pruned module keeps its place, its parameters' names and its class's name: only its class is exchanged for a
subclass, as `torch.nn.utils.parametrize` does, so ties, scaled embeddings and wrappers around it go on working.

In training it works on the used rows. In eval mode, and wherever no gradient is asked for, it is the whole module
for the time of a call: the rows that were not kept are read from the store.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leantune.errors import BadInput

from .vocabulary import Unseen, Vocabulary


@dataclass(frozen=True)
class Store:
    """The whole tensor, on disk, V along `dim`. Without a file (while memory is predicted) it has a shape only."""

    vocabulary: Vocabulary
    shape: torch.Size
    dim: int
    folder: Path
    file: Path | None
    held: list[Tensor] = field(default_factory=list, compare=False)  # what `in_use` read, until `drop`

    @classmethod
    def of(cls, whole: Tensor, vocabulary: Vocabulary, folder: Path, write: bool, dim: int = 0) -> Store:
        """Write `whole` under the name of its content, unless it is there already."""
        if not write:
            return cls(vocabulary, whole.shape, dim, folder, None)
        data = whole.detach().cpu().contiguous()
        file = folder / f"{hashlib.sha256(memoryview(data.view(torch.uint8).numpy())).hexdigest()}.safetensors"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            save_file({"weight": data}, part)
            os.replace(part, file)
        return cls(vocabulary, whole.shape, dim, folder, file)

    def before(self) -> Tensor:
        """The whole tensor as it was when it was pruned, on the CPU."""
        if self.file is None or not self.file.exists():
            raise BadInput(f"the whole embedding is gone: {self.file} was deleted while its rows were being trained")
        return load_file(self.file)["weight"]

    def whole(self, part: Tensor) -> Tensor:
        """A new whole tensor with the kept rows as in `part`; dtype and device of `part`."""
        if self.file is None:
            return part.new_empty(self.shape)
        return self.before().to(part).index_copy_(self.dim, self.rows(part.device), part.detach())

    def in_use(self, part: Tensor) -> Tensor:
        """As `whole`, for forward passes: read once, and with a gradient to `part` where one is asked for."""
        if self.file is None:
            return part.new_empty(self.shape)
        rows, graded = self.rows(part.device), torch.is_grad_enabled()
        with torch.inference_mode(False), torch.no_grad():
            if not self.held or (self.held[0].device, self.held[0].dtype) != (part.device, part.dtype):
                self.held[:] = [self.before().to(part)]
            if not graded:
                return self.held[0].index_copy_(self.dim, rows, part.detach())
        return self.held[0].index_copy(self.dim, rows, part)

    def drop(self) -> None:
        """Free what `in_use` read."""
        self.held.clear()

    def rows(self, device: torch.device) -> Tensor:
        """The kept ids, int64 [V']."""
        return torch.from_numpy(self.vocabulary.keep).to(device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Store:
        return Store(self.vocabulary, self.shape, self.dim, self.folder, self.file)


class Pruned:
    """Mixed into a module some of whose tensors are pruned: saves and loads the whole ones."""

    stores: dict[str, Store]  # by the tensor's name
    replaced: dict[str, Any]  # attributes as they were
    mode: str | None = None  # "rows" or "whole" for the time of a call of the language model around it

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]  # the module's own
        for name, store in self.stores.items():
            if prefix + name in destination:
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
            kept = whole.index_select(store.dim, store.rows(whole.device))
            state_dict = {**state_dict, prefix + name: kept}
            now = store.whole(getattr(self, name))
            now.index_copy_(store.dim, store.rows(now.device), kept.to(now))
            if not torch.equal(now, whole.to(now)):  # other unused rows than those on disk
                write = store.file is not None
                self.stores[name] = Store.of(whole, store.vocabulary, store.folder, write, store.dim)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]  # the module's own

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = type(self).__new__(type(self))  # type: ignore[misc]  # a module's takes no more
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadInput("a part of a pruned model cannot be pickled; save the model, or its state_dict()")


class Part(Pruned):
    """A module of the head, such as the tied output embedding: over the used tokens in training only."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mode or trains(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]  # the module's own
        with as_whole([self]):
            return super().forward(*args, **kwargs)  # type: ignore[misc]  # the module's own


class LookUp(Pruned):
    """An embedding [V', H] that takes original ids: `table` int32 [V] gives their rows."""

    table: Tensor
    unseen: Unseen
    weight: Any

    def forward(self, input: Tensor) -> Tensor:
        store, vocabulary = self.stores["weight"], self.stores["weight"].vocabulary
        embed = super().forward  # type: ignore[misc]  # the module's own
        try:
            rows = self.table.index_select(0, input.reshape(-1)).view(input.shape)
            if trains(self):
                rows = self.unseen.check(input, rows)
                if self.mode == "whole":  # no labels were given: the scores are over the whole vocabulary
                    return embed(store.rows(rows.device)[rows])
                store.drop()
                return embed(rows)
            if vocabulary.unknown is not None or store.file is None:
                return embed(store.rows(rows.device)[rows] if self.mode == "whole" else rows)
            return embed(input) if self.mode == "whole" else self._any_token(input, rows, embed)
        except IndexError as error:
            raise BadInput(vocabulary.explain(input) or str(error)) from error

    def _any_token(self, ids: Tensor, rows: Tensor, embed: Any) -> Tensor:
        """Eval mode: tokens that were not kept have the rows that they had before."""
        store, trained = self.stores["weight"], self.weight
        strange = store.rows(ids.device)[rows.clamp(min=0)] != ids
        if not strange.any():
            return embed(rows)
        others = ids[strange].unique()
        rows = rows.long().masked_scatter(strange, len(trained) + torch.searchsorted(others, ids[strange]))
        more = store.before()[others.cpu()].to(trained)
        try:
            self._parameters["weight"] = torch.cat([trained, more])  # type: ignore[attr-defined]  # of nn.Module
            return embed(rows)
        finally:
            self._parameters["weight"] = trained  # type: ignore[attr-defined]  # of nn.Module


def trains(module: Any) -> bool:
    """Whether a call is a step of training: in train mode, and with gradients."""
    return bool(module.training) and torch.is_grad_enabled()


@contextlib.contextmanager
def as_whole(modules: Iterable[Any]) -> Iterator[None]:
    """Pruned modules with whole tensors, and attributes as they were."""
    pruned = [m for m in modules if isinstance(m, Pruned) and m.mode is None]
    made: dict[int, Tensor] = {}  # tied tensors are made once
    undo: list[tuple[dict[str, Any], str, Any]] = []

    def put(where: dict[str, Any], name: str, value: Any) -> None:
        undo.append((where, name, where[name]))
        where[name] = value

    try:
        for module in pruned:
            for name, store in module.stores.items():
                where = place(module, name)
                if id(where[name]) not in made:
                    made[id(where[name])] = store.in_use(where[name])
                put(where, name, made[id(where[name])])
            for name, value in module.replaced.items():
                put(module.__dict__, name, value)
            module.__dict__["mode"] = None
            put(module.__dict__, "mode", "whole")
        yield
    finally:
        for where, name, value in reversed(undo):
            where[name] = value


def place(module: Any, name: str) -> dict[str, Any]:
    """Where a module holds a tensor: among its parameters or its buffers."""
    found: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
    return found


class PrunedAway(nn.Parameter):
    """What a replaced parameter becomes: whoever still holds it (an optimizer) hears of it."""

    @property
    def grad(self) -> Tensor:  # type: ignore[override]  # torch declares an attribute
        raise BadInput(
            "this optimizer was built before vocab_pruning replaced the embedding; build it after attach, "
            "from the model's new parameters"
        )


def subclass(cls: type, mixin: type, body: dict[str, Any] | None = None) -> type:
    """A class that looks like `cls`, which it remembers."""
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "original": cls, **(body or {})})


def mark(module: Any, mixin: type, body: dict[str, Any] | None = None) -> None:
    """Give a module its pruned class."""
    if not isinstance(module, Pruned):
        module.__class__ = subclass(type(module), mixin, body)
        module.stores, module.replaced = {}, {}


def replace(module: Any, **attributes: Any) -> None:
    """Change attributes, remembering what they were."""
    for name, value in attributes.items():
        module.replaced.setdefault(name, getattr(module, name))
        setattr(module, name, value)


def cut(model: nn.Module, old: Tensor, store: Store, tied: bool) -> None:
    """Put the kept rows in the place of the whole tensor `old`, wherever the model has it."""
    shape = list(old.shape)
    shape[store.dim] = len(store.vocabulary.keep)
    rows = torch.empty(shape, dtype=old.dtype, device=old.device)
    if not old.is_meta:
        torch.index_select(old.detach(), store.dim, store.rows(old.device), out=rows)
    new: Any = rows
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(rows, requires_grad=old.requires_grad)
        new.__dict__.update(old.__dict__)
        if not tied:
            new.full_numel = old.numel()  # CAME: the other rows have zero gradient
    for module in list(model.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is old:
                    tensors[name] = new
                    mark(module, LookUp if isinstance(module, nn.Embedding) else Part)
                    module.stores[name] = store  # type: ignore[union-attr, operator, index]  # `mark` made it
    if isinstance(old, nn.Parameter):
        old.grad = None
        old.data = old.data.new_empty(0)
        old.__class__ = PrunedAway


def restore(model: nn.Module) -> None:
    """Give every pruned module its class, attributes and whole tensors back; ties and frozenness stay."""
    whole: dict[int, Tensor] = {}
    for module in list(model.modules()):
        if not isinstance(module, Pruned):
            continue
        if (unseen := module.__dict__.get("unseen")) is not None:
            unseen.report(wait=True)
        for name, store in module.stores.items():
            tensors = place(module, name)
            part: Any = tensors[name]
            if id(part) not in whole:
                new: Any = store.whole(part)
                if isinstance(part, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=part.requires_grad)
                    new.__dict__.update({k: v for k, v in part.__dict__.items() if k != "full_numel"})
                whole[id(part)] = new
                whole[id(new)] = new
            tensors[name] = whole[id(part)]
        for name, value in module.replaced.items():
            setattr(module, name, value)
        for name in ("table", "label_table"):
            module._buffers.pop(name, None)  # type: ignore[attr-defined]  # of nn.Module
            module._non_persistent_buffers_set.discard(name)  # type: ignore[attr-defined]  # of nn.Module
        for name in ("stores", "replaced", "mode", "unseen", "vocabulary", "counts"):
            module.__dict__.pop(name, None)
        module.__class__ = module.original  # type: ignore[attr-defined, assignment]  # set by `subclass`
