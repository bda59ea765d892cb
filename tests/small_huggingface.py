"""Small Hugging Face models with random weights, saved as users save theirs.

Importing this needs no transformers; making one does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ispasp import models
from ispasp.models import LoadedModel

WIDTHS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
LABELS = {"id2label": {0: "entailment", 1: "neutral", 2: "contradiction"}}
TEXT: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 32, **LABELS}
PICTURES: dict[str, Any] = {"image_size": 16, **LABELS}
SETTINGS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": WIDTHS | TEXT,
    "DistilBertForSequenceClassification": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, **TEXT},
    "RobertaForSequenceClassification": WIDTHS | TEXT,
    "ViTForImageClassification": WIDTHS | PICTURES | {"patch_size": 4},
    "SwinForImageClassification": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    | PICTURES
    | {"patch_size": 2},
    "ResNetForImageClassification": {
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        **LABELS,
    },
}
BERT = "BertForSequenceClassification"
WORDS = "[PAD] [UNK] [CLS] [SEP] a man is asleep . two dogs run he sleeps there"


def made(name: str, **changed: Any) -> Any:
    """A small model with random weights."""
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(1)  # not the seed of what is built untrained
    return kind(kind.config_class(**(SETTINGS[name] | changed))).eval()


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        kinds.WordLevel({word: i for i, word in enumerate(WORDS.split())}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)


def saved(folder: Path, name: str, **changed: Any) -> Any:
    """A small model, saved to ``folder`` with its tokenizer or picture processor."""
    import transformers

    model = made(name, **changed)
    model.save_pretrained(folder)
    if model.main_input_name == "input_ids":
        save_tokenizer(folder)
    elif "ResNet" in name:
        transformers.ConvNextImageProcessor(size={"shortest_edge": 28}).save_pretrained(folder)
    else:
        transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def load(folder: Path, weights: str = "") -> LoadedModel:
    return models.load(models.parse(f"huggingface:{folder}", weights))
