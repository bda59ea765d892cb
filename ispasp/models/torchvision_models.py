"""Every classification model of torchvision by name."""

from __future__ import annotations

import difflib
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as architectures  # type: ignore[import-untyped]

from ispasp.errors import ModelError, listing
from ispasp.models import checkpoint
from ispasp.models.source import RANDOM, UNTRAINED, LoadedModel, ModelSource, example, seeded
from ispasp.preparation import ImagePreparation

MAX_OUTPUTS = 10**6
_MANY = 20_000  # up to here the classifier of none takes a GiB
_TIMEOUT = 5.0  # seconds until the server must answer
# Training needs the auxiliary classifiers of these two, evaluation never runs them. Their published
# weights rescale the input themselves.
_WITHOUT_AUXILIARY = {
    name: {"aux_logits": False, "transform_input": True, "init_weights": True}
    for name in ("googlenet", "inception_v3")
}
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# The published files of DenseNet are older than the rule against dots in names.
_DOTTED = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)")


def names() -> list[str]:
    """Names of the classification models, sorted."""
    return sorted(architectures.list_models(module=architectures))


def load(source: ModelSource) -> LoadedModel:
    """A classification model with the evaluation transform of its published weights.

    Args:
        source: ``name`` is one of ``names()``.

    Raises:
        ModelError: the name is unknown, the published weights cannot be fetched, or the checkpoint
            cannot be read or belongs to another architecture.
    """
    _check_known(source.name)
    published = architectures.get_model_weights(source.name).DEFAULT
    outputs = len(published.meta["categories"])
    model = _architecture(source.name, outputs)
    if source.weights == RANDOM:
        whence = UNTRAINED
    else:
        given = source.weights or fetch(published.url, source.name)
        state = _renamed(checkpoint.read_state(given), model)
        if (found := _outputs(state, model, outputs)) != outputs:
            if not 1 <= found <= MAX_OUTPUTS:
                raise ModelError(f"{given} is for {found:,} classes: give one for 1 to {MAX_OUTPUTS:,}.")
            outputs = found
            model = _architecture(source.name, outputs)
        checkpoint.fit(model, state, source.weights or str(given))
        whence = f"weights of {source.weights}" if source.weights else f"published weights ({published.name})"
    categories = published.meta["categories"]
    preparation = _preparation(published.transforms())
    return LoadedModel(
        source=source,
        model=model,
        example=example(preparation),
        preparation=preparation,
        classes=tuple(categories) if outputs == len(categories) else (),
        words=f"{source.name} of torchvision, {outputs} classes, {whence}",
        record={"kind": "torchvision", "name": source.name, "outputs": outputs},
    )


def build(record: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The architecture of a record with fresh random weights.

    Raises:
        ModelError: the record does not name a model of this torchvision, is damaged, or asks for more than 4 GiB.
    """
    name, outputs = record.get("name"), record.get("outputs")
    if not isinstance(outputs, int) or isinstance(outputs, bool) or not 1 <= outputs <= MAX_OUTPUTS:
        raise ModelError(f"The record of the model is damaged: {outputs!r} outputs; save the run again.")
    _check_known(name)
    return _architecture(str(name), outputs, seed)


def fetch(url: str, name: str) -> Path:
    """The file at ``url`` in torch's folder of downloads, fetched unless it is there; its name holds its hash.

    Raises:
        ModelError: the server does not answer within seconds, or the download fails.
    """
    file = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    try:
        if not path.is_file():
            # The download itself knows no time limit: ask first whether anybody is there.
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
                checkpoint.check_bytes(int(answer.headers.get("Content-Length", 0)), file)
            path.parent.mkdir(parents=True, exist_ok=True)
            expected = re.search(r"-([a-f0-9]{8,})\.", file)
            torch.hub.download_url_to_file(url, str(path), expected and expected[1], progress=False)
    # URLError, HTTPError and time-outs are OSErrors; RuntimeError: the hash is another; ValueError: no URL.
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"The published weights of {name} cannot be fetched from {url} ({reason}): give a checkpoint file "
            f'in place of them (weights=PATH), or weights="{RANDOM}" for untrained ones, whose accuracy means '
            "nothing."
        ) from error
    return path


def _check_known(name: object) -> None:
    if name not in names():
        close = difflib.get_close_matches(str(name), names(), n=3)
        hint = f"did you mean {listing(close)}?" if close else "resnet18, mobilenet_v2 and vit_b_16 are some."
        raise ModelError(f"torchvision has no classification model {name!r}: {hint}")


def _architecture(name: str, outputs: int, seed: int = 0) -> nn.Module:
    """With random weights, in eval mode; refused before it takes memory where it is too large."""
    if outputs > _MANY:
        # Not every one can be made without memory (RegNets cannot), but all grow by the same for each class.
        one, two = (sum(p.numel() for p in _architecture(name, few).parameters()) for few in (1, 2))
        size = 4 * (one + (outputs - 1) * (two - one))
        checkpoint.check_bytes(size, f"{name} with {outputs:,} classes")
    with seeded(seed):
        model: nn.Module = architectures.get_model(
            name, weights=None, num_classes=outputs, **_WITHOUT_AUXILIARY.get(name, {})
        )
    return model.eval()


def _renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state with today's names, and without what only training uses."""
    own = model.state_dict()
    for key in list(state):
        if key in own:
            continue
        if key.startswith(_AUXILIARY):
            del state[key]
        elif match := _DOTTED.fullmatch(key):
            state[match[1] + match[2]] = state.pop(key)
    return state


def _outputs(state: Mapping[str, Tensor], model: nn.Module, usual: int) -> int:
    """The number of classes of a checkpoint: its classifier has so many rows, in place of the usual number."""
    rows = {
        value.shape[0]
        for key, own in model.state_dict().items()
        if (value := state.get(key)) is not None
        and own.ndim >= 1
        and own.shape[0] == usual
        and value.shape != own.shape
        and value.ndim == own.ndim
        and value.shape[1:] == own.shape[1:]
    }
    return rows.pop() if len(rows) == 1 else usual


def _preparation(transforms: Any) -> ImagePreparation:
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    return ImagePreparation(
        size=(crop, crop),
        resize=resize,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
