"""QLoRA: 4-bit weights by bitsandbytes, what a step keeps, and the export."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from small import batch_of, method, run, small_context, small_data, small_model, stack, trainable
from torch import nn

from leantune.api import BadInput, is_head
from leantune.prediction import one
from leantune.prediction.ask import Ask
from leantune.spec import plugins
from leantune.training.stack import load_method

NF4Linear = vars(sys.modules[load_method("qlora").__module__])["NF4Linear"]


def test_the_product_and_its_gradient_are_those_of_bitsandbytes() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(256, 128)
    theirs = Linear4bit(
        256, 128, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True
    )
    theirs.load_state_dict(plain.state_dict())
    theirs.to("cpu")
    ours = NF4Linear(plain, torch.float32)
    x, y = (
        torch.randn(4, 256, generator=torch.Generator().manual_seed(1)).requires_grad_()
        for _ in range(2)
    )
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(y), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-3)
    error = (ours.weight - plain.weight).abs().max() / plain.weight.abs().max()
    assert 0 < error < 0.2


def test_a_map_takes_about_four_bits_a_number() -> None:
    layer = NF4Linear(nn.Linear(1024, 1024, bias=False), torch.bfloat16)
    kept = [*layer.parameters(), *layer.buffers()]
    bits = 8 * sum(t.nbytes for t in kept) / 1024**2
    assert 4.12 < bits < 4.14


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_only_lora_and_the_head_learn_and_the_export_is_plain(tmp_path: Path, family: str) -> None:
    kind = "classification" if family == "bert" else "causal_lm"
    data, ctx, model = (
        small_data(tmp_path, kind),
        small_context(tmp_path, family, kind),
        small_model(family, kind),
    )
    used = stack("qlora", kind, compute="fp32")
    run(model, used, data, ctx)
    learns = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or is_head(p) for n, p in learns.items())
    trained = model.eval()(**batch_of(data)).logits
    plain = small_model(family, kind)
    exported = used.export(model, ctx)
    assert [type(m) for m in exported.modules()] == [type(m) for m in plain.modules()]
    exported.save_pretrained(tmp_path / "out")
    loaded = type(plain).from_pretrained(tmp_path / "out")
    assert torch.allclose(loaded(**batch_of(data)).logits, trained, atol=1e-5)


def test_products_are_in_bf16_unless_asked(tmp_path: Path) -> None:
    model, data = small_model(), small_data(tmp_path)
    method("qlora").attach(model, data, small_context(tmp_path))
    layer = next(m for m in model.modules() if isinstance(m, NF4Linear))
    assert layer.compute is torch.bfloat16
    assert layer(torch.ones(1, 16)).dtype is torch.float32
    assert trainable(model) == 8 * 2 * 8 * 16  # eight maps, A and B, rank 8, width 16
    with pytest.raises(BadInput, match="allowed: bf16, fp32"):
        method("qlora", compute="fp8").attach(small_model(), data, small_context(tmp_path))


@pytest.mark.process
def test_memory_is_predicted_without_weights() -> None:
    """bert-base's 72 maps hold 84,934,656 numbers: 4.13 bits in place of 32."""
    spec = plugins.get("models", "bert-base").raw
    built = one.build(spec, stack("qlora"), small_context(Path(), probe=True), 2)
    assert all(t.is_meta for t in built.state_dict().values())
    lora, ours = (one.predict(Ask("bert-base", n, batch=1, length=32)) for n in ("lora", "qlora"))
    assert ours["path"] == "cuda-simulated"
    weights = [r["by_kind"]["weights"] + r["by_kind"]["buffers"] for r in (lora, ours)]
    assert weights[0] - weights[1] == pytest.approx(84_934_656 * (32 - 4.14) / 8, rel=2e-3)
    assert ours["parameters"]["trainable"] == lora["parameters"]["trainable"] == 294_912
