"""The settings of a fine-tuning, what they accept, and the presets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ispasp import evaluate
from ispasp.errors import SettingError, listing
from ispasp.settings import check_whole_number

AUTO = "auto"
OPTIMISERS = ("sgd", "adamw")
PRECISIONS = (AUTO, "fp32", "bf16", "fp16")
SGD_RATE = 0.05
DECAYS = {"sgd": 5e-4, "adamw": 1e-2}


@dataclass(frozen=True)
class TuneSettings:
    """How to fine-tune.

    Attributes:
        epochs: passes over the training data at the end; 0 for none (with ``after_block`` alone).
        after_block: passes after each block, for whoever prunes block by block; one in the paper.
        optimiser: ``"sgd"`` with Nesterov momentum, ``"adamw"``, or ``"auto"``: sgd for models with batch norms, adamw
            for others.
        learning_rate: the highest; None for 0.05 with sgd, and with adamw for one over the square root of the number of
            parameters: 0.002 for the sample ``nli_bert``, 0.0001 for a BERT of full size.
        batch_size: examples per step, of all processes together. Every epoch is cut into steps that differ by one
            example at most, so that none has many fewer than others.
        momentum: of sgd; AdamW has its usual betas, 0.9 and 0.999.
        weight_decay: of matrices and kernels alone, never of norms, biases and other vectors; None for 0.0005 with sgd
            and 0.01 with adamw.
        label_smoothing: share of the target that all classes get alike.
        distil: share of the loss, from 0 to 1, that leads towards the dense model (``ispasp.tuning.objective``); the
            rest leads to the labels. 1 looks at no label. Above 0, dropout is off.
        warmup: share of the steps in which the learning rate climbs, before it falls as a cosine.
        augment: mirror and shift images, where the dense model is used to that (``ispasp.augmentation.familiar``).
        precision: of the forward passes: ``"fp32"``, ``"bf16"``, ``"fp16"`` with a scaled loss, or ``"auto"``: bf16 on
            CUDA devices that compute in it, else fp32. The weights stay in single precision.
        patience: epochs without a lower held-out loss after which it ends; 0 for never.
        held_out: share of the training data that is never trained on and chooses the best epoch.
        seed: of everything random; below 2^63.

    Raises:
        SettingError: a value is unknown or out of range.
    """

    epochs: int = 15
    after_block: int = 0
    optimiser: str = AUTO
    learning_rate: float | None = None
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float | None = None
    label_smoothing: float = 0.1
    distil: float = 0.0
    warmup: float = 0.05
    augment: bool = True
    precision: str = AUTO
    patience: int = 0
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole_number("epochs", self.epochs, at_least=0)
        check_whole_number("after_block", self.after_block, at_least=0)
        if self.epochs == self.after_block == 0:
            raise SettingError("epochs is 0; give 1 or more, or epochs after each block.")
        check_whole_number("batch_size", self.batch_size, at_least=1)
        check_whole_number("patience", self.patience, at_least=0)
        check_whole_number("seed", self.seed, at_least=0, at_most=2**63 - 1)
        for name, given, known in (
            ("optimiser", self.optimiser, (AUTO, *OPTIMISERS)),
            ("precision", self.precision, PRECISIONS),
        ):
            if given not in known:
                raise SettingError(f"Unknown {name} {given!r}; choose one of {listing(known)}.")
        if self.learning_rate is not None and not (
            _is_number(self.learning_rate) and 0 < self.learning_rate < math.inf
        ):
            raise SettingError(
                f"learning_rate is {self.learning_rate!r}; give a number above 0, such as 0.01, or None to have it "
                "chosen by the optimiser."
            )
        if self.weight_decay is not None:
            _check_within("weight_decay", self.weight_decay, 0, 1)
        _check_within("momentum", self.momentum, 0, 0.999)
        _check_within("label_smoothing", self.label_smoothing, 0, 0.9)
        _check_within("distil", self.distil, 0, 1)
        _check_within("warmup", self.warmup, 0, 0.9)
        _check_within("held_out", self.held_out, 0.001, 0.5)
        if not isinstance(self.augment, bool):
            raise SettingError(f"augment is {self.augment!r}; give True or False.")

    def resolved(self, model: nn.Module) -> TuneSettings:
        """The same with the optimiser, its rate and its weight decay as they are for ``model``."""
        normed = any(isinstance(module, _BatchNorm) for module in model.modules())
        optimiser = ("sgd" if normed else "adamw") if self.optimiser == AUTO else self.optimiser
        # Larger transformers bear smaller steps. Measured on nli_bert alone (docs/finetuning.md).
        rate = SGD_RATE if optimiser == "sgd" else max(1, evaluate.count_parameters(model)) ** -0.5
        return dataclasses.replace(
            self,
            optimiser=optimiser,
            learning_rate=rate if self.learning_rate is None else self.learning_rate,
            weight_decay=DECAYS[optimiser] if self.weight_decay is None else self.weight_decay,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_within(name: str, value: object, least: float, most: float) -> None:
    if not (_is_number(value) and least <= value <= most):  # type: ignore[operator]
        raise SettingError(f"{name} is {value!r}; give a number from {least:g} to {most:g}.")


# The paper gives one epoch after each block, then 90 under a cosine, and label smoothing of 0.1 (Wolfe & Kyrillidis,
# 2022); the rest are the published code's for ResNet34 (wolfecameron/i-SpaSP, prune_resnet34_ispasp.py),
# whose weight decay for MobileNetV2 is 4e-5. It keeps the rate up after a block, crops at random where we shift, and
# holds nothing out.
PRESETS = {
    "quick": TuneSettings(epochs=20, distil=0.5),
    "paper": TuneSettings(
        epochs=90,
        after_block=1,
        optimiser="sgd",
        learning_rate=0.01,
        batch_size=256,
        weight_decay=5e-4,
        warmup=0.0,
    ),
    "distil": TuneSettings(distil=1.0),
}
PRESET_WORDS = {
    "quick": "Quick: minutes on a CPU for the sample models",
    "paper": "As in the paper: one epoch after each block, then 90",
    "distil": "Towards the dense model, no labels needed",
}
