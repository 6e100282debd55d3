"""The tasks of the hub, each on a mirror with small files of the real schema, and what is new about
them: pairs."""

import dataclasses
import json
import math
import re

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hub_samples import GLUE, write_mirror
from small import load_made, small_data, small_model
from tests.host import cell_words

from leantune import metrics
from leantune.data.collate import batches
from leantune.data.load import sample_hash
from leantune.datasetfiles import read_dataset
from leantune.errors import BadInput
from leantune.fetch.cache import cache_folder
from leantune.files import record
from leantune.files.parse import check
from leantune.models.load import load_model, load_tokenizer
from leantune.prediction.ask import Ask
from leantune.prediction.metered_step import longest_batch
from leantune.prediction.one import predict
from leantune.spec import plugins
from leantune.spec.hashes import task_hash
from leantune.spec.schema import TaskFile

TASKS = [name for name in plugins.discover("tasks") if "dataset" in plugins.get("tasks", name).raw]
CLASSIFIED = [name for name in TASKS if plugins.get("tasks", name).spec.kind == "classification"]
PAIRED = [name for name in TASKS if "pair" in plugins.get("tasks", name).raw["dataset"]]
SMALL = {"train": 30, "validation": 10, "test": 20, "seed": 0}
# Training and scored examples of the real data sets.
REAL = {
    "glue-sst2": (67349, 872),
    "glue-cola": (8551, 1043),
    "glue-mrpc": (3668, 408),
    "glue-stsb": (5749, 1500),
    "glue-qqp": (363846, 40430),
    "glue-mnli": (392702, 9815),
    "glue-qnli": (104743, 5463),
    "glue-rte": (2490, 277),
    "glue-wnli": (635, 71),
    "xnli": (392702, 5010),
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    write_mirror(folder)
    return folder


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache that has the real one's packages, and keeps these small data sets out of it."""
    folder = tmp_path_factory.mktemp("cache")
    load_tokenizer(plugins.get("models", "minilm-l6").raw)  # is there from here on
    for entry in cache_folder().iterdir():
        if entry.is_dir() and re.fullmatch(r"[0-9a-f]{64}.*", entry.name):
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(autouse=True)
def place(mirror, own_cache, tmp_path, monkeypatch):
    """The mirror and that cache, with a lock of the test's own and no hub."""
    monkeypatch.setenv("LEANTUNE_CACHE", str(own_cache))
    monkeypatch.setenv("LEANTUNE_MIRROR", str(mirror))
    monkeypatch.setenv("LEANTUNE_SOURCES_LOCK", str(tmp_path / "sources.lock"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(plugins.get("models", "minilm-l6").raw)


def small(name, **change):
    plugin = plugins.get("tasks", name)
    return {**plugin.raw, "folder": plugin.folder, "splits": SMALL, **change}


# ------------------------------------------------------------------ every task


def test_there_are_tasks():
    assert {*REAL, "wikitext2"} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_the_mirror(name, tokenizer):
    task = small(
        name, splits={"train": 20, "validation": 2, "test": 4} if name == "wikitext2" else SMALL
    )
    data = load_made(task, tokenizer, 32)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [
        *list(task["splits"].values())[:3]
    ]
    metric = task["metric"]
    references = [1.0, 0.0, 1.0]
    assert metric["score"] in metrics.compute(metric["module"], [1.0, 0.0, 0.0], references)
    batch = next(batches(data.train, data.collate, 4))
    assert batch["input_ids"].shape[1] <= 32
    assert ("token_type_ids" in batch) == (name in PAIRED)


@pytest.mark.parametrize("name", REAL)
def test_all_of_the_real_data_is_used_for_three_epochs(name):
    spec = plugins.get("tasks", name).raw
    train, test = REAL[name]
    splits, training = spec["splits"], spec["training"]
    if name.startswith(
        "glue-"
    ):  # validation is a slice of train, as the labels of GLUE's test split are hidden
        assert "validation" not in spec["dataset"]
        assert spec["dataset"]["test"].startswith("validation")
        assert splits["validation"] == min(1000, train // 10)
        train -= splits["validation"]
    assert (splits["train"], splits["test"]) == (train, test)
    assert training["steps"] == 3 * math.ceil(train / training["batch"])


@pytest.mark.parametrize("name", [name for name in CLASSIFIED if name.startswith("glue-")])
def test_labels_keep_the_numbers_and_names_of_the_hub(name, mirror):
    config = name.removeprefix("glue-")
    data = load_made(small(name), None, 8)
    assert list(data.label_names) == GLUE[config][1]
    scored = plugins.get("tasks", name).raw["dataset"]["test"]
    rows = pq.read_table(
        mirror / "nyu-mll/glue" / config / f"{scored}-00000-of-00001.parquet"
    ).to_pydict()
    labels = dict(
        zip(zip(*(rows[c] for c in GLUE[config][0]), strict=True), rows["label"], strict=True)
    )
    texts = [data.test[column] for column in ("text", "pair") if column in data.test.column_names]
    assert [labels[one] for one in zip(*texts, strict=True)] == data.test["label"]


def test_validation_is_a_slice_of_train_or_its_own_file(mirror):
    def file(task, split):
        folder = mirror / (
            "nyu-mll/glue/sst2" if task == "glue-sst2" else "datasets/facebook/xnli/en"
        )
        column = "sentence" if task == "glue-sst2" else "premise"
        return set(pq.read_table(folder / f"{split}-00000-of-00001.parquet").to_pydict()[column])

    for name, of in (("glue-sst2", "train"), ("xnli", "validation")):
        data = load_made(small(name), None, 8)
        assert set(data.validation["text"]) <= file(name, of)
        assert set(data.train["text"]) <= file(name, "train")
        assert not set(data.train["text"]) & set(data.validation["text"])


def test_language_modelling_blocks_come_from_their_own_split(tokenizer, mirror):
    task = small("wikitext2", splits={"train": 20, "validation": 2, "test": 4})
    data = load_made(task, tokenizer, 32)
    for split in ("train", "validation", "test"):
        lines = pq.read_table(
            mirror / f"Salesforce/wikitext/wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
        )
        words = " ".join("\n".join(lines.to_pydict()["text"]).lower().split())
        for text in getattr(data, split)["text"]:
            assert " ".join(text.replace(".", " .").split()[1:4]) in words.replace(".", " .")


def test_a_model_and_its_tokenizer_load_from_the_mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror" / "org" / "tiny"
    folder.mkdir(parents=True)
    saved = small_model(seed=3)
    saved.save_pretrained(folder)
    small_data(tmp_path).tokenizer.save_pretrained(folder)
    monkeypatch.setenv("LEANTUNE_MIRROR", str(tmp_path / "mirror"))
    spec = {
        "name": "tiny",
        "family": "bert",
        "kinds": ["classification"],
        "source": {"hub": "org/tiny"},
    }
    loaded = load_model(spec, "classification", 2)
    assert torch.equal(loaded.get_input_embeddings().weight, saved.get_input_embeddings().weight)
    assert load_tokenizer(spec)("w1 w2")["input_ids"] == [2, 6, 7, 3]
    assert (
        "model.safetensors"
        in json.loads((tmp_path / "sources.lock").read_text())["models/org/tiny"]["files"]
    )


def test_a_second_load_reads_the_same_and_nothing_of_the_mirror_is_written(mirror):
    before = {path: path.stat().st_mtime_ns for path in mirror.rglob("*")}
    hashes = {sample_hash(load_made(small("glue-mrpc"), None, 8)) for _ in range(2)}
    assert len(hashes) == 1
    assert {path: path.stat().st_mtime_ns for path in mirror.rglob("*")} == before


# ------------------------------------------------------------------ pairs


def test_a_pair_is_framed_as_the_tokenizer_frames_pairs(tokenizer):
    data = load_made(small("glue-mrpc"), tokenizer, 20)
    for row in data.train:
        made = tokenizer(row["text"], row["pair"], truncation=True, max_length=20)
        assert row["input_ids"] == made["input_ids"]
        assert row["token_type_ids"] == made["token_type_ids"]
        assert row["input_ids"].count(tokenizer.sep_token_id) == 2
        assert set(row["token_type_ids"]) == {0, 1}


def test_a_batch_pads_token_types_with_zero(tokenizer):
    data = load_made(small("glue-mrpc"), tokenizer, 64)
    batch = data.collate([data.train[i] for i in range(8)])
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert batch["token_type_ids"].dtype == torch.int64
    for i in range(8):
        length = len(data.train[i]["input_ids"])
        assert batch["token_type_ids"][i, :length].tolist() == data.train[i]["token_type_ids"]
        assert not batch["token_type_ids"][i, length:].any()


def test_without_a_separator_a_pair_is_one_text_of_two_lines():
    decoder = load_tokenizer(plugins.get("models", "mini-gpt").raw)
    data = load_made(small("glue-mrpc"), decoder, 64)
    row = data.train[0]
    assert decoder.decode(row["input_ids"]) == f"{row['text']}\n{row['pair']}"
    assert "token_type_ids" not in row


def test_the_sample_hash_sees_the_pair():
    data = load_made(small("glue-mrpc"), None, 8)
    pairs = data.test["pair"]
    changed = data.test.remove_columns("pair").add_column("pair", ["other", *pairs[1:]])
    assert sample_hash(dataclasses.replace(data, test=changed)) != sample_hash(data)


def test_the_probe_feeds_token_types_where_the_data_has_them(minilm):
    plain = longest_batch(minilm, "classification", 2, 8)
    typed = longest_batch(minilm, "classification", 2, 8, True)
    assert set(typed) - set(plain) == {"token_type_ids"}
    assert typed["token_type_ids"].shape == typed["input_ids"].shape


@pytest.mark.parametrize(
    ("model", "family"),
    [("minilm-l6", "Bert"), ("deberta-v3-base", "DebertaV2"), ("roberta-base", "Roberta")],
)
def test_a_prediction_for_pairs_has_token_types_where_the_tokenizer_makes_them(model, family):
    inputs = {}
    for task in ("glue-sst2", "glue-mrpc"):
        found = predict(Ask(model, "head", task=task, batch=4, length=16))
        inputs[task] = found["by_kind"]["inputs"]
    typed = "token_type_ids" in getattr(transformers, family + "Tokenizer").model_input_names
    assert inputs["glue-mrpc"] - inputs["glue-sst2"] == typed * 8 * 4 * 16
    assert typed == (model != "roberta-base")


@pytest.mark.process
def test_a_cell_on_pairs_runs_from_the_mirror_to_its_record(tmp_path, mirror, host):
    """With vocabulary pruning, which is an error if a token of either text was not counted."""
    out = tmp_path / "record.json"
    sets = {
        "train": 32,
        "validation": 8,
        "test": 16,
        "steps": 2,
        "batch": 8,
        "length": 40,
        "evaluations": 1,
    }
    settings = [f"task.{key}={value}" for key, value in sets.items()]
    done = host.run(cell_words("vocab_pruning", out, *settings, task="glue-mrpc"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = record.read_record(out)
    assert (found["status"], found["quality"]["metric"]) == ("ok", "binary_f1"), found["reason"]
    assert set(found["quality"]["metrics"]) == {"accuracy", "binary_f1", "matthews"}
    assert found["provenance"]["revisions"] == {
        "datasets/nyu-mll/glue": None
    }  # a mirror has no commit
    lock = json.loads((tmp_path / "sources.lock").read_text())
    assert {name.partition("/")[0] for name in lock["datasets/nyu-mll/glue"]["files"]} == {
        "README.md",
        "mrpc",
    }


# ------------------------------------------------------------------ what can be wrong


def changed(name, **block):
    spec = plugins.get("tasks", name).raw
    return small(name, dataset={**spec["dataset"], **block})


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"config": "mrpcc"}, r"data set nyu-mll/glue has no config 'mrpcc'; it has ax, cola, "),
        (
            {"config": "sst2"},
            r"of config 'sst2' has no column 'sentence1'; it has sentence, label, idx",
        ),
        ({"test": "dev"}, r"of config 'mrpc' has no split 'dev'; it has train, validation, test"),
        ({"label": "labels"}, r"has no column 'labels'"),
        (
            {"test": "test"},
            r"label -1 of task 'glue-mrpc' in the test split is none of its 2 classes; .* hidden",
        ),
    ],
)
def test_a_wrong_key_is_named_with_what_there_is(block, message):
    with pytest.raises(BadInput, match=message):
        load_made(changed("glue-mrpc", **block), None, 8)


def test_files_that_were_not_fetched_are_named():
    with pytest.raises(
        BadInput, match=r"data set nyu-mll/glue lacks files of config 'ax'.*`files:`"
    ) as error:
        load_made(changed("glue-mnli", config="ax", train="test", test="test"), None, 8)
    assert "\n" not in str(error.value)


def test_a_config_must_be_named_where_there_are_several(mirror):
    with pytest.raises(
        BadInput, match="several configs, and `dataset:` names none; it has ax, cola"
    ):
        read_dataset(
            mirror / "nyu-mll/glue",
            {"train": "train", "test": "test"},
            {"text": "sentence"},
            "nyu-mll/glue",
        )


@pytest.mark.parametrize("damage", ["file", "readme"])
def test_a_damaged_file_is_one_sentence(damage, tmp_path, monkeypatch):
    write_mirror(tmp_path / "mirror")
    monkeypatch.setenv("LEANTUNE_MIRROR", str(tmp_path / "mirror"))
    folder = tmp_path / "mirror/nyu-mll/glue"
    if damage == "file":
        path = folder / "mrpc/train-00000-of-00001.parquet"
        path.write_bytes(path.read_bytes()[:200])
    else:
        (folder / "README.md").write_text("---\nconfigs: [{data_files: 3}]\n---\n")
    with pytest.raises(BadInput, match=r"data set nyu-mll/glue.* cannot be read") as error:
        load_made(small("glue-mrpc"), None, 8)
    assert "\n" not in str(error.value)


def test_plain_files_need_no_readme(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(
            "question,mark\n" + "".join(f"{split} {i},{'ab'[i % 2]}\n" for i in range(40))
        )
    task = {
        "name": "own",
        "kind": "classification",
        "folder": tmp_path,
        "source": {"local": "."},
        "splits": SMALL,
        "dataset": {"text": "question", "label": "mark", "train": "train", "test": "test"},
    }
    data = load_made(task, None, 8)
    assert data.label_names == ("a", "b")
    assert all(text.startswith("test") for text in data.test["text"])


@pytest.mark.parametrize(
    ("kind", "missing"), [("classification", "label"), ("causal_lm", "validation")]
)
def test_the_schema_asks_for_what_a_kind_needs(kind, missing):
    spec = {**plugins.get("tasks", "glue-sst2").raw, "kind": kind}
    spec["dataset"] = {"text": "sentence", "train": "train", "test": "test"}
    with pytest.raises(BadInput, match=f"key 'dataset.{missing}' is missing, which {kind} needs"):
        check(spec, TaskFile, "task.yaml")


def test_the_task_hash_follows_the_dataset_block(tmp_path, monkeypatch):
    plugin = plugins.get("tasks", "glue-mrpc")
    other = dataclasses.replace(
        plugin, raw={**plugin.raw, "dataset": {**plugin.raw["dataset"], "config": "rte"}}
    )
    assert task_hash(plugin, {}) != task_hash(other, {})
