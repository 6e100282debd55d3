"""Per-example predictions, and what the forward passes that made them take."""

import pytest
import torch
from small import small_model

from leantune.prediction.metered_step import metered_forward
from leantune.training.evaluation import Inference, predict_split


def batches(sizes, kind="classification", length=7):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        ids = torch.randint(5, 60, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        labels = (
            ids.masked_fill(mask == 0, -100)
            if kind == "causal_lm"
            else torch.zeros(size, dtype=torch.long)
        )
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_a_language_models_predictions_are_its_summed_losses():
    model = small_model("llama", "causal_lm").eval()
    (batch,) = batches([3], "causal_lm")
    losses, tokens = predict_split(model, [batch], "causal_lm", "cpu", "fp32")
    assert tokens == [4.0, 6.0, 6.0]  # shifted by one, two of the first are padding
    mean = model(**batch).loss.item()
    assert sum(losses) / sum(tokens) == pytest.approx(mean, rel=1e-5)


def test_a_masked_models_predictions_are_its_summed_losses_at_masked_positions():
    model = small_model("bert", "masked_lm").eval()
    (batch,) = batches([3])
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for row, column in ((0, 1), (0, 3), (2, 0)):
        batch["labels"][row, column] = batch["input_ids"][row, column]
    losses, tokens = predict_split(model, [batch], "masked_lm", "cpu", "fp32")
    assert tokens == [2.0, 0.0, 1.0]
    assert losses[1] == 0.0
    assert sum(losses) / sum(tokens) == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_watching_the_passes_changes_no_prediction_and_gives_their_speed_and_peak():
    model = small_model("bert").eval()
    plain = predict_split(model, batches([4, 4, 4, 2]), "classification", "cpu", "fp32")
    inference = Inference(model, "cpu")
    assert (
        predict_split(model, batches([4, 4, 4, 2]), "classification", "cpu", "fp32", inference)
        == plain
    )
    assert len(inference.tokens_per_second) == 3  # the first is metered
    found = inference.result()
    assert found["tokens_per_second"] > 0
    first = next(batches([4]))
    del first["labels"]
    assert found["peak_bytes"] == metered_forward(model, first).result().peak_bytes
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_single_batch_is_passed_again_to_be_timed():
    model = small_model("bert").eval()
    inference = Inference(model, "cpu")
    plain = predict_split(model, batches([4]), "classification", "cpu", "fp32")
    assert predict_split(model, batches([4]), "classification", "cpu", "fp32", inference) == plain
    assert len(inference.tokens_per_second) == 1
