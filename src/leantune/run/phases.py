"""A cell as a list of phases, from its data to its score.

Export comes before evaluation: the score is that of the exported model. The names go into the
record: when each began (as long as it runs), how long it took, and on a GPU its peak.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leantune.api import LANGUAGE_MODELS, Context, is_head, mark_head
from leantune.data.collate import batches, longest_batch_shape
from leantune.data.load import load_data, sample_hash
from leantune.fetch.cache import cache_folder
from leantune.files.text import say
from leantune.machine.memory import DoesNotFit, check, need_bytes
from leantune.machine.memory_lease import memory_lease
from leantune.metrics import compute, kept
from leantune.models.export import save
from leantune.models.load import enable_checkpointing, load_model, load_tokenizer, parameter_counts
from leantune.prediction.cards import CONTEXT_BYTES
from leantune.prediction.metered_step import Probe
from leantune.prediction.one import predict_cell
from leantune.run.job import Job
from leantune.run.progress import Marks, Progress
from leantune.run.record_parts import (
    memory_part,
    predicted_memory_part,
    quality_part,
    score_of,
    time_part,
)
from leantune.training import resume
from leantune.training.evaluation import Inference, evaluation_batches, mean_loss, predict
from leantune.training.flatness import flatness
from leantune.training.loop import Schedule, Training, train
from leantune.training.resume import Preempted, State, Stop
from leantune.training.stack import Stack, context_cache


def run_cell(job: Job, marks: Marks, stop: Stop) -> dict[str, Any]:
    """Run a cell through its phases; the parts of the record that the worker knows.

    A cell that is predicted not to fit, or to need more than the job's limit, is not started
    (status `oom`). Raises BadInput, Unsupported, Diverged, Preempted or an out-of-memory error.
    """
    torch.manual_seed(job.cell.seed)
    with contextlib.ExitStack() as held:
        run = Run(job, marks, stop, held)
        try:
            for name, phase in phases_of(job).items():
                with marks(name):
                    phase(run)
        except DoesNotFit as error:
            memory = predicted_memory_part(run.predicted)
            return {
                **run.record,
                "status": "oom",
                "reason": f"predicted: {error}",
                "memory": memory,
            }
        except Preempted as stopped:
            run.keep_checkpoint(stopped)
            raise
    run.record["details"] = run.ctx.details
    if run.stack.control is None:
        run.record["memory"] = memory_part(run.tensors, run.progress, run.predicted)
        run.record["time"] = time_part(run.outcome, marks)
    return run.record


def phases_of(job: Job) -> dict[str, Callable[["Run"], None]]:
    """The phases of a cell in their order, by the names that its record has for them."""
    if job.cell.model_name == "none":
        return {"data": Run.read_data, "training": Run.fit_control}
    return {
        "data": Run.read_data,
        "predict": Run.predict_memory,
        **({} if job.force else {"wait": Run.wait_for_memory}),
        "load": Run.load,
        "attach": Run.attach,
        "measure": Run.measure,
        "training": Run.train,
        **({"flatness": Run.measure_flatness} if job.cell.flatness else {}),
        "export": Run.export,
        "evaluation": Run.evaluate,
    }


class Run:
    """A cell while it runs: each phase leaves in it what the later ones and the record need."""

    def __init__(self, job: Job, marks: Marks, stop: Stop, held: contextlib.ExitStack) -> None:
        self.job, self.cell, self.marks, self.stop = job, job.cell, marks, stop
        self.held = held  # the memory lease, until the cell has ended
        self.stack = Stack(job.cell.parts)
        self.record: dict[str, Any] = {}  # the parts that are known so far
        # a local source is relative to the model's file
        self.model_spec = {**job.cell.model.raw, "folder": job.cell.model.folder}

    def read_data(self) -> None:
        """The task's examples (tokenized, but for a control), and what methods are told."""
        cell, training, control = self.cell, self.cell.training, self.stack.control is not None
        self.tokenizer: Any = None if control else load_tokenizer(self.model_spec)
        most = training.get("max_new_tokens")  # of generation only
        self.data = load_data(cell.task, self.tokenizer, training["length"], cell.splits, most)
        self.labels = max(len(self.data.label_names), 1)
        self.record["samples"] = sample_hash(self.data)
        self.digest = resume.identity(cell, self.record["samples"])
        self.ctx = Context(
            kind=self.data.kind,
            family="none" if control else cell.model.spec.family,
            seed=cell.seed,
            device=cell.device,
            cache=context_cache(cache_folder(), cell.hashes["model"]),
            **{name: training[name] for name in ("steps", "head_lr", "batch", "length", "dtype")},
        )

    def predict_memory(self) -> None:
        """Its memory from the architecture alone, before any weight is loaded."""
        training, rows = self.cell.training, self.data.train
        self.probe = Probe(
            self.stack,
            Schedule.from_training(training),
            self.ctx,
            longest_batch_shape(rows, training["batch"]),
            training["checkpointing"],
            "token_type_ids" in rows.column_names,
        )
        self.predicted = predict_cell(
            self.model_spec, self.stack, self.probe, self.labels, self.data
        )

    def wait_for_memory(self) -> None:
        """Lease the memory that was predicted, if it was. Raises DoesNotFit where it cannot fit."""
        peak, limit = self.predicted["peak_bytes"], self.job.limit
        if peak is None:
            return
        if self.cell.device == "cuda":  # the supervisor has leased the whole device
            need = self.predicted["reserved_bytes"] + CONTEXT_BYTES
            check(need, torch.cuda.get_device_properties(0).total_memory, limit, "GPU memory")
        else:
            self.held.enter_context(memory_lease(need_bytes(peak), say, limit=limit))

    def load(self) -> None:
        """The model with its weights, on the device."""
        self.model = load_model(self.model_spec, self.data.kind, self.labels, self.cell.seed)
        mark_head(self.model, self.data.kind)
        self.model.to(self.cell.device)

    def attach(self) -> None:
        """What the methods change of the model and the data before training."""
        self.model, data = self.stack.attach(self.model, self.data, self.ctx)
        assert data is not None  # only a probe goes without
        self.data = data
        if self.cell.training["checkpointing"]:
            enable_checkpointing(self.model)
        self.trained = _trainable(self.model)

    def measure(self) -> None:
        """Its parameters, and a training step under the meter, on copies."""
        self.record["parameters"] = parameter_counts(self.model)
        self.tensors = self.probe(self.model)

    def train(self) -> None:
        """Train, from the checkpoint that was kept of this very cell where there is one."""
        state, before = resume.read(self.job.checkpoint, self.digest) or (None, None)
        first = state["step"] if state else 0
        self.progress = Progress(self.cell, self.marks, self.job.terminal, self.probe, first)
        if before:
            self.ctx.details.clear()  # what attaching reported is in what training reported
            self.ctx.details.update(before["details"])
            self.progress.intervals = before["intervals"]
            self.marks.go_on(before["marks"])
            say(f"going on after step {first} of {self.ctx.steps}")
        self.stop.deferred = True  # from here on a stop waits for the end of a step
        self.marks.mark("first step")
        with self.marks.clocks:
            self.outcome = self._trained(state) if self.stack.trains else Training(self.model)
        self.model = self.outcome.model
        self.trained += _trainable(self.model)
        live = {id(p) for p in self.model.parameters()}
        stored = {id(p): p for _, p in self.trained if id(p) in live}  # frozen since or not
        self.record["size"] = {"checkpoint_bytes": _bytes(stored.values())}

    def _trained(self, state: State | None) -> Training:
        cell, training = self.cell, self.cell.training
        micro = training["batch"] // training["accumulate"]
        count = training["steps"] * training["accumulate"]
        assert self.data.collate is not None  # only a control's data have none

        def score(model: nn.Module) -> float:
            if "vocabulary" in self.stack.methods and self.data.kind in LANGUAGE_MODELS:
                # language models are scored over the full vocabulary
                model = self.stack.methods["vocabulary"].export(copy.deepcopy(model), self.ctx)
            found = predict(model, self.data, "validation", training, cell.device)
            return score_of(cell, compute(cell.task.spec.metric.module, *found))

        return train(
            self.model,
            self.stack,
            batches(self.data.train, self.data.collate, micro, count, cell.seed, True),
            Schedule.from_training(training),
            self.ctx,
            self.progress,
            score,
            lambda: self.stop.asked,
            state,
        )

    def measure_flatness(self) -> None:
        """How flat the minimum is, before a method merges what it trained."""
        how = (self.cell.device, self.cell.training["dtype"])
        names = {name for name, p in self.trained if not is_head(p)}
        some = list(evaluation_batches(self.data, "validation"))
        self.flatness = flatness(
            self.model,
            names,
            lambda model: mean_loss(model, some, *how),
            self.cell.flatness,
            self.cell.seed,
        )

    def export(self) -> None:
        """The model as it would be deployed, and its files where they are asked for."""
        self.model = self.stack.export(self.model, self.ctx).eval()
        if self.job.export is not None:
            save(self.model, str(self.job.export))  # type: ignore[arg-type]  # no bare nn.Module
            self.tokenizer.save_pretrained(self.job.export)
        self.record["size"] |= {
            "deployed_parameters": sum(p.numel() for p in self.model.parameters()),
            "deployed_bytes": _bytes(self.model.parameters()),
        }

    def evaluate(self) -> None:
        """The score. Its first forward pass is metered, the others are timed."""
        cell, inference = self.cell, Inference(self.model, self.cell.device)
        # the final score never sees what tuning looked at
        split = "test" if cell.trial is None else "validation"
        found = predict(self.model, self.data, split, cell.training, cell.device, inference)
        self._score(*found, self.outcome.curve)
        self.record["inference"] = inference.result()
        if cell.flatness:
            self.record["quality"]["flatness"] = self.flatness

    def fit_control(self) -> None:
        """A control without a model: fit on the training texts, predict the test's."""
        control: Any = self.stack.control  # `fit_predict` is of controls only
        predictions = [float(p) for p in control.fit_predict(self.data, self.ctx)]
        self._score(predictions, [float(label) for label in self.data.test["label"]], [])

    def _score(
        self, predictions: list[Any], references: list[Any], curve: list[dict[str, float]]
    ) -> None:
        metric = self.cell.task.spec.metric
        scores = compute(metric.module, predictions, references)
        examples = kept(metric.module, metric.score, predictions, references)
        self.record["quality"] = quality_part(self.cell, scores, *examples, curve)

    def keep_checkpoint(self, stopped: Preempted) -> None:
        """Keep where training stopped, for the same command to go on from."""
        measured = {
            "details": self.ctx.details,
            "intervals": self.progress.intervals,
            "marks": self.marks.measured(),
        }
        if stopped.state is None:
            say(
                f"asked to stop: {self.cell.method} cannot go on from step {stopped.step}, "
                "so the cell will start over"
            )
        elif resume.write(self.job.checkpoint, self.digest, stopped.state, measured):
            step = f"step {stopped.step} of {self.ctx.steps}"
            say(f"asked to stop: the checkpoint after {step} is kept")


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _bytes(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
