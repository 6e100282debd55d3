"""The worker: one process that runs one cell through its phases and leaves a result for the
supervisor.

    import, predict, wait (memory lease), load, attach, measure, training (its first step apart),
    export, evaluation (its first forward pass metered, the others timed)

`python -m leantune.worker FOLDER` reads `FOLDER/job.json` and writes `FOLDER/phases.jsonl` (a line
as each phase starts, so that a killed worker's last phase is known) and `FOLDER/result.json`. The
score is that of the exported model, so export comes before evaluation.
"""

# ruff: noqa: E402
from __future__ import annotations

import gc

# collecting while the libraries below are imported costs one to two seconds a cell; `main` ends it
gc.disable()

import contextlib
import copy
import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path

if (
    __name__ == "__main__"
):  # a worker does not outlive its supervisor; here, since the imports below take seconds
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if (
        os.getppid() != json.loads(Path(sys.argv[1], "job.json").read_text())["supervisor"]
    ):  # it has ended before that
        sys.exit(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as in cli.py

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leantune import metrics
from leantune.api import LANGUAGE_MODELS, Context, Data, is_head, mark_head
from leantune.data import collate
from leantune.data import load as datasets_
from leantune.data.collate import longest_batch_shape
from leantune.errors import RETRY, BadInput, Diverged, Unsupported
from leantune.fetch import cache
from leantune.files import record
from leantune.machine import memory
from leantune.machine.memory_lease import memory_lease
from leantune.models import export as loading
from leantune.models.load import enable_checkpointing, load_model, load_tokenizer, parameter_counts
from leantune.prediction import cards, one
from leantune.prediction.metered_step import Probe
from leantune.run import record_parts
from leantune.run.phases import Intervals, Phases
from leantune.spec.cells import Cell, resolve_cell
from leantune.training import evaluation, resume
from leantune.training.evaluation import Inference
from leantune.training.flatness import flatness
from leantune.training.loop import Schedule, Training, Watch, train
from leantune.training.resume import Preempted, Stop
from leantune.training.stack import Stack, context_cache


def run_cell(
    cell: Cell,
    folder: Path,
    phases: Phases,
    force: bool,
    limit: int | None,
    export: str | None,
    draws: int,
    terminal: bool,
    kept: str,
    stop: Stop,
) -> dict[str, Any]:
    """Run one cell; returns the parts of the record that the worker knows.

    A cell that is predicted not to fit, or to need more than `limit` bytes, is not started (status
    `oom`) unless `force` says so; `export` is a folder that gets the trained model; `draws` random
    changes of what was trained, frozen since or not, tell how flat its minimum is (0: none);
    `terminal` says that a person watches; `kept` is the file of the checkpoint that training starts
    from, where there is one, and leaves when `stop` says so.

    Raises BadInput, Unsupported, Diverged, Preempted or an out-of-memory error.
    """
    stack = Stack(cell.parts)
    if stack.control is not None:
        return _run_control(cell, stack, folder, phases)
    spec = {
        **cell.model.raw,
        "folder": cell.model.folder,
    }  # a local source is relative to its file
    kind, training = cell.task.spec.kind, cell.training
    torch.manual_seed(cell.seed)
    result: dict[str, Any] = {}
    with phases("data"):
        tokenizer = load_tokenizer(spec)
        data = datasets_.load_data(
            {
                **cell.task.raw,
                "folder": cell.task.folder,
                "splits": cell.splits,
                "training": training,
            },
            tokenizer,
            training["length"],
        )
        samples = datasets_.sample_hash(data)
    ctx = Context(
        kind=kind,
        family=spec["family"],
        steps=training["steps"],
        head_lr=training["head_lr"],
        seed=cell.seed,
        device=cell.device,
        batch=training["batch"],
        length=training["length"],
        dtype=training["dtype"],
        cache=context_cache(cache.cache_folder(), cell.hashes["model"]),
    )
    labels = max(len(data.label_names), 1)
    shape = longest_batch_shape(data.train, training["batch"])
    types = "token_type_ids" in data.train.column_names
    probe = Probe(
        stack, Schedule.from_training(training), ctx, shape, training["checkpointing"], types
    )
    with phases("predict"):
        predicted = one.predict_cell(spec, stack, probe, labels, data)
    with contextlib.ExitStack() as held:
        if not force and predicted["peak_bytes"] is not None:
            try:
                with phases("wait"):
                    _admit(cell, predicted, limit, held)
            except memory.DoesNotFit as error:
                refused = {"status": "oom", "phase": "wait", "reason": f"predicted: {error}"}
                return {
                    **refused,
                    "memory": record_parts.predicted_only(predicted),
                    "samples": samples,
                }
        with phases("load"):
            model = load_model(spec, kind, labels, cell.seed)
            mark_head(model, kind)
            model.to(cell.device)
        with phases("attach"):
            model, attached = stack.attach(model, data, ctx)
            assert attached is not None
            data = attached
            if training["checkpointing"]:
                enable_checkpointing(model)
        result["parameters"] = parameter_counts(model)
        trained_ids = {id(p): p for p in model.parameters() if p.requires_grad}
        trained = {
            name for name, p in model.named_parameters() if p.requires_grad and not is_head(p)
        }
        with phases("measure"):
            tensors = probe(model)
        watch = Intervals(cell, phases, terminal, probe)
        file, digest = Path(kept), resume.identity(cell, samples)
        state = _kept_state(file, digest, watch, ctx, phases)
        stop.deferred = True
        try:
            with phases("training"), phases.clocks:
                phases.mark("first step")
                outcome = _train(model, stack, data, cell, ctx, watch, stop, state)
        except Preempted as stopped:
            if stopped.state is not None:
                measured = {
                    "details": ctx.details,
                    "readings": watch.readings,
                    "phases": phases.measured(),
                }
                if resume.write(file, digest, stopped.state, measured):
                    _say(
                        f"asked to stop: the checkpoint after step {stopped.step} of {ctx.steps} is kept"
                    )
            else:
                _say(
                    f"asked to stop: {cell.method} cannot go on from step {stopped.step}, so the cell will start over"
                )
            raise
        model = outcome.model
        trained_ids |= {id(p): p for p in model.parameters() if p.requires_grad}
        live = {id(p) for p in model.parameters()}
        stored = sum(p.numel() * p.element_size() for i, p in trained_ids.items() if i in live)
        if draws:  # before a method merges what it trained
            trained |= {
                name for name, p in model.named_parameters() if p.requires_grad and not is_head(p)
            }
            with phases("flatness"):
                flat = flatness(model, trained, _validation_loss(data, cell), draws, cell.seed)
        with phases("export"):
            deployed = stack.export(model, ctx).eval()
            if export is not None:
                loading.save(deployed, export)  # type: ignore[arg-type]
                tokenizer.save_pretrained(export)
        with phases("evaluation"):
            inference = Inference(deployed, cell.device)
            result["quality"] = _quality(deployed, data, cell, outcome, inference)
            result["inference"] = inference.result()
        if draws:
            result["quality"]["flatness"] = flat
    deployed_parameters = {id(p): p for p in deployed.parameters()}.values()
    result["size"] = {
        "checkpoint_bytes": stored,
        "deployed_parameters": sum(p.numel() for p in deployed_parameters),
        "deployed_bytes": sum(p.numel() * p.element_size() for p in deployed_parameters),
    }
    result["memory"] = record_parts.memory_figures(cell, tensors, watch.readings, phases, predicted)
    return {
        **result,
        "time": record_parts.time_figures(outcome, phases),
        "details": ctx.details,
        "samples": samples,
    }


def _admit(
    cell: Cell, predicted: dict[str, Any], limit: int | None, held: contextlib.ExitStack
) -> None:
    """Lease the cell's memory until `held` closes. Raises memory.DoesNotFit where it cannot fit."""
    if cell.device == "cuda":
        capacity = torch.cuda.get_device_properties(0).total_memory
        memory.check(
            predicted["reserved_bytes"] + cards.CONTEXT_BYTES, capacity, limit, "GPU memory"
        )
    else:
        held.enter_context(
            memory_lease(memory.need_bytes(predicted["peak_bytes"]), _say, limit=limit)
        )


def _kept_state(
    file: Path, digest: str, watch: Intervals, ctx: Context, phases: Phases
) -> resume.State | None:
    """The state that training goes on from, with what was measured before it put where it belongs."""
    found = resume.read(file, digest)
    if found is None:
        return None
    state, measured = found
    ctx.details.clear()
    ctx.details.update(measured["details"])
    watch.readings.extend(measured["readings"])
    watch.first = state["step"]
    phases.go_on(measured["phases"])
    _say(f"going on after step {state['step']} of {ctx.steps}")
    return state


def _train(
    model: nn.Module,
    stack: Stack,
    data: Data,
    cell: Cell,
    ctx: Context,
    watch: Watch,
    stop: Stop,
    state: resume.State | None,
) -> Training:
    assert data.collate is not None
    if not stack.trains:
        return Training(model, [], [], [])
    training = cell.training
    micro = training["batch"] // training["accumulate"]
    batches = collate.batches(
        data.train, data.collate, micro, training["steps"] * training["accumulate"], cell.seed, True
    )

    def score(current: nn.Module) -> float:
        if "vocabulary" in stack.methods and data.kind in LANGUAGE_MODELS:
            # Language models are scored over the full vocabulary.
            current = stack.methods["vocabulary"].export(copy.deepcopy(current), ctx)
        return _score(current, data, cell, "validation")[0]

    return train(
        model,
        stack,
        iter(batches),
        Schedule.from_training(training),
        ctx,
        watch,
        score,
        stop.wanted,
        state,
    )


def _score(
    model: nn.Module, data: Data, cell: Cell, split: str, inference: Inference | None = None
) -> tuple[float, dict[str, float | None], list[float], list[float]]:
    """(score, all metrics, predictions, references) on a split."""
    metric = cell.task.raw["metric"]
    predictions, references = evaluation.predict(
        model, data, split, cell.training, cell.device, inference
    )
    values = metrics.compute(metric["module"], predictions, references)
    kept = metrics.kept(metric["module"], metric["score"], predictions, references)
    return _finite(values[metric["score"]]), values, *kept


def _validation_loss(data: Data, cell: Cell) -> Callable[[nn.Module], float]:
    batches = list(evaluation.evaluation_batches(data, "validation"))
    return lambda model: evaluation.mean_loss(model, batches, cell.device, cell.training["dtype"])


def _finite(value: float | None) -> float:
    return 0.0 if value is None else float(value)


def _quality(
    model: nn.Module, data: Data, cell: Cell, outcome: Training, inference: Inference
) -> dict[str, Any]:
    split = (
        "test" if cell.trial is None else "validation"
    )  # the final score never sees what tuning looked at
    value, values, predictions, references = _score(model, data, cell, split, inference)
    return _quality_entry(cell, value, values, predictions, references, outcome.curve)


def _quality_entry(
    cell: Cell,
    value: float,
    values: dict[str, Any],
    predictions: list[float],
    references: list[float],
    curve: list[dict[str, float]],
) -> dict[str, Any]:
    metric = cell.task.raw["metric"]
    better = (lambda a, b: a >= b) if metric["higher_is_better"] else (lambda a, b: a <= b)
    target = metric.get("target")
    reached = next((p for p in curve if target is not None and better(p["value"], target)), None)
    return {
        "metric": metric["score"],
        "value": value,
        "higher_is_better": metric["higher_is_better"],
        "metrics": values,
        "curve": curve,
        "target": target,
        "steps_to_target": reached and int(reached["step"]),
        "seconds_to_target": reached and reached["seconds"],
        "predictions": [round(p, 5) for p in predictions],
        "references": references,
    }


def _run_control(cell: Cell, stack: Stack, folder: Path, phases: Phases) -> dict[str, Any]:
    """A control without a model: fit on the training texts, predict the test's."""
    with phases("data"):
        data = datasets_.load_data(
            {**cell.task.raw, "folder": cell.task.folder, "splits": cell.splits},
            None,
            cell.training["length"],
        )
    ctx = Context(
        kind=data.kind,
        family="none",
        steps=0,
        head_lr=0.0,
        seed=cell.seed,
        device="cpu",
        batch=0,
        length=0,
        cache=folder,
    )
    with phases("training"):
        predictions = [float(p) for p in stack.control.fit_predict(data, ctx)]  # type: ignore[union-attr]
    references = [float(y) for y in data.test["label"]]
    metric = cell.task.raw["metric"]
    values = metrics.compute(metric["module"], predictions, references)
    quality = _quality_entry(
        cell, _finite(values[metric["score"]]), values, predictions, references, []
    )
    return {"quality": quality, "details": ctx.details, "samples": datasets_.sample_hash(data)}


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    gc.freeze()  # what was imported stays, and need not be looked at again
    gc.enable()
    stop = Stop()
    result: dict[str, Any]
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    phases = Phases(folder, job["started"])
    try:
        cell = resolve_cell(**job["cell"])
        result = {"status": "ok", **run_cell(cell, folder, phases, stop=stop, **job["options"])}
    except Preempted:
        return RETRY
    except BadInput as error:
        result = {"status": "bad_input", "reason": str(error)}
    except Unsupported as error:
        result = {"status": "unsupported", "reason": str(error)}
    except Diverged as error:
        result = {"status": "diverged", "reason": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        words = str(error).splitlines() or ["out of memory"]
        result = {"status": "oom", "reason": f"{type(error).__name__}: {words[0][:300]}"}
    if result["status"] != "ok":
        result.setdefault("phase", phases.current)
    record.write_json(folder / "result.json", result)
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, the CPU allocator's (a plain RuntimeError) or CUDA's out of memory."""
    words = ("DefaultCPUAllocator", "CUDA out of memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


if __name__ == "__main__":
    sys.exit(main())
