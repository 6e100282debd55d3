"""The exact peak of live tensor storages, by kind and by phase, on real and on fake tensors alike.

A dispatch mode sees the result of every operator. A storage counts once, from the operator that
returns it until its last reference dies; views, tied and aliased tensors share one. What happens
inside an operator (its scratch memory) is not seen: against the allocator's own events that is a
few hundred bytes.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import weakref
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from leantune.files.record import BYTE_KINDS

PHASES = ("forward", "backward", "optimizer", "other")
PERSISTENT = ("weights", "buffers", "optimizer")
_ITEM = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default
_FLASH = {  # whose heads may share keys and values, and where its query stands
    torch.ops.aten._scaled_dot_product_flash_attention.default: 0,
    torch.ops.aten._scaled_dot_product_flash_attention_backward.default: 1,
}


@dataclass(frozen=True)
class MemoryReading:
    """Bytes of live storages. `by_kind` is what was live at the first moment of the peak and sums
    to it."""

    peak_bytes: int
    peak_phase: str
    by_kind: dict[str, int]
    by_phase: dict[str, int]  # the highest count within each phase that was marked
    persistent_bytes: int  # weights, buffers and optimizer states live when the reading was taken
    # of the allocations and frees in order; equal between repeats of the same run, but for the
    # order in which autocast frees the casts that it kept
    trace_sha256: str
    events: int  # allocations and frees


class TensorMeter(TorchDispatchMode):
    """Counts live storages while it is entered.

    `watch(model, optimizer)` labels weights and buffers now, and gradients and optimizer states as
    they appear; `track(tensors, kind)` labels anything else. Labels work backwards: a storage first
    seen as a temporary of the backward pass is a gradient at the peak too once it is known as one.
    Storages without a label are activations if they were born in `forward`, else temporaries.

    Enter a meter once. While it is entered garbage collection is manual (young objects, at every
    mark), so that a trace depends on the program only. Tensors on the meta device have no bytes;
    fake tensors have those they stand for. Memory that is wrapped twice from outside torch
    (`torch.from_numpy`, twice) counts twice. With a `device` type only tensors on it count, so that
    what a method keeps on the host is left out.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the guard costs as much as the metering, and nothing is compiled here

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.trace: list[tuple[int, int]] = []  # (block number, +bytes or -bytes)
        # of the matrix products, convolutions and attention seen, as torch.utils.flop_counter
        # counts
        self.flops = 0
        self.phase = "other"
        # address of the StorageImpl -> [block, bytes, weak reference]
        self._live: dict[int, list[Any]] = {}
        self._born: list[str] = []  # block -> phase
        self._kind: dict[int, str] = {}  # block -> kind, where an owner is known
        self._bytes = self._peak = self._peak_at = 0
        self._peak_phase = "other"
        self._by_phase: dict[str, int] = {}
        self._models: list[nn.Module] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        self._gc_was_on = True

    def __enter__(self) -> TensorMeter:
        gc.collect(1)
        self._gc_was_on = gc.isenabled()
        gc.disable()
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self._gc_was_on:
            gc.enable()
        self._label_owned()
        self._models.clear()
        self._optimizers.clear()
        for entry in self._live.values():
            entry[2] = None  # from here on nothing is followed: the reading stays as it is

    # What the caller tells the meter.

    def watch(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Count the model's tensors, and find its gradients and the optimizer's states at every
        mark."""
        self.track(model.parameters(), "weights")
        self.track(model.buffers(), "buffers")
        self.track((t for m in model.modules() for t in tensors_in(plain_attributes(m))), "buffers")
        if not any(model is m for m in self._models):
            self._models.append(model)
        if optimizer is not None and not any(optimizer is o for o in self._optimizers):
            self._optimizers.append(optimizer)

    def track(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count these tensors from now on and label them; the first label of a storage stays."""
        if kind not in BYTE_KINDS:
            raise ValueError(f"kind '{kind}' is not one of {', '.join(BYTE_KINDS)}")
        for tensor in tensors:
            if self._elsewhere(tensor):
                continue
            for storage in storages(tensor):
                self._see(storage)
                entry = self._live.get(storage._cdata)
                if entry is not None:
                    self._kind.setdefault(entry[0], kind)

    def mark(self, phase: str) -> None:
        """Begin a phase: forward, backward, optimizer or other."""
        if phase not in PHASES:
            raise ValueError(f"phase '{phase}' is not one of {', '.join(PHASES)}")
        self._label_owned()
        gc.collect(1)
        for entry in list(self._live.values()):  # a storage may have been resized by no operator
            storage = entry[2]()
            if storage is not None:
                self._see(storage)
        self.phase = phase
        self._note_peak()

    @property
    def live_bytes(self) -> int:
        """What is live now."""
        return self._bytes

    def result(self) -> MemoryReading:
        """The reading so far; the meter may go on."""
        self._label_owned()
        at_peak: dict[int, int] = {}
        for block, change in self.trace[: self._peak_at]:
            at_peak[block] = at_peak.get(block, 0) + change
        by_kind = dict.fromkeys(BYTE_KINDS, 0)
        for block, size in at_peak.items():
            by_kind[self.kind_of(block)] += size
        persistent = sum(
            n for block, n, _ in self._live.values() if self.kind_of(block) in PERSISTENT
        )
        flat = array("q", (value for event in self.trace for value in event))
        return MemoryReading(
            peak_bytes=self._peak,
            peak_phase=self._peak_phase,
            by_kind=by_kind,
            by_phase=dict(self._by_phase),
            persistent_bytes=persistent,
            trace_sha256=hashlib.sha256(flat.tobytes()).hexdigest(),
            events=len(self.trace),
        )

    def kind_of(self, block: int) -> str:
        """The kind of a block of the trace, by its owner or else by the phase of its birth."""
        by_birth = "activations" if self._born[block] == "forward" else "temporaries"
        return self._kind.get(block, by_birth)

    # What the meter sees.

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked twice for every operator, so worth a short cut
        if any(t is not FakeTensor and hasattr(t, "__tensor_flatten__") for t in types):
            return NotImplemented  # the subclass unwraps itself; its inner operators come here next
        if func is _ITEM and isinstance(args[0], FakeTensor):
            return scalar_of(args[0])
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*_with_all_heads(func, args), **kwargs, out_val=out)
        for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
            if not self._elsewhere(tensor):
                for storage in storages(tensor):
                    self._see(storage)
        return out

    def _elsewhere(self, tensor: Tensor) -> bool:
        if self.device is None:
            return False
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        return device.type != self.device

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        size = storage.nbytes()
        entry = self._live.get(address)
        if entry is None:
            if size == 0:
                return
            weak = weakref.ref(storage, functools.partial(self._die, address))
            self._live[address] = [self._new_block(size), size, weak]
        elif entry[1] != size:
            # resized in place: torch takes the new memory, copies, then frees the old
            kind = self._kind.get(entry[0])
            old_block, old_size = entry[0], entry[1]
            entry[0], entry[1] = self._new_block(size, kind), size
            self._change(old_block, -old_size)

    def _new_block(self, size: int, kind: str | None = None) -> int:
        block = len(self._born)
        self._born.append(self.phase)
        if kind is not None:
            self._kind[block] = kind
        self._change(block, size)
        return block

    def _die(self, address: int, _: object) -> None:
        block, size, _ = self._live.pop(address)
        self._change(block, -size)

    def _change(self, block: int, change: int) -> None:
        if change:
            self.trace.append((block, change))
            self._bytes += change
            self._note_peak()

    def _note_peak(self) -> None:
        if self._bytes > self._by_phase.get(self.phase, -1):
            self._by_phase[self.phase] = self._bytes
            if self._bytes > self._peak:
                self._peak, self._peak_phase, self._peak_at = (
                    self._bytes,
                    self.phase,
                    len(self.trace),
                )

    def _label_owned(self) -> None:
        for model in self._models:
            self.track((p.grad for p in model.parameters() if p.grad is not None), "gradients")
        for optimizer in self._optimizers:
            self.track(optimizer_tensors(optimizer), "optimizer")


def _with_all_heads(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with keys and values of as many heads as the query, as the kernel uses them.
    torch 2.11 counts the FLOPs of no others."""
    if func not in _FLASH:
        return args
    first = _FLASH[func]
    query, *shared = args[first : first + 3]  # each (batch, heads, length, head size)
    all_heads = [tensor[:, :1].expand(-1, query.size(1), -1, -1) for tensor in shared]
    return (*args[: first + 1], *all_heads, *args[first + 3 :])


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages that hold a tensor's bytes: one, or those of the parts of a sparse or wrapped
    tensor."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from storages(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from storages(tensor._indices())
        yield from storages(tensor._values())
    elif tensor.layout is torch.strided:
        storage = tensor.untyped_storage()
        if storage.device.type != "meta" or isinstance(tensor, FakeTensor):
            yield storage


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps outside its registered parameters, buffers and children."""
    registered = ("_parameters", "_buffers", "_modules")
    return {name: value for name, value in vars(module).items() if name not in registered}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The tensors that an optimizer keeps: its states (and those of objects in them), rates held as
    tensors."""
    for state in optimizer.state.values():
        for value in state.values() if isinstance(state, dict) else (state,):
            plain = isinstance(value, (Tensor, dict, list, tuple)) or not hasattr(value, "__dict__")
            yield from tensors_in(value if plain else vars(value))
    for group in optimizer.param_groups:
        yield from tensors_in([value for name, value in group.items() if name != "params"])


def scalar_of(tensor: FakeTensor) -> Any:
    """What `.item()` says of a fake tensor: its value where the fake mode knows it, else 1 (or
    False)."""
    if tensor.constant is not None:
        return tensor.constant.item()
    if tensor.dtype is torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else 1
