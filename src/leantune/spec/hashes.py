"""Content hashes of stacks, tasks and models: what a record depends on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune.spec import plugins
from leantune.spec.plugins import Plugin
from leantune.spec.stacks import Part

if TYPE_CHECKING:
    from leantune.spec.schema import ModelFile, TaskFile


def _digest(*chunks: bytes | str) -> str:
    sha = hashlib.sha256()
    for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else chunk
        sha.update(len(data).to_bytes(8, "big") + data)
    return sha.hexdigest()


def _code(folder: Path) -> list[bytes | str]:
    chunks: list[bytes | str] = []
    for file in sorted(folder.glob("*.py")):
        chunks += [file.name, file.read_bytes()]
    return chunks


@functools.cache
def _method_code_hash(plugin_file: Path, base: str | None) -> str:
    parent = plugins.get("methods", base) if base else None
    inherited = _method_code_hash(parent.file, parent.spec.base) if parent else ""
    return _digest(inherited, *_code(plugin_file.parent))


def stack_hash(parts: tuple[Part, ...]) -> str:
    """Hash of the code and the resolved settings of a stack: what a record of it depends on."""
    chunks: list[str] = []
    for part in parts:
        settings = json.dumps([part.slot, part.params], sort_keys=True)
        code = _method_code_hash(part.plugin.file, part.plugin.spec.base)
        chunks += [part.name, settings, code]
    return _digest(*chunks)


@functools.cache
def _folder_code_hash(folder: Path) -> str:
    return _digest(*_code(folder))


def task_hash(task: Plugin[TaskFile], settings: Mapping[str, Any]) -> str:
    """Hash of a task's data definition, loader code and resolved training settings."""
    keep = {
        k: task.raw[k] for k in ("kind", "source", "files", "dataset", "metric") if k in task.raw
    }
    keep["metric"] = {k: v for k, v in keep["metric"].items() if k != "target"}
    code = _folder_code_hash(loader_folder(task.raw, task.folder))
    return _digest(json.dumps([keep, settings], sort_keys=True), code)


def loader_folder(spec: Mapping[str, Any], folder: Path) -> Path:
    """Where a task's task.py is: in its own folder, or in that of the task named by its key
    `loader`."""
    return plugins.get("tasks", spec["loader"]).folder if "loader" in spec else folder


def model_hash(model: Plugin[ModelFile]) -> str:
    """Hash of where a model's weights come from and of its architecture."""
    keep = {k: model.raw[k] for k in ("family", "source", "architecture")}
    return _digest(json.dumps(keep, sort_keys=True))
