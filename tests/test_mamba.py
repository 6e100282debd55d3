"""Mamba's fused kernel on tensors without values: what it keeps, and that a model trains through
it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mamba import modeling_mamba

from leantune.meter import fake_mamba
from leantune.meter.fake_cuda import QuickFakeMode, cuda_path
from leantune.meter.tensors import TensorMeter
from leantune.prediction import one
from leantune.prediction.ask import Ask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_by_the_forward_pass(dtype: torch.dtype) -> None:
    batch, inner, length, rank, states, width = 3, 64, 20, 4, 16, 32
    with QuickFakeMode(), cuda_path():
        xz, conv, x_proj, dt_proj, out_proj = (
            torch.empty(*shape, dtype=dtype, requires_grad=True)
            for shape in (
                (batch, 2 * inner, length),
                (inner, 1, 4),
                (rank + 2 * states, inner),
                (inner, rank),
                (width, inner),
            )
        )
        A, D, bias = torch.empty(inner, states), torch.empty(inner), torch.empty(inner)
        with TensorMeter() as meter:
            meter.track((xz, conv, x_proj, dt_proj, out_proj, A, D, bias), "inputs")
            given = meter.live_bytes
            out = fake_mamba.kernel(
                xz, conv, None, x_proj, dt_proj, out_proj, None, A, None, None, D, delta_bias=bias
            )
            element = dtype.itemsize
            kept = element * (
                batch * length * (rank + 2 * states) + 2 * batch * states * length
            )  # x_dbl, B, C
            kept += element * batch * inner * length  # the scan's output
            kept += 4 * batch * inner * 2 * states  # one chunk's states, fp32
            result = element * batch * length * width
            assert meter.live_bytes - given == kept + result
            out.sum().backward()
        assert xz.grad is not None
        assert xz.grad.shape == xz.shape
        assert dt_proj.grad is not None


def test_a_model_takes_the_kernel_and_gives_it_back() -> None:
    before = modeling_mamba.mamba_inner_fn
    config = AutoConfig.for_model(
        "mamba",
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        intermediate_size=64,
    )
    with QuickFakeMode(), cuda_path(), TensorMeter() as meter:
        model = AutoModelForCausalLM.from_config(config).train()
        ids = torch.ones(2, 64, dtype=torch.long)
        model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert (
        meter.result().events < 2000
    )  # the scan token by token would be 64 x 2 x dozens of operators
    assert modeling_mamba.mamba_inner_fn is before


@pytest.mark.process
def test_memory_grows_evenly_with_length() -> None:
    peaks = [
        one.predict(Ask("mamba-130m", "lora", batch=1, length=n))["peak_bytes"]
        for n in (64, 128, 192)
    ]
    assert peaks[0] < peaks[1] < peaks[2]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.02)
