"""The exact meter against the allocator's own events, on real training steps, and on the ways
tensors share bytes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from leantune.files.record import BYTE_KINDS
from leantune.meter.fake_cuda import QuickFakeMode, fake_copies
from leantune.meter.tensors import MemoryReading, TensorMeter

MIB = 2**20


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=500,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=64,
            num_labels=2,
        )
    )


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=2, n_positions=64, use_cache=False)
    )


LLAMA = {
    **{"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False},
}


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def mixtral() -> nn.Module:
    """Its experts are one product of stacked weights."""
    return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=4))


def lora(model: nn.Module) -> nn.Module:
    names = {"bert": ["query", "value"], "gpt2": ["c_attn"]}
    targets = names.get(model.config.model_type, ["q_proj", "v_proj"])
    # any model will do
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=0.1))  # type: ignore[arg-type]


def batch_for(model: nn.Module, size: int = 3, length: int = 24) -> dict[str, Tensor]:
    ids = torch.arange(size * length).reshape(size, length) % 400
    mask = torch.ones(size, length, dtype=torch.long)
    mask[0, length // 2 :] = 0  # a mask of ones only is dropped on real data and kept on fake data
    one_label_each = model.config.model_type == "bert"
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.ones(size).long() if one_label_each else ids,
    }


def train(
    model: nn.Module, batch: dict[str, Tensor], fused: bool = True, steps: int = 3
) -> TensorMeter:
    """A training loop by hand, under a meter."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=fused, foreach=None if fused else False)
    meter = TensorMeter()
    meter.track(batch.values(), "inputs")
    meter.watch(model, optimizer)
    with meter:
        for _ in range(steps):
            meter.mark("forward")
            loss = model(**batch).loss
            meter.mark("backward")
            loss.backward()
            loss.item()
            del loss
            meter.mark("optimizer")
            optimizer.step()
            optimizer.zero_grad()
            meter.mark("other")
    return meter


def profiled_peak(run: Callable[[], object]) -> int:
    """The highest sum of the CPU allocator's events while `run` runs, everything it made still
    alive."""
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        kept = run()
    assert kept is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "loop"])
@pytest.mark.parametrize("method", [lambda m: m, lora], ids=["full", "lora"])
@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_peak_is_the_allocators(
    make: Callable[[], nn.Module], method: Callable, fused: bool
) -> None:
    readings: list[MemoryReading] = []

    def run() -> object:
        model = method(make())
        batch = batch_for(model)
        readings.append(train(model, batch, fused).result())
        return model, batch

    peak = profiled_peak(run)
    assert abs(readings[0].peak_bytes - peak) <= 512


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "loop"])
@pytest.mark.parametrize("method", [lambda m: m, lora], ids=["full", "lora"])
@pytest.mark.parametrize("make", [bert, gpt2, llama, mixtral])
def test_fake_equals_real(make: Callable[[], nn.Module], method: Callable, fused: bool) -> None:
    model = method(make())
    with QuickFakeMode():
        copy = fake_copies(model)[0]
        fake = train(copy, batch_for(copy), fused).result()
    real = train(model, batch_for(model), fused).result()
    assert fake.peak_bytes == real.peak_bytes
    assert fake.by_kind == real.by_kind
    assert fake.by_phase == real.by_phase
    assert fake.persistent_bytes == real.persistent_bytes


def test_the_trace_is_the_same_again_whatever_the_seed() -> None:
    readings = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = bert()
        readings.append(train(model, batch_for(model)).result())
    assert readings[0] == readings[1]
    longer = train(model, batch_for(model, length=32)).result()
    assert longer.trace_sha256 != readings[0].trace_sha256


def test_kinds_are_what_they_say_and_add_up() -> None:
    model = bert()
    batch = batch_for(model)
    meter = train(model, batch)
    reading = meter.result()
    weights = sum(p.nbytes for p in model.parameters())
    assert set(reading.by_kind) == set(BYTE_KINDS)
    assert sum(reading.by_kind.values()) == reading.peak_bytes == max(reading.by_phase.values())
    assert reading.by_kind["weights"] == weights
    assert reading.by_kind["inputs"] == sum(t.nbytes for t in batch.values())
    assert (
        2 * weights
        <= reading.by_kind["optimizer"]
        <= 2 * weights + 4 * len(list(model.parameters()))
    )
    assert reading.by_kind["activations"] > 0
    assert (
        reading.persistent_bytes
        == weights + reading.by_kind["buffers"] + reading.by_kind["optimizer"]
    )
    assert reading.events == len(meter.trace)


def test_gradients_are_known_by_their_owner_although_born_as_temporaries() -> None:
    model = nn.Linear(512, 512, bias=False)
    meter = TensorMeter()
    with meter:
        meter.watch(model)
        meter.mark("forward")
        loss = model(torch.ones(1, 512)).sum()
        meter.mark("backward")
        loss.backward()
        meter.mark("optimizer")
        extra = torch.empty(4 * MIB, dtype=torch.uint8)
        reading = meter.result()
    assert reading.by_kind["gradients"] == model.weight.nbytes
    assert reading.by_kind["temporaries"] >= extra.nbytes
    assert reading.peak_phase == "optimizer"


def test_a_64_mib_tensor_is_64_mib_while_it_lives() -> None:
    with TensorMeter() as meter:
        meter.mark("forward")
        block = torch.empty(64 * MIB, dtype=torch.uint8)
        views = [
            block[1:],
            block.view(8, -1),
            block.view(torch.float32),
            block.detach(),
            block.expand(2, -1),
        ]
        during = meter.result()
        del block, views
        meter.mark("other")
        after = torch.empty(32 * MIB, dtype=torch.uint8)
    reading = meter.result()
    assert during.peak_bytes == reading.peak_bytes == 64 * MIB
    assert reading.by_kind["activations"] == 64 * MIB
    assert reading.by_phase == {"other": after.nbytes, "forward": 64 * MIB}
    assert [change for _, change in meter.trace] == [64 * MIB, -64 * MIB, 32 * MIB]


def test_a_view_keeps_the_whole_storage_alive() -> None:
    with TensorMeter() as meter:
        corner = torch.empty(MIB, dtype=torch.uint8)[:1]
        another = torch.empty(MIB, dtype=torch.uint8)
    assert meter.result().peak_bytes == 2 * MIB
    assert corner.numel() + another.numel() == MIB + 1


def test_resizing_in_place_needs_old_and_new_at_once() -> None:
    with TensorMeter() as meter:
        tensor = torch.empty(MIB, dtype=torch.uint8)
        meter.track([tensor], "weights")
        tensor.resize_(3 * MIB)
        grown = meter.result()
        tensor.untyped_storage().resize_(0)  # by no operator: noticed at the next mark
        meter.mark("other")
        tensor.untyped_storage().resize_(2 * MIB)
        meter.mark("other")
    assert (
        grown.peak_bytes
        == 4 * MIB
        == profiled_peak(lambda: torch.empty(MIB, dtype=torch.uint8).resize_(3 * MIB))
    )
    assert grown.by_kind["weights"] == 4 * MIB
    assert meter.result().persistent_bytes == 2 * MIB


def test_tied_aliased_and_shared_tensors_count_once() -> None:
    model = nn.ModuleDict(
        {"a": nn.Linear(256, 256, bias=False), "b": nn.Linear(256, 256, bias=False)}
    )
    model["b"].weight = model["a"].weight
    model.share_memory()
    alias = torch.empty(0)
    with TensorMeter() as meter:
        meter.watch(model)
        alias.set_(model["a"].weight.detach())
        model["a"].weight.data = model["a"].weight.data.view(256, 256)
        meter.mark("other")
    reading = meter.result()
    assert reading.peak_bytes == reading.by_kind["weights"] == 256 * 256 * 4


def test_plain_tensor_attributes_of_modules_are_buffers() -> None:
    model = nn.Module()
    model.table = {"cos": [torch.zeros(1000)]}
    with TensorMeter() as meter:
        meter.watch(model)
    assert meter.result().by_kind["buffers"] == 4000


def test_subclasses_count_what_they_hold_and_their_temporaries() -> None:
    with TensorMeter() as meter:
        pair = TwoTensor(torch.zeros(MIB // 4), torch.zeros(MIB // 4))
        total = (pair + 1) * 2
    assert meter.result().peak_bytes == 6 * MIB  # two inputs, two sums, two products
    assert total.shape == (MIB // 4,)
    with TensorMeter() as meter:
        meter.track([pair], "weights")
    assert meter.result().by_kind["weights"] == 2 * MIB


def test_meta_tensors_have_no_bytes_and_sparse_ones_their_parts() -> None:
    with TensorMeter() as meter:
        torch.empty(MIB, device="meta") + 1
        assert meter.result().peak_bytes == 0
        sparse = torch.eye(10).to_sparse()
        meter.track([sparse], "gradients")
        meter.mark("other")
        filler = torch.zeros(MIB)
    assert meter.result().by_kind["gradients"] == 10 * (2 * 8 + 4)
    assert filler.numel() == MIB


def test_garbage_in_cycles_is_collected_at_marks() -> None:
    with TensorMeter() as meter:
        cycle: list[object] = [torch.empty(MIB, dtype=torch.uint8)]
        cycle.append(cycle)
        del cycle
        meter.mark("other")
        kept = torch.empty(MIB, dtype=torch.uint8)
    assert gc.isenabled()
    assert meter.result().peak_bytes == kept.nbytes


def test_a_reading_stays_as_it_was_when_the_meter_ended() -> None:
    with TensorMeter() as meter:
        tensor = torch.empty(MIB, dtype=torch.uint8)
        meter.track([tensor], "weights")
    before = meter.result()
    del tensor
    torch.empty(5 * MIB)
    assert meter.result() == before


def test_items_of_fake_tensors_are_answered() -> None:
    with QuickFakeMode(), TensorMeter():
        assert torch.empty(3).sum().item() == 1.0
        assert torch.empty(3).long().max().item() == 1
        assert torch.empty(3).bool().any().item() is False
        assert torch.tensor(7.5).item() == 7.5


@pytest.mark.parametrize("call", [lambda m: m.mark("evaluation"), lambda m: m.track([], "grads")])
def test_unknown_words_are_refused(call: Callable[[TensorMeter], None]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        call(TensorMeter())


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_threads_do_not_change_the_trace() -> None:
    model = gpt2()
    several = train(model, batch_for(model)).result()
    with one_thread():
        assert train(model, batch_for(model)).result() == several
