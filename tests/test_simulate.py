"""Fake copies of models, and the CUDA path on fake CPU tensors."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.testing._internal.two_tensor import TwoTensor
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from leantune.errors import Unsupported
from leantune.meter.fake_cuda import (
    CAST_TO_FP32,
    RESULT_IN_FP32,
    QuickFakeMode,
    cuda_path,
    fake_copies,
)
from leantune.meter.tensors import MemoryReading, TensorMeter
from leantune.models.load import enable_checkpointing

MIB = 2**20


def bert_base(method: str) -> nn.Module:
    """bert-base on the meta device; head is classifier and pooler (bitfit: classifier), lora r 8 by
    peft."""
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(num_labels=2))
        if method == "lora":
            config = LoraConfig(
                r=8, lora_dropout=0.1, target_modules=["query", "value"], task_type="SEQ_CLS"
            )
            return get_peft_model(model, config)  # type: ignore[arg-type]  # any model will do
    for name, parameter in model.named_parameters():
        head = "classifier" in name or (method == "head" and "pooler" in name)
        parameter.requires_grad_(
            method == "full" or head or (method == "bitfit" and name.endswith("bias"))
        )
    return model


def tiny_bert(**config: int) -> nn.Module:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    return BertForSequenceClassification(
        BertConfig(vocab_size=100, max_position_embeddings=64, **{**sizes, **config}, num_labels=2)
    )


def probe(
    model: nn.Module, size: int, length: int, fused: bool = True, autocast: bool = False
) -> MemoryReading:
    """Three steps of AdamW on a fake copy. Enter `QuickFakeMode()` (and `cuda_path()`) first."""
    fake = fake_copies(model)[0].train()
    trained = [p for p in fake.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=fused, foreach=None if fused else False)
    ids = torch.ones(size, length, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    classifies = any("classifier" in name for name, _ in model.named_modules())
    batch["labels"] = torch.ones(size, dtype=torch.long) if classifies else ids
    meter = TensorMeter()
    with meter:
        meter.watch(fake, optimizer)
        meter.track(batch.values(), "inputs")
        for _ in range(3):
            meter.mark("forward")
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = fake(**batch).loss
            meter.mark("backward")
            loss.backward()
            del loss
            meter.mark("optimizer")
            optimizer.step()
            optimizer.zero_grad()
            meter.mark("other")
    return meter.result()


@pytest.mark.parametrize(
    ("method", "peak", "mib"),
    [
        ("full", 1_974_453_324, 1883.0),
        ("lora", 966_985_192, 922.2),
        ("bitfit", 874_618_536, 834.1),
        ("head", 477_430_888, 455.3),
    ],
)
def test_bert_base_8x128_on_the_cuda_path(method: str, peak: int, mib: float) -> None:
    model = bert_base(method)
    with QuickFakeMode(), cuda_path():
        reading = probe(model, 8, 128)
    assert reading.peak_bytes == peak
    assert round(peak / MIB, 1) == mib
    assert sum(reading.by_kind.values()) == peak


def test_bert_base_8x128_on_the_plain_cpu_path() -> None:
    model = bert_base("full")
    with QuickFakeMode():
        reading = probe(model, 8, 128, fused=False)
    assert reading.peak_bytes == 2_250_687_372  # 2146.4 MiB
    assert [
        round(reading.by_kind[k] / MIB, 1) for k in ("weights", "optimizer", "activations")
    ] == [
        417.6,
        835.3,
        864.2,
    ]


def test_probing_leaves_the_model_and_the_generator_alone() -> None:
    model = tiny_bert()
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    state = torch.get_rng_state()
    with QuickFakeMode(), cuda_path():
        probe(model, 4, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p._version for p in model.parameters()] == versions
    assert all(p.grad is None for p in model.parameters())
    assert not any(isinstance(t, FakeTensor) for t in [*model.parameters(), *model.buffers()])


def test_a_fake_copy_has_the_structure_and_none_of_the_memory() -> None:
    model = tiny_bert()
    model.classifier.weight.leantune_head = True
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.register_parameter("tied", model.classifier.weight)
    model.plain = {"tables": [torch.zeros(5, dtype=torch.int8)]}
    with QuickFakeMode():
        fake = fake_copies(model)[0]
    assert type(fake) is type(model)
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in fake.named_parameters()} == {
        n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()
    }
    assert all(
        isinstance(t, FakeTensor)
        for t in [*fake.parameters(), *fake.buffers(), fake.plain["tables"][0]]
    )
    assert all(isinstance(p, nn.Parameter) for p in fake.parameters())
    assert fake.classifier.weight is fake.tied
    assert fake.classifier.weight.leantune_head
    assert fake.plain["tables"][0].dtype is torch.int8
    assert fake.config is not model.config


def test_views_of_one_storage_stay_views_of_one_storage() -> None:
    flat = torch.zeros(600)
    model = nn.Module()
    model.a = nn.Parameter(flat[:200].view(10, 20))
    model.b = nn.Parameter(flat[200:300].view(torch.int32).view(torch.float32))
    with QuickFakeMode():
        fake = fake_copies(model)[0]
        with TensorMeter() as meter:
            meter.watch(fake)
    assert meter.result().peak_bytes == flat.nbytes
    assert fake.b.storage_offset() == 200
    assert fake.a.shape == (10, 20)


def test_a_meta_model_becomes_a_cpu_one() -> None:
    with torch.device("meta"):
        model = nn.Linear(1000, 1000)
    with QuickFakeMode():
        fake = fake_copies(model)[0]
    assert fake.weight.device.type == "cpu"
    assert fake.weight.shape == (1000, 1000)


def test_a_tensor_subclass_is_refused_by_name() -> None:
    model = nn.Module()
    model.register_buffer("quantised", TwoTensor(torch.zeros(2), torch.zeros(2)))
    with QuickFakeMode(), pytest.raises(Unsupported, match="TwoTensor"):
        fake_copies(model)[0]


def saved_bytes(run: object) -> int:
    """Bytes that are live after a forward pass, less the inputs and the result."""
    assert callable(run)
    inputs = [torch.empty(2, 4, 16, 8, requires_grad=True) for _ in range(3)]
    with TensorMeter() as meter:
        meter.track(inputs, "inputs")
        meter.mark("forward")
        result = run(*inputs)
        live = sum(
            n for block, n, _ in meter._live.values() if meter.kind_of(block) == "activations"
        )
    return live - result.nbytes


def test_dropout_keeps_one_byte_an_element() -> None:
    numel = 2 * 4 * 16 * 8
    with QuickFakeMode():
        assert saved_bytes(lambda x, *_: F.dropout(x, 0.1)) == 4 * numel
        with cuda_path():
            assert saved_bytes(lambda x, *_: F.dropout(x, 0.1)) == numel
            assert saved_bytes(lambda x, *_: nn.Dropout(0.1)(x)) == numel
            assert saved_bytes(lambda x, *_: F.dropout(x, 0.1, training=False) + 0) == 0


def test_attention_keeps_no_probabilities() -> None:
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.1)

    with QuickFakeMode():
        probabilities = saved_bytes(attend)
        with cuda_path():
            fused = saved_bytes(attend)
    square = 2 * 4 * 16 * 16 * 4
    assert probabilities >= 2 * square
    assert (
        fused < square
    )  # log-sum-exp (32 rows at least), the mask as a bias, the generator's state


@pytest.mark.parametrize(("length", "padded"), [(16, 0), (13, 2 * 13 * 16 * 4)])
def test_a_mask_of_odd_length_is_copied_to_aligned_rows(length: int, padded: int) -> None:
    with QuickFakeMode(), cuda_path():
        q = torch.empty(2, 4, length, 8)
        mask = torch.empty(2, 1, length, length)
        with TensorMeter() as meter:
            meter.track([q, mask], "inputs")
            F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    copies = [size for _, size in meter.trace if size == padded]
    assert bool(copies) == bool(padded)


def test_grouped_heads_are_repeated_only_where_the_kernel_needs_it() -> None:
    with QuickFakeMode(), cuda_path():
        for dtype, repeated in ((torch.bfloat16, False), (torch.float32, True)):
            q, k = torch.empty(1, 8, 16, 64, dtype=dtype), torch.empty(1, 2, 16, 64, dtype=dtype)
            with TensorMeter() as meter:
                meter.track([q, k], "inputs")
                out = F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
            sizes = [size for _, size in meter.trace]
            assert out.shape == q.shape
            assert (
                sizes.count(q.nbytes) >= 4
            ) == repeated  # q, the result, and repeated keys and values


def header_macro(name: str) -> set[str]:
    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    body = re.search(rf"#define {name}\(_\)(.*?)\n\n", header.read_text(), re.DOTALL)
    assert body is not None
    entries = re.findall(r"_\(([\w, ]+)\)", body.group(1))
    names = {".".join(re.split(r",\s*", entry)) for entry in entries}
    # torch 2.11 has overloads for dimensions that have names too, which no model here uses.
    return {name for name in names if "dimname" not in name.lower()}


def test_the_autocast_lists_are_those_of_the_installed_torch() -> None:
    assert header_macro("AT_FORALL_FP32") == set(CAST_TO_FP32)
    assert header_macro("AT_FORALL_FP32_SET_OPT_DTYPE") == set(RESULT_IN_FP32)


OPERATIONS = {
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "pow": lambda x: x**2,
    "method": lambda x: x.rsqrt(),
    "sum": lambda x: x.sum(0),
    "loss": lambda x: F.cross_entropy(x, torch.zeros(4, dtype=torch.long)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_cuda_autocast_runs_in_float32(name: str) -> None:
    with QuickFakeMode(), cuda_path():
        x = torch.empty(4, 8, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = OPERATIONS[name](x)
        y.sum().backward()
        assert y.dtype is torch.float32
        assert x.grad is not None
        assert x.grad.dtype is torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert F.gelu(x).dtype is torch.bfloat16
            assert (x @ x.T).dtype is torch.bfloat16
        assert (x**2).dtype is torch.bfloat16  # without autocast


def test_softmax_makes_no_float32_copy_of_its_input() -> None:
    with QuickFakeMode(), cuda_path(), torch.autocast("cpu", torch.bfloat16):
        x = torch.empty(64, 64, dtype=torch.bfloat16)
        with TensorMeter() as meter:
            y = F.softmax(x, -1)
    assert meter.result().peak_bytes == y.nbytes == 64 * 64 * 4


def test_the_cuda_path_ends_with_its_context() -> None:
    before = F.dropout, F.scaled_dot_product_attention

    def fail() -> None:
        assert F.dropout is not before[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), QuickFakeMode(), cuda_path():
        fail()
    assert (F.dropout, F.scaled_dot_product_attention) == before
    with torch.autocast("cpu", torch.bfloat16):
        assert (torch.ones(2, dtype=torch.bfloat16) ** 2).dtype is torch.bfloat16


def test_checkpointing_recomputes_on_the_same_path() -> None:
    peaks = []
    for checkpointing in (False, True):
        model = tiny_bert(num_hidden_layers=4)
        if checkpointing:
            enable_checkpointing(model)
        with QuickFakeMode(), cuda_path():
            peaks.append(probe(model, 16, 48).peak_bytes)
    assert peaks[1] < 0.6 * peaks[0]


def test_autocast_on_a_decoder() -> None:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with QuickFakeMode(), cuda_path():
        half = probe(model, 16, 64, autocast=True)
        full = probe(model, 16, 64)
    assert half.by_kind["optimizer"] == full.by_kind["optimizer"]
    assert half.by_kind["activations"] < full.by_kind["activations"]


SMALL = tiny_bert(num_hidden_layers=1)


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 3), st.integers(0, 9))
def test_the_peak_never_falls_with_batch_or_length(
    size: int, length: int, more: int, longer: int
) -> None:
    with QuickFakeMode(), cuda_path():
        less = probe(SMALL, size, length).peak_bytes
        assert probe(SMALL, size + more, length + longer).peak_bytes >= less


def test_hooks_on_gradients_come_along_with_the_copy() -> None:
    """The hook refers to its module: that of the copy must work on the copy's tensors."""
    model = nn.Linear(8, 8, bias=False)
    model.weight.register_hook(_Scale(model))
    with QuickFakeMode():
        copied = fake_copies(model)[0]
        copied(torch.ones(2, 8)).sum().backward()
    (hook,) = copied.weight._backward_hooks.values()
    assert hook.module is copied
    assert hook.called == 1
    assert next(iter(model.weight._backward_hooks.values())).called == 0


class _Scale:
    def __init__(self, module: nn.Module) -> None:
        self.module, self.called = module, 0

    def __call__(self, grad: Tensor) -> Tensor:
        self.called += 1
        return grad * self.module.weight


def test_a_single_draw_is_its_mean_under_the_cuda_path_only() -> None:
    with QuickFakeMode(), cuda_path():
        assert bool(torch.rand(1) > 0.49)
        assert not bool(torch.rand([]) > 0.51)
        assert torch.rand(2, 3).shape == (2, 3)
    torch.manual_seed(0)
    assert float(torch.rand(1)) != 0.5
