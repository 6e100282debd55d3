"""A published training session, as its script ran it, on fake tensors: what it would have reserved
on the GPU.

The script is `method_comparison/MetaMathQA/run.py` of huggingface/peft (Apache-2.0). What of it
sets the memory:

- The figure is `max_memory_reserved` of the whole session less what was reserved at its start.
- Weights are loaded into one segment (transformers warms the allocator up with their total size),
  adapters after it. What a method leaves on the host (BOFT's permutations) stays there and is
  copied at every use.
- The loop keeps `outputs` and `labels` while the next forward pass runs: the logits and the
  key-value cache of the batch before, since the cache is not turned off in training.
- Batches come in buckets of 20, longest first, and the cache is emptied every 10 steps: the longest
  batch starts on an empty cache, after the shortest of the bucket before. It sets the peak; the
  shorter ones after it are left out.

So is the evaluation: its key-value cache for 50 prompts and 300 new tokens is under 3 GiB, less
than a step's logits and activations, but where a method adds to it (prefix tuning) it may set the
peak, and the prediction is too low.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from fake_gpu import AllSelected, fake_gpu
from peft import PeftConfig, get_peft_model
from peft.optimizers import (
    create_lorafa_optimizer,
    create_loraplus_optimizer,
    create_riemannian_optimizer,
)
from runs import Run
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from leantune.errors import Unsupported
from leantune.meter.allocator import CachingAllocator
from leantune.meter.fake_cuda import cuda_path, fake_copies
from leantune.meter.tensors import TensorMeter

# The one fit, for all runs: the tokens of the longest batch, which are not published.
LONGEST = 696
# assumed, not fitted: the last of the bucket before; its optimizer states, logits and cache are
# there when the longest comes
SHORT = 64
CUBLAS_WORKSPACE = (
    8_519_680  # bytes for each of two threads, forward and backward, before Hopper (CUDABlas.cpp)
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def predict(run: Run, architecture: dict[str, Any]) -> tuple[int, int]:
    """Bytes that the session reserves at most beyond its start, and the number of its trainable
    parameters.

    Raises Unsupported with the reason where it cannot be simulated.
    """
    train = run.train_config
    if train.get("use_amp"):
        raise Unsupported(
            "use_amp: autocast and its gradient scaler are not simulated for a published session"
        )
    if train["dtype"] not in DTYPES:
        raise Unsupported(f"dtype {train['dtype']}: quantised weights have no fake form")
    with _quiet():
        model, base, host = build(run, architecture)
        trainable = sum(
            p.numel() for p in {id(p): p for p in model.parameters()}.values() if p.requires_grad
        )
        trace, empty_at, weights = _session(run, model, base, host)
    return reserved(trace, empty_at, weights), trainable


def build(run: Run, architecture: dict[str, Any]) -> tuple[nn.Module, list[torch.Tensor], bool]:
    """The model with its adapter, the base model's tensors, and whether the host holds what is not
    on meta.

    The meta device stands for the GPU, so that what a method leaves on the host is known. A set-up
    that puts tensors of the GPU into parameters still on the host (PiSSA, OLoRA) runs on meta
    alone, and all is taken to be on the GPU.
    """
    try:
        return *_attached(run, architecture, torch.device("cpu")), True
    except RuntimeError:
        pass
    try:
        return *_attached(run, architecture, torch.device("meta")), False
    except (
        NotImplementedError
    ) as error:  # what torch raises where an operator needs values that meta has not
        what = str(error).split(";", maxsplit=1)[0].split(" raises", maxsplit=1)[0]
        raise Unsupported(f"its set-up needs the values of the model's weights ({what})") from error


def _attached(
    run: Run, architecture: dict[str, Any], adapter_on: torch.device
) -> tuple[nn.Module, list[torch.Tensor]]:
    train = run.train_config
    settings = dict(architecture)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[train["dtype"]])
    if train.get("use_gc"):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    base = [*model.parameters(), *model.buffers()]
    if run.peft_config:
        try:
            peft_config = PeftConfig.from_peft_type(**run.peft_config)
        except KeyError as error:
            raise Unsupported(f"this peft has no method {error}") from error
        with adapter_on:
            model = get_peft_model(
                model, peft_config, autocast_adapter_dtype=train.get("autocast_adapter_dtype", True)
            )
    return model.train(), base


def _session(
    run: Run, model: nn.Module, base: list[torch.Tensor], host: bool
) -> tuple[list[tuple[int, int]], int, int]:
    """The trace, the event at which the longest batch starts, and how many events load the base's
    tensors."""
    train = run.train_config
    gpu = fake_gpu()
    meter = TensorMeter(gpu)
    started: list[int] = []
    try:
        one_thread = torch.autograd.set_multithreading_enabled(False)  # a fake mode is not for two
        with (
            torch.random.fork_rng(devices=[]),
            AllSelected(),
            cuda_path(),
            one_thread,
        ):
            model, base = fake_copies(model, base, gpu, "cpu" if host else gpu)
            optimizer = build_optimizer(model, train)
            with meter:
                meter.track(base, "weights")
                weights = len(meter.trace)
                meter.watch(model, optimizer)
                outputs = loss = batch = None
                for step, length in enumerate((SHORT, LONGEST), 1):
                    started.append(len(meter.trace))
                    size = (train["batch_size"], min(length, train.get("max_seq_length", length)))
                    batch = {
                        name: torch.ones(size, dtype=torch.long, device=gpu)
                        for name in ("input_ids", "attention_mask")
                    }
                    batch["labels"] = batch["input_ids"].clone()
                    items = batch["attention_mask"].sum().item()
                    meter.mark("forward")
                    optimizer.zero_grad()
                    outputs = model(**batch, num_items_in_batch=items)
                    loss = outputs.loss
                    meter.mark("backward")
                    loss.backward()
                    meter.mark("optimizer")
                    if train.get("grad_norm_clip"):
                        nn.utils.clip_grad_norm_(model.parameters(), train["grad_norm_clip"])
                    optimizer.step()
                    if run.peft_config.get("peft_type") == "ADALORA":
                        model.base_model.update_and_allocate(step)
                    meter.mark("other")
    except RuntimeError as error:  # what an operator raises that needs values
        raise Unsupported(
            f"it needs tensor values at {error.args[0] if error.args else type(error).__name__}"
        ) from error
    return meter.trace, started[-1], weights


def build_optimizer(model: nn.Module, train: dict[str, Any]) -> torch.optim.Optimizer:
    """The script's optimizer, with the implementation that is the default on CUDA."""
    kind, settings = train["optimizer_type"], dict(train["optimizer_kwargs"])
    if kind in ("lora+", "riemannian"):
        create = create_loraplus_optimizer if kind == "lora+" else create_riemannian_optimizer
        return create(model, optimizer_cls=torch.optim.AdamW, **settings)
    if kind == "lora-fa":
        return create_lorafa_optimizer(model, **settings)
    cls = getattr(torch.optim, kind, None)
    if cls is None:
        raise Unsupported(f"optimizer '{kind}' is not simulated")
    if "foreach" in inspect.signature(cls).parameters:
        settings.setdefault("foreach", True)
    return cls(model.parameters(), **settings)


def reserved(trace: list[tuple[int, int]], empty_at: int, weights: int) -> int:
    """The most that is reserved beyond the start. The first `weights` events load the base model,
    and the cache is emptied before event `empty_at`."""
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(1))  # what the script does before it reads its start
    start = allocator.reserved
    allocator.free(allocator.malloc(sum(size for _, size in trace[:weights])))
    held = {}
    for event, (number, change) in enumerate(trace):
        if event == weights:
            for _ in range(2):
                allocator.malloc(CUBLAS_WORKSPACE)
        if event == empty_at:
            allocator.empty_cache()
        if change > 0:
            held[number] = allocator.malloc(change)
        else:
            allocator.free(held.pop(number))
    return allocator.peak_reserved - start


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libraries say while they set a method up would bury the table."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        said = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        gc.collect()
