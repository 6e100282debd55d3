"""What every method plugin must pass, found in `methods/` and in the folders of LEANTUNE_PLUGINS."""

from pathlib import Path

import pytest
from small import small_model

from leantune import registry
from leantune.api import Context
from leantune.probe import Probe
from leantune.stack import Stack
from leantune.train import Schedule

DECLARED = {"vocab_pruning": {"vocab_pruning.vocabulary": 20}}  # shapes that follow from data
SPECS = {name: registry.get("methods", name).spec for name in sorted(registry.discover("methods"))}
TRAIN = [name for name, spec in SPECS.items() if spec["slot"] != "control" and spec.get("trains", True)]


@pytest.mark.parametrize("name", TRAIN)
def test_memory_on_tensors_without_values_is_that_on_real_ones(name: str) -> None:
    families = SPECS[name].get("supports", {}).get("families", ["bert"])
    family = "bert" if "bert" in families else families[0]
    kind = "causal_lm" if family in ("llama", "gpt2", "mamba") else "classification"
    stack = Stack(registry.parse_stack(name, kind, DECLARED.get(name)))
    ctx = Context(
        kind=kind, family=family, steps=8, head_lr=1e-3, seed=0, device="cpu", batch=3, length=12,
        cache=Path("."), probe=True,
    )  # fmt: skip
    model = small_model(family, kind)
    model, _ = stack.attach(model, None, ctx)
    probe = Probe(stack, Schedule(steps=8), ctx, (3, 12))
    fake, real = probe.fake(model, cuda=False), probe.real(model)
    for number in ("peak_bytes", "peak_phase", "by_kind", "by_phase", "optimizer_state_bytes", "flops_per_step"):
        assert fake[number] == real[number], number
