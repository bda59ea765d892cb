"""The sample text model's architecture and its tokenizer; both need transformers."""

from __future__ import annotations

from typing import Any

from sample_models.nli_logic import LABELS
from sample_models.nli_words import vocabulary

MAX_LENGTH = 32  # tokens of a pair; the longest that the grammar writes has 28
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def bert() -> Any:
    """BERT (Devlin et al., 2019) with two layers of width 96, four heads and three classes, no dropout.

    Inputs ``input_ids``, ``attention_mask`` and ``token_type_ids`` (N, tokens); ``logits`` (N, 3).
    """
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(SPECIAL) + len(vocabulary()),
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=384,
            max_position_embeddings=MAX_LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
            problem_type="single_label_classification",
        )
    )


def tokenizer() -> Any:
    """One token per word of the grammar; any other word is ``[UNK]``."""
    from transformers import BertTokenizer

    words = (*SPECIAL, *vocabulary())
    return BertTokenizer(
        vocab={word: number for number, word in enumerate(words)}, model_max_length=MAX_LENGTH
    )
