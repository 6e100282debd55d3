"""Vocabulary pruning, PEMA (arXiv 2309.08708): train only the embedding rows of tokens that the data uses.

The look-up form: the dataset keeps its ids, and the embedding holds a table from id to row (pruned.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from leantune.api import BadInput, Context, Data, Method, Unsupported

from .language_model import prune
from .pruned import restore
from .vocabulary import Vocabulary, count_tokens, special_ids

LANGUAGE_MODELLING = ("causal_lm", "masked_lm", "seq2seq_lm")


class VocabPruning(Method):
    """Prunes the input embedding, and an output embedding tied to it; `export` puts the rows back."""

    def attach(self, model: nn.Module, data: Data | None, ctx: Context) -> tuple[nn.Module, Data | None]:
        """Count, keep, prune. The kept rows are declared by `vocabulary` or `used_share` when there is no data."""
        if not isinstance(model, PreTrainedModel):
            raise Unsupported(f"vocab_pruning needs a transformers model, not {type(model).__name__}")
        embedding: Any = model.get_input_embeddings()
        full = len(embedding.weight)
        tokenizer = data.tokenizer if data is not None else None
        special = special_ids(model, tokenizer, full)
        if embedding.padding_idx is not None:
            special.add(embedding.padding_idx)
        if data is None:
            keep, counted = self._declared(special, full, ctx.family), None
        else:
            splits = [data.train, data.validation]
            if ctx.kind not in LANGUAGE_MODELLING:  # unseen test tokens meet the exported, whole model there
                splits.append(data.test)
            counts = count_tokens(splits, full)
            counted = int(counts.sum())
            counts[list(special)] += 1
            keep = np.flatnonzero(counts)
        vocabulary = Vocabulary(keep, full, tokenizer, self._unknown(model, keep, tokenizer))
        masked = ctx.kind == "masked_lm"
        write = not ctx.probe and not embedding.weight.is_meta
        unseen: Any = -1 if vocabulary.unknown is None else vocabulary.unknown
        if masked and vocabulary.unknown is None:
            # the collator puts random words of the whole vocabulary in; in training they become random used words
            unseen = np.arange(full) % len(keep)
        prune(model, vocabulary, unseen, ctx.cache / "vocab_pruning", write, masked)
        ctx.details["vocabulary"] = {
            "kept": len(keep),
            "full": full,
            "used_share": len(keep) / full,
            "counted_tokens": counted,
        }
        return model, data

    def _declared(self, special: set[int], full: int, family: str) -> np.ndarray:
        """As many ids as the settings say, the special ones among them: which ones they are is not known."""
        count = self.params["vocabulary"]
        if count is None:
            share = (self.params["used_share"] or {}).get(family)
            if share is None:
                raise BadInput(
                    f"vocab_pruning keeps as many rows as the data uses, which a prediction for family '{family}' "
                    "must be told: --set vocab_pruning.vocabulary=ROWS, or a point such as vocab_pruning@sst2 "
                    "(bert, roberta, xlm-roberta)"
                )
            count = round(share * full)
        if not len(special) <= count <= full:
            raise BadInput(f"vocab_pruning.vocabulary is {count}; it must be {len(special)} to {full} rows here")
        others = (i for i in range(full) if i not in special)
        return np.array(sorted([*special, *(next(others) for _ in range(count - len(special)))]))

    def _unknown(self, model: PreTrainedModel, keep: np.ndarray, tokenizer: Any) -> int | None:
        """The row of the unknown token, where the user chose that unseen tokens read it."""
        if not self.params["unk"]:
            return None
        unk = getattr(tokenizer, "unk_token_id", None)
        if unk is None:
            unk = getattr(model.config, "unk_token_id", None)
        if unk is None or unk not in keep:
            raise BadInput("vocab_pruning.unk=true needs a tokenizer with an unknown token; this one has none")
        return int(keep.searchsorted(unk))

    def export(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The original architecture with the whole vocabulary: trained rows put back, the others as they were."""
        restore(model)
        return model
