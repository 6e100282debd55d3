"""What a user would ask instead, for the same runs: accelerate's formula, and two packages from
PyPI.

Each takes the longest batch that ours takes. One that is not installed, or has no input for a run's
method, gives no number: `pip install fitcheck-llm==0.3.1 qmemcalc==0.1.1`, or the extra `peers`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from runs import Run
from session import LONGEST
from transformers import AutoConfig, AutoModel

MIB = 2**20
PACKAGES = {"fitcheck-llm": "fitcheck", "qmemcalc": "qmemcalc"}
PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
LORA_TARGETS = {
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
}  # those fitcheck knows


def missing() -> list[str]:
    """The packages that are not installed."""
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]


def estimates(
    run: Run, architecture: dict[str, Any], trainable: int | None, gpu: str
) -> dict[str, float | None]:
    """Bytes by peer; None where it has no number for this run."""
    absent = missing()
    return {
        "accelerate": accelerate(json.dumps(architecture), run.train_config["dtype"]),
        "fitcheck-llm": None if "fitcheck-llm" in absent else fitcheck(run, architecture, gpu),
        "qmemcalc": None if "qmemcalc" in absent else qmemcalc(run, architecture, trainable),
    }


@functools.cache
def accelerate(architecture: str, dtype: str) -> float:
    """`accelerate estimate-memory`'s training figure: the model's size in float32 and a factor of
    the dtype."""
    kind = json.loads(architecture)
    with torch.device("meta"):
        model = AutoModel.from_config(
            AutoConfig.for_model(kind.pop("model_type"), **kind), dtype=torch.float32
        )
    return float(max(estimate_training_usage(calculate_maximum_sizes(model)[0], dtype).values()))


def fitcheck(run: Run, architecture: dict[str, Any], gpu: str) -> float | None:
    """fitcheck-llm's total. It knows full fine-tuning and LoRA on the usual projections."""
    from fitcheck import TrainingConfig, estimate, get_gpu
    from fitcheck.config_parser import ModelConfig, _count_params, _parse_fields

    train, peft = run.train_config, run.peft_config
    targets = peft.get("target_modules") or []
    if peft and (
        peft["peft_type"] != "LORA" or isinstance(targets, str) or not set(targets) <= LORA_TARGETS
    ):
        return None
    fields = _parse_fields(architecture)
    model = ModelConfig(name="published", num_params=_count_params(fields), **vars(fields))
    config = TrainingConfig(
        precision=PRECISION[train["dtype"]],
        batch_size=train["batch_size"],
        seq_len=min(LONGEST, train.get("max_seq_length", LONGEST)),
        lora_rank=peft["r"] if peft else None,
        lora_targets=list(targets),
        optimizer=train["optimizer_type"].lower(),
        grad_checkpoint=bool(train.get("use_gc")),
        flash_attn=True,
    )
    try:
        return estimate(model, config, get_gpu(gpu.rsplit(maxsplit=1)[-1])).total_mib * MIB
    except ValueError:  # its word for what it does not model: an optimizer, a card
        return None


def qmemcalc(run: Run, architecture: dict[str, Any], trainable: int | None) -> float | None:
    """qmemcalc's total, given the trainable parameters that ours counted."""
    from qmemcalc import estimate_memory

    if trainable is None:
        return None
    train = run.train_config
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(architecture))
        result = estimate_memory(
            folder,
            train["batch_size"],
            min(LONGEST, train.get("max_seq_length", LONGEST)),
            precision=PRECISION[train["dtype"]],
            optimizer=train["optimizer_type"].lower(),
            num_trainable_params=trainable,
            gradient_checkpointing=bool(train.get("use_gc")),
        )
    return float(result["total_MB"]) * 1e6
