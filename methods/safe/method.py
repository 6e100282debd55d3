"""SAFE (arXiv 2412.03587): the adapters that change the representation least are frozen during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from leantune_plugins.adapter.method import AdapterTuning
from leantune_plugins.safe.cka import cka
from torch import Tensor, nn

from leantune.api import BadInput, Batch, Change, Context, Data, Unsupported, is_head
from leantune.modules import Adapter, adapters


class Safe(AdapterTuning):
    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        if not 0 < self.params["warm_up"] < self.params["end"] <= 1:
            raise BadInput(
                f"safe.warm_up is {self.params['warm_up']} and safe.end {self.params['end']}; "
                "needed: 0 < warm_up < end <= 1, since fresh adapters change nothing and would all be frozen"
            )
        model, data = super().attach(model, data, ctx)
        found = adapters(model)
        layers, prefix = len(found) // self.params["per_layer"], self.params["prefix"]
        if not 0 <= prefix <= layers - (not _has_head(model)):
            raise Unsupported(f"safe.prefix is {prefix}, and this model has {layers} layers; set fewer")
        for adapter in found[: prefix * self.params["per_layer"]]:
            _stop(adapter)
        if not ctx.probe:
            dimension = found[0].up.out_features
            self.probe = _probe_batch(data, self.params["probe_tokens"] * dimension)
            ctx.details["probe_tokens"] = int(_token_mask(self.probe).sum())
        return model, data

    def threshold(self, progress: float) -> float:
        """tau(t) = tau_T (1 - (1 - (t - t_w) / (t_f - t_w))^3), 0 before t_w and tau_T after t_f."""
        start, end = self.params["warm_up"], self.params["end"]
        part = min(max((progress - start) / (end - start), 0.0), 1.0)
        return float(self.params["tau"] * (1 - (1 - part) ** 3))

    def on_progress(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: float, ctx: Context
    ) -> Change | None:
        """Freeze every adapter whose importance is under the threshold; report the check in `ctx.details`."""
        if ctx.probe or not self.params["warm_up"] < progress < 1:  # after the last step nothing is trained
            return None
        found = adapters(model)
        threshold = self.threshold(progress)
        importance = importances(model, self.probe, ctx.dtype)
        doomed = [i for i, value in importance.items() if value < threshold]
        if doomed and len(doomed) == len(importance) and not _has_head(model):
            doomed.remove(max(doomed, key=importance.__getitem__))  # something must go on learning
        freeze([found[i] for i in doomed], optimizer)
        learning = [i for i in importance if i not in doomed]
        ctx.details.setdefault("checks", []).append(
            {
                "progress": progress,
                "threshold": threshold,
                "importance": [importance.get(i) for i in range(len(found))],  # null: frozen before
                "frozen": [i for i in range(len(found)) if i not in learning],
                "first_trainable_layer": learning[0] // self.params["per_layer"] if learning else None,
            }
        )
        return Change(model) if doomed else None


def importances(model: nn.Module, probe: Batch, dtype: str = "fp32") -> dict[int, float]:
    """1 - CKA(after, before) on the probe's real tokens, for every adapter that still learns, by its index.

    With `dtype` bf16 the activations are those of training, under autocast; their similarity is computed in fp32.
    """
    found = adapters(model)
    device = found[0].down.weight.device
    mask = _token_mask(probe).to(device)
    values: dict[int, float] = {}

    def measure(index: int, _base: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        output = output[0] if isinstance(output, tuple) else output  # as `Adapter.forward` does
        before = output.reshape(*mask.shape, -1)[mask]  # OPT has sequences and tokens in one dimension
        after = found[index].bottlenecked(before)
        with torch.autocast(device.type, enabled=False):
            values[index] = max(0.0, 1 - cka(before, after))

    hooks = [a.base.register_forward_hook(partial(measure, i)) for i, a in enumerate(found) if _learns(a)]
    precision = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")
    body = getattr(model, model.base_model_prefix, model)  # the head, and an LM's logits, are not needed
    try:
        if hooks:
            with torch.no_grad(), _evaluating(model), precision:
                body(**{k: v.to(device) for k, v in probe.items()})
    finally:
        for hook in hooks:
            hook.remove()
    return values


def freeze(doomed: list[Adapter], optimizer: torch.optim.Optimizer) -> None:
    """Stop training these adapters and forget what the optimizer holds for them.

    A parameter that stayed in its group would still move by a stale gradient, or by one set to zero.
    """
    gone = set()
    for adapter in doomed:
        _stop(adapter)
        for p in adapter.own_parameters():
            optimizer.state.pop(p, None)
            gone.add(id(p))
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]


def _stop(adapter: Adapter) -> None:
    for p in adapter.own_parameters():
        p.requires_grad_(False)
        p.grad = None


def _has_head(model: nn.Module) -> bool:
    return any(is_head(p) for p in model.parameters())


def _learns(adapter: Adapter) -> bool:
    return adapter.down.weight.requires_grad


def _probe_batch(data: Data | None, tokens: int) -> Batch:
    """The longest training examples (little padding) that have `tokens` tokens together, or all of them."""
    if data is None or data.collate is None:
        raise BadInput("'safe' compares activations on training examples; pass data= with a collate function")
    lengths = [len(ids) for ids in data.train["input_ids"]]
    chosen, count = [], 0
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if count >= tokens:
            break
        chosen.append(row)
        count += lengths[row]
    with torch.random.fork_rng(devices=[]):  # a collator may draw numbers
        batch = data.collate([data.train[row] for row in chosen])
    return {k: v for k, v in batch.items() if k != "labels"}


def _token_mask(probe: Batch) -> Tensor:
    """Which positions hold real tokens, bool [sequences, length]."""
    ids = probe["input_ids"]
    return probe.get("attention_mask", torch.ones_like(ids)).bool()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, then every module back to the mode that it was in."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
