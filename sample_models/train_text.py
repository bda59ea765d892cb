"""Train the sample text model: a small BERT on the sentence pairs of ``nli_grammar``.

    python -m sample_models.train nli_bert

The model and its tokenizer are written as a folder that transformers reads: ``config.json``,
``model.safetensors``, ``tokenizer.json`` and ``tokenizer_config.json``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ispasp.preparation import TextPreparation
from sample_models import nli_grammar
from sample_models.nli_logic import LABELS
from sample_models.nli_model import MAX_LENGTH, bert, tokenizer

NAME = "nli_bert"
COMMAND = f"python -m sample_models.train {NAME}"
TRAINING_PAIRS = 90_000
TEST_PAIRS = 4_000
BATCH = 128
STEPS = 5_000
LEARNING_RATE = 1e-3  # the peak


def encoded(pairs: list[nli_grammar.Pair], preparation: TextPreparation) -> dict[str, Tensor]:
    """Inputs (N, MAX_LENGTH) and ``labels`` (N,) of all pairs."""
    inputs = preparation.encode([pair.premise for pair in pairs], [pair.hypothesis for pair in pairs])
    return inputs | {"labels": torch.tensor([LABELS.index(pair.label) for pair in pairs])}


def fit(model: nn.Module, data: dict[str, Tensor], seed: int) -> None:
    """AdamW with a one-cycle learning rate and gradients clipped to norm 1, in place."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    total, started = 0.0, time.perf_counter()
    for step in range(1, STEPS + 1):
        if len(order) < BATCH:
            order = torch.randperm(len(data["labels"]), generator=generator)
        index, order = order[:BATCH], order[BATCH:]
        # Padding beyond the longest pair of a batch changes nothing but the time.
        length = int(data["attention_mask"][index].sum(1).max())
        batch = {key: value[index, :length] for key, value in data.items() if key != "labels"}
        loss = model(**batch, labels=data["labels"][index]).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        total += loss.item()
        if step % 500 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step}/{STEPS}: loss {total / 500:.3f}, {seconds:.0f} s", flush=True)
            total = 0.0


@torch.no_grad()
def accuracy(model: nn.Module, data: dict[str, Tensor]) -> float:
    """Share of correct labels, in [0, 1]."""
    model.eval()
    correct = 0
    for start in range(0, len(data["labels"]), 500):
        part = {key: value[start : start + 500] for key, value in data.items()}
        labels = part.pop("labels")
        correct += int((model(**part).logits.argmax(1) == labels).sum())
    return correct / len(data["labels"])


def train(seed: int, out: Path) -> None:
    """Train with ``seed`` and write the folder and the card below ``out``."""
    import transformers

    torch.manual_seed(seed)
    model, preparation = bert(), TextPreparation(tokenizer(), MAX_LENGTH)
    folder = out / NAME
    folder.mkdir(parents=True, exist_ok=True)
    # Before its first use, which would write that use's padding into the file.
    preparation.tokenizer.save_pretrained(folder)
    training = encoded(nli_grammar.pairs("train", TRAINING_PAIRS), preparation)
    test = encoded(nli_grammar.pairs("test", TEST_PAIRS), preparation)

    started = time.perf_counter()
    fit(model, training, seed)
    minutes = (time.perf_counter() - started) / 60
    card = {
        "name": NAME,
        "data": "Sentence pairs of the grammar in sample_models/nli_grammar.py: "
        f"{TRAINING_PAIRS:,} train, {TEST_PAIRS:,} test",
        "dataset": "nli",
        "command": f"{COMMAND} --seed {seed}",
        "seed": seed,
        "epochs": round(STEPS * BATCH / TRAINING_PAIRS),
        "training_minutes": round(minutes, 1),
        "accuracy_train": round(accuracy(model, training), 4),
        "accuracy_test": round(accuracy(model, test), 4),
        "test_examples": TEST_PAIRS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "max_length": MAX_LENGTH,
        "classes": list(LABELS),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }
    model.save_pretrained(folder)
    (out / f"{NAME}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))
