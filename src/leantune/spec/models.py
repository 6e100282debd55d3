"""A model without a file in `models/`: a hub id, the folder of a checkpoint, a `config.json` or a
GGUF file.

Its configuration says all that a prediction needs, and what such a file would say is made of it.
Torch-free: what transformers knows is read from its source, and what only a model can tell is asked
of another process once and kept in the cache.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leantune.errors import BadInput
from leantune.fetch import hub
from leantune.fetch.cache import cache_folder, kept_digests
from leantune.files.parse import check
from leantune.files.record import write_json
from leantune.spec.kinds import KINDS
from leantune.spec.plugins import Plugin

if TYPE_CHECKING:
    from leantune.spec.schema import ModelFile, Need

WORDS = "a hub id (owner/name), a checkpoint's folder, a config.json or a GGUF file"
_HUB = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)/([A-Za-z0-9_][A-Za-z0-9._-]*)(?:@([^@\s]+))?")
# what a configuration says of a file, a program or a task, and not of the architecture
_NOT_OF_THE_ARCHITECTURE = (
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("quantization_config", "finetuning_task", "id2label", "label2id", "num_labels"),
    "problem_type",
)
# of a checkpoint's folder: what is read of it, not what a trainer keeps beside it
_READ = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")


def find(word: str) -> Plugin[ModelFile] | None:
    """The model that a word names by where it is, or None where it is no such word.

    A path that exists comes before a hub id. `Qwen--Qwen3-8B`, as records write `Qwen/Qwen3-8B`, is
    the same model. Raises BadInput where there is no such file or repository, or its configuration
    is no use.
    """
    path = Path(word).expanduser()
    if path.exists():
        stat = (path / "config.json" if path.is_dir() else path).stat
        changed = stat().st_mtime_ns if path.is_file() or (path / "config.json").is_file() else 0
        return _of_path(word, path.absolute(), changed)
    if word.startswith((".", "/", "~")) or path.suffix in (".json", ".gguf"):
        raise BadInput(f"model '{word}': there is no such file or folder")
    id_ = word if "/" in word else word.replace("--", "/", 1)
    if named := _HUB.fullmatch(id_):
        where = str(hub.lock_file()), os.environ.get("LEANTUNE_MIRROR")
        return _of_hub(id_.partition("@")[0], named[3], where)
    return None


@functools.cache
def _of_path(word: str, path: Path, _changed: int) -> Plugin[ModelFile]:
    if path.is_dir():
        file = path / "config.json"
        if not file.is_file():
            raise BadInput(f"model '{word}': the folder has no config.json; give a checkpoint's")
        return _model(word, path.name, file, _read(file), {"local": "."})
    if path.suffix == ".json":
        name = path.parent.name if path.name == "config.json" else path.stem
        return _model(word, name, path, _read(path), {"none": True})
    if path.suffix == ".gguf":
        config = _asked({"gguf": str(path), "changed": _changed, "size": path.stat().st_size})
        return _model(word, path.stem, path, config, {"local": path.name, "format": "gguf"})
    raise BadInput(f"model '{word}' is neither a folder nor a .json or .gguf file")


@functools.cache
def _of_hub(id_: str, revision: str | None, _where: tuple[str, str | None]) -> Plugin[ModelFile]:
    asked = {"hub": id_, **({"revision": revision} if revision else {})}
    try:
        file, commit = hub.fetch_config(asked)
    except BadInput as error:
        raise BadInput(
            f"model '{id_}': {error}; for a prediction, its config.json given as a file will do"
        ) from error
    source = {**asked, **({"revision": commit} if commit else {})}
    exactly = f"{id_}@{source['revision']}" if "revision" in source else id_
    return _model(exactly, id_.replace("/", "--"), file, _read(file), source)


def _read(file: Path) -> dict[str, Any]:
    try:
        # unlike a file of LeanTune's own, a configuration may hold Infinity
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} is no JSON that can be read ({str(error)[:120]})") from error
    if not isinstance(config, dict):
        raise BadInput(f"{file} holds no mapping, so it is no configuration of a model")
    return config


def _model(
    word: str, name: str, file: Path, config: Mapping[str, Any], source: dict[str, Any]
) -> Plugin[ModelFile]:
    """What a file of `models/` would say. Of a model of texts and images it is the language model.

    The name of what lies in a path ends in a digest of its configuration, so that it is nobody
    else's.
    """
    from leantune.spec.schema import ModelFile

    inner = config.get("text_config")
    if isinstance(inner, dict) and _kinds(inner.get("model_type")):
        config = {**inner, **{k: config[k] for k in ("auto_map",) if k in config}}
    type_ = config.get("model_type")
    if not isinstance(type_, str) or not type_:
        raise BadInput(f"{file} has no `model_type`, so it is no configuration of transformers")
    kinds = _kinds(type_) or _refuse(type_, config, file)
    architecture = {
        key: value
        for key, value in config.items()
        if key not in _NOT_OF_THE_ARCHITECTURE and not key.startswith("_")
    }
    if "hub" not in source:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
        name = f"{plain}-{_digest(architecture)[:8]}"
    raw = {
        "name": name,
        "summary": f"A model of type {type_}, as its configuration says.",
        "family": type_,
        "source": source,
        "kinds": kinds,
        "architecture": architecture,
    }
    return Plugin("models", name, file, check(raw, ModelFile, file), raw, word)


def _refuse(type_: str, config: Mapping[str, Any], file: Path) -> list[str]:
    installed = importlib.metadata.version("transformers")
    if type_ in _types("CONFIG"):
        raise BadInput(
            f"{file}: models of type '{type_}' do no task of LeanTune's; these are "
            f"{', '.join(KINDS)}"
        )
    if "auto_map" in config:
        raise BadInput(
            f"{file}: the type '{type_}' is code that lies beside the weights; read that code, "
            "then write a file for models/ with `trust_remote_code: true`"
        )
    by = config.get("transformers_version")
    told = f"; the file was written by {by}: install that or a later one" if by else ""
    raise BadInput(
        f"{file}: the installed transformers {installed} has no model type '{type_}'"
        f"{told or '; correct it, or install a later transformers'}"
    )


# ------------------------------------------------------------------ what transformers knows


def _kinds(type_: Any) -> list[str]:
    """The kinds of task that a type of model does, by which classes transformers has for it: of a
    type with several, as BERT may be made a decoder, what it was pre-trained as."""
    heads = {
        "seq2seq": type_ in _types("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM"),
        "masked": type_ in _types("MODEL_FOR_MASKED_LM"),
        "causal": type_ in _types("MODEL_FOR_CAUSAL_LM"),
    }
    what = next((name for name, there in heads.items() if there), "")
    own = {
        "seq2seq": ["seq2seq_lm"],
        "masked": ["masked_lm"],
        "causal": ["causal_lm", "generation"],
    }.get(what, [])
    if what and type_ in _types("MODEL_FOR_SEQUENCE_CLASSIFICATION"):
        own += ["classification", "regression"]
    if what == "masked" and type_ in _types("MODEL_FOR_QUESTION_ANSWERING"):
        own += ["span"]
    return [kind for kind in own if kind in KINDS]


@functools.cache
def _types(mapping: str) -> frozenset[str]:
    """The types of model in a table of transformers' automatic classes. They stand in its source as
    literals; to import them would import torch."""
    found: set[str] = set()
    for name, value in _tables():
        if name == f"{mapping}_MAPPING_NAMES":
            found |= value
    return frozenset(found)


@functools.cache
def _tables() -> list[tuple[str, set[str]]]:
    spec = importlib.util.find_spec("transformers")
    (folder,) = spec.submodule_search_locations if spec else ()  # type: ignore[misc]  # it is a package
    tables = []
    for file in ("auto_mappings", "modeling_auto"):
        for node in ast.parse(
            (Path(folder) / "models/auto" / f"{file}.py").read_text("utf-8")
        ).body:
            match node:
                case ast.Assign(
                    targets=[ast.Name(id=name)],
                    value=ast.Call(func=ast.Name(id="OrderedDict"), args=[ast.List(elts=pairs)]),
                ):
                    names = [p.elts[0] for p in pairs if isinstance(p, ast.Tuple)]
                    types = {n.value for n in names if isinstance(n, ast.Constant)}
                    tables.append((name, {str(one) for one in types}))
    return tables


# ------------------------------------------------------------------ what only a model can tell


def parameters(model: Plugin[ModelFile]) -> int:
    """How many parameters a model has; counted once where its file does not say it."""
    if model.spec.parameters is not None:
        return model.spec.parameters
    return int(_built(model)["total"])


def has(model: Plugin[ModelFile]) -> list[Need] | None:
    """What methods may need of a model; worked out once where its file does not say it. None where
    the model runs code of its own."""
    if model.spec.has is not None or model.spec.trust_remote_code:
        return model.spec.has
    return list(_built(model)["has"])


def _built(model: Plugin[ModelFile]) -> dict[str, Any]:
    """What the model tells that is built of its configuration, without weights."""
    return _asked(
        {"parameters": {key: model.raw[key] for key in ("name", "kinds", "architecture")}}
    )


@functools.cache
def _versions() -> str:
    return importlib.metadata.version("transformers")


def _asked(question: Mapping[str, Any]) -> dict[str, Any]:
    """What `models/facts.py` answers in a process of its own, kept from then on."""
    file = cache_folder() / "facts" / f"{_digest([question, _versions()])}.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there, or cut short
        pass
    done = subprocess.run(
        [sys.executable, "-m", "leantune.models.facts"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise BadInput(f"{lines[-1].removeprefix('leantune.errors.BadInput: ')[:300]}")
    answer = dict(json.loads(done.stdout))
    write_json(file, answer)
    return answer


# ------------------------------------------------------------------ what exactly it is


def pinned(model: Plugin[ModelFile]) -> Plugin[ModelFile]:
    """The model with the sha256 of what lies in its path as part of its source; any other is as it
    is. The bytes are read again only where size or time of a file changed."""
    source = model.raw["source"]
    if not model.word_of_place or "local" not in source:
        return model
    folder = model.folder
    names = [source["local"]]
    if source["local"] == ".":
        names = sorted({p.name for pattern in _READ for p in folder.glob(pattern) if p.is_file()})
    digests = {name: found["sha256"] for name, found in kept_digests(folder, names).items()}
    digest = digests[names[0]] if source["local"] != "." else _digest(digests)
    return replace(model, raw={**model.raw, "source": {**source, "sha256": digest}})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
