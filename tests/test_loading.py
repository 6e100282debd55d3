"""What `save` wrote comes back the same, with one `import leantune` and no remote code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from small import ADAPTABLE, batch_of, run, small_context, small_data, small_model, stack
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from leantune.api import BadInput
from leantune.architectures import linears
from leantune.models.export import load, register, save
from leantune.modules import FactoredLinear, adapters, place_factored

IDS = [[2, 9, 17, 33, 3], [2, 8, 8, 60, 3]]


def trained(
    tmp_path: Path, family: str = "bert", name: str = "adapter"
) -> tuple[PreTrainedModel, Tensor]:
    """An exported model after ten steps, and its logits on IDS."""
    kind = "causal_lm" if family in ("llama", "gpt2") else "classification"
    data, ctx, model = (
        small_data(tmp_path, kind),
        small_context(tmp_path, family, kind),
        small_model(family, kind),
    )
    plugins = stack(name, kind)
    run(model, plugins, data, ctx)
    exported = plugins.export(model, ctx).eval()
    with torch.no_grad():
        return exported, exported(torch.tensor(IDS)).logits


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


@pytest.mark.parametrize("family", ADAPTABLE)
@pytest.mark.parametrize("name", ["adapter", "safe"])
def test_adapters_come_back_bit_for_bit(tmp_path: Path, family: str, name: str) -> None:
    model, expected = trained(tmp_path, family, name)
    save(model, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert len(adapters(loaded)) == 8
    assert torch.equal(logits(loaded), expected)


def test_factored_linears_of_different_ranks_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = small_model().eval()
    paths = {id(m): n for n, m in model.named_modules()}
    found = [paths[id(m)] for _, _, m in linears(model, "bert", ("query", "dense"))]
    place_factored(model, {path: 2 + i % 3 for i, path in enumerate(found)})
    save(model, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert sum(isinstance(m, FactoredLinear) for m in loaded.modules()) == len(found) == 16
    assert torch.equal(logits(loaded), logits(model))


def test_a_loaded_model_can_be_trained_and_saved_again(tmp_path: Path) -> None:
    model, expected = trained(tmp_path)
    save(model, tmp_path / "one")
    again = load(tmp_path / "one")
    again(**batch_of(small_data(tmp_path))).loss.backward()
    assert adapters(again)[0].down.weight.grad is not None
    transformers.trainer_utils.validate_quantization_for_training(again)
    save(again, tmp_path / "two")
    assert torch.equal(logits(load(tmp_path / "two")), expected)


@pytest.mark.parametrize("name", ["full", "lora", "bitfit", "head"])
def test_a_model_without_our_modules_is_a_plain_checkpoint(tmp_path: Path, name: str) -> None:
    model, expected = trained(tmp_path, name=name)
    save(model, tmp_path / "out")
    assert not hasattr(AutoConfig.from_pretrained(tmp_path / "out"), "quantization_config")
    assert torch.equal(logits(load(tmp_path / "out")), expected)
    assert torch.equal(
        logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")), expected
    )


def test_registering_twice_is_harmless() -> None:
    register()
    register()


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nothing-here holds no config\.json"):
        load(tmp_path / "nothing-here")


def test_a_checkpoint_of_no_known_class_is_named(tmp_path: Path) -> None:
    save(small_model(), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace("BertForSequenceClassification", "SomethingElse")
    )
    with pytest.raises(BadInput, match="architectures"):
        load(tmp_path)


def script(*lines: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )


def reading(folder: Path) -> list[str]:
    """Lines of a user's script: load with the ordinary class, compare the logits with the saved
    ones."""
    return [
        "import torch",
        "from transformers import AutoModelForSequenceClassification",
        f"model = AutoModelForSequenceClassification.from_pretrained('{folder}/out')",
        f"print(torch.equal(model(torch.tensor({IDS})).logits, torch.load('{folder}/logits')))",
    ]


@pytest.mark.process
def test_import_leantune_is_all_it_takes_and_its_absence_is_noticed(tmp_path: Path) -> None:
    model, expected = trained(tmp_path)
    save(model, tmp_path / "out")
    torch.save(expected, tmp_path / "logits")
    lines = reading(tmp_path)
    first = script("import leantune, sys", "assert 'torch' not in sys.modules", *lines)
    assert first.stdout == "True\n", first.stderr
    assert "quantization type" not in first.stderr
    later = script(*lines, "import leantune", *lines)
    assert later.stdout == "False\nTrue\n", later.stderr
    assert "Unknown quantization type, got leantune" in later.stderr
    assert "UNEXPECTED" in later.stderr


@pytest.mark.process
@pytest.mark.parametrize("module", ["modules", "models.export"])
def test_each_module_may_be_the_first_to_import_transformers(module: str) -> None:
    done = script(
        f"import leantune.{module}",
        "import transformers.modeling_utils, sys",
        "assert 'leantune.models.export' in sys.modules",
    )
    assert done.returncode == 0, done.stderr
