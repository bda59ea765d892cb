"""Classifiers of transformers, from a folder on disk or a name on the hub.

No code that comes with a model is ever run: classes are those of transformers itself, weights are read
as ``ispasp.models.checkpoint`` reads them, and what a configuration says about kernels or code to
fetch is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ispasp.errors import ModelError
from ispasp.models import checkpoint
from ispasp.models.hub import CONFIG, folder_of, needs_transformers, weight_files
from ispasp.models.huggingface_inputs import Inputs, inputs
from ispasp.models.source import RANDOM, UNTRAINED, LoadedModel, ModelSource, cause, seeded

_MAX_CONFIG_BYTES = 2**24
# A configuration can name code to fetch, kernels to run, more outputs to return, or a type to compute in.
_LEFT_OUT = re.compile(
    r"auto_map|.*_implementation(_internal)?|use_kernels|output_(attentions|hidden_states)|(torch_)?dtype"
)
MAX_LAYERS, MAX_OUTPUTS = 1000, 10**6
# How the many model types call their layers and classes.
_LAYERS = re.compile(
    r"(num|n)_(.*_)?(layers?|blocks|experts|hidden_groups)|(.*_)?(layers|depths?)|inner_group_num"
)
_OUTPUTS = re.compile(r"num_labels|num_classes")
# "backbone_config", where it is a dict, is a configuration like any.
_BACKBONES = {"backbone", "use_timm_backbone", "use_pretrained_backbone", "backbone_config"}
_FEATURES = (
    "no classifier is in this checkpoint ({}), so it puts out features: accuracy and agreement mean nothing"
)


def load(source: ModelSource) -> LoadedModel:
    """A classifier with the tokenizer or picture preparation beside it; the bare model where it is none.

    Args:
        source: ``name`` is a folder with ``config.json``, or a name on the hub.

    Raises:
        ModelError: transformers is not installed; the folder cannot be read or the hub not reached; the
            model type is unknown; the weights cannot be read or belong to another architecture; or the
            model fails on an example of what lies beside it.
    """
    _transformers(str(source))
    folder = folder_of(source.name, weights=not source.weights)
    values = _read_config(folder)
    class_name, is_classifier = _class_name(values)
    model = _built(class_name, values)
    if source.weights == RANDOM:
        whence = UNTRAINED
    else:
        state: dict[str, Tensor] = {}
        if source.weights:
            state = checkpoint.read_state(source.weights)
            whence = f"weights of {source.weights}"
        else:
            for file in weight_files(folder):
                state |= checkpoint.read_state(file)
            whence = "the weights there"
        model = _with_weights(model, state, source.weights or str(folder), is_classifier)
    prepared = _tried(model, folder)
    words = [f"{class_name} from {source.name}, {whence}"]
    if not is_classifier:
        words.append(_FEATURES.format(_asked(values) or "none named"))
    if prepared.problem:
        words.append(prepared.problem)
    return LoadedModel(
        source=source,
        model=model,
        example=prepared.example,
        preparation=prepared.preparation,
        classes=_classes(model.config) if is_classifier else (),
        words="; ".join(words),
        record={"kind": "huggingface", "class": class_name, "config": _plain(model.config)},
    )


def build(record: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The architecture of a record with fresh random weights.

    Raises:
        ModelError: transformers is not installed, or the record is damaged or names a class that is none
            of transformers' own.
    """
    _transformers("This model of Hugging Face")
    class_name, values = record.get("class"), record.get("config")
    if not isinstance(class_name, str) or not isinstance(values, dict):
        raise ModelError("The record of the model is damaged: it lacks class or config; save the run again.")
    if class_name not in {name for kind in _own_classes(values) for name in kind}:
        raise ModelError(
            f"The record of the model names {class_name!r}, which is no class of transformers for its model type "
            f"{values.get('model_type')!r}; save the run again."
        )
    return _built(class_name, values, seed)


@torch.no_grad()
def _tried(model: Any, folder: Path) -> Inputs:
    """What the model reads, once its forward has taken an example of it."""
    try:
        prepared = inputs(model, folder)
        model(**prepared.example.copy().keywords)
    except ModelError:
        raise
    except Exception as error:  # a damaged file shows only now, and a model may need more than one input
        raise ModelError(
            f"{type(model).__name__} fails on an example of {model.main_input_name} alone, made as the files in "
            f"{folder} say ({cause(error)}): give a model that needs nothing else, with the files that belong to it."
        ) from error
    return prepared


def _transformers(what: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise needs_transformers(what) from error
    return transformers


def _own_classes(values: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """transformers' classes for a model type: text classifiers, image classifiers, bare models.

    Raises:
        ModelError: it does not know the type.
    """
    from transformers.models.auto import modeling_auto

    mappings = (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_MAPPING_NAMES,
    )
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in mappings[2]:
        raise ModelError(
            f"The model type {kind!r} is unknown to transformers {_transformers('').__version__}: give a model "
            "that it has a class for, or install a newer transformers."
        )
    found = [mapping.get(kind, ()) for mapping in mappings]
    text, image, bare = ([names] if isinstance(names, str) else list(names) for names in found)
    return text, image, bare


def _class_name(values: Mapping[str, Any]) -> tuple[str, bool]:
    """The class that the configuration asks for, and whether it is a classifier."""
    text, image, bare = _own_classes(values)
    asked = _asked(values)
    return (asked, True) if asked in (*text, *image) else (bare[0], False)


def _asked(values: Mapping[str, Any]) -> str:
    """The class that the checkpoint was saved from; empty where the configuration does not say."""
    names = values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {_MAX_CONFIG_BYTES // 2**20} MiB")
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is no folder of a Hugging Face model: it has no {CONFIG}; give one that save_pretrained wrote."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): get the model again.") from error
    if values.get("quantization_config"):
        raise ModelError(f"The model in {folder} is quantised; give the full-precision one.")
    return values


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(v) for key, v in value.items() if not _LEFT_OUT.fullmatch(str(key))}
    return [_cleaned(v) for v in value] if isinstance(value, list) else value


def _check_values(class_name: str, values: Any, key: str = "") -> None:
    """Refuse what would have transformers ask the hub, or build for minutes.

    Raises:
        ModelError: a value within the configuration is such a one.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            _check_values(class_name, value, str(name))
        return
    if values and key in _BACKBONES:
        raise ModelError(
            f"The configuration of {class_name} takes a part from another model ({key}: {values!r}), which is never "
            "fetched: give a model whose configuration describes all of it (backbone_config)."
        )
    limits = ((_LAYERS, MAX_LAYERS), (_OUTPUTS, MAX_OUTPUTS))
    limit = next((limit for pattern, limit in limits if pattern.fullmatch(key)), None)
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, dict):
            _check_values(class_name, value)
        elif limit and isinstance(value, (int, float)) and not value <= limit:
            raise ModelError(
                f"The configuration of {class_name} has {key} {value:,}, and the limit is {limit:,}: mend its "
                f"{CONFIG}, or give a smaller model."
            )


def _built(class_name: str, values: Mapping[str, Any], seed: int = 0) -> Any:
    """The class with random weights, in eval mode; refused before it takes memory where it is too large."""
    transformers = _transformers(class_name)
    try:
        _check_values(class_name, values)
        with seeded(seed), _quiet():
            made: Any = getattr(transformers, class_name)
            with torch.device("meta"):
                size = sum(p.numel() for p in made(_config(values)).parameters())
            checkpoint.check_bytes(4 * size, class_name)
            return made(_config(values)).eval()
    except ModelError:
        raise
    except Exception as error:  # what a wrong value in a configuration raises is up to each class
        raise ModelError(
            f"{class_name} cannot be built from its configuration ({cause(error)}): mend its {CONFIG}, "
            "or get the model again."
        ) from error


def _config(values: Mapping[str, Any]) -> Any:
    transformers = _transformers("")
    return transformers.CONFIG_MAPPING[values["model_type"]].from_dict(_cleaned(dict(values)))


def _with_weights(model: Any, state: dict[str, Tensor], name: str, strict: bool) -> Any:
    """The model with these weights, whose older names transformers translates.

    Args:
        strict: every name must fit; else the checkpoint may hold more, and lack a pooler.

    Raises:
        ModelError: names or shapes do not fit (the message names the first three).
    """
    # transformers takes the tensors as they are, also where two of a file share their memory.
    own = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    try:
        with seeded(), _quiet():
            loaded, info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=own,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
            )
    except Exception as error:
        raise checkpoint.misfit(model, name, [cause(error)]) from error
    wrong = [f"missing {key}" for key in sorted(info["missing_keys"]) if strict or "pooler" not in key]
    wrong += [f"unexpected {key}" for key in sorted(info["unexpected_keys"]) if strict]
    wrong += [
        f"{key} is {tuple(found)} in place of {tuple(wanted)}"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    if wrong:
        raise checkpoint.misfit(model, name, wrong)
    return loaded.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What transformers prints while loading is said in errors, or not worth saying."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _classes(config: Any) -> tuple[str, ...]:
    """The names of the outputs; none where they are not all there, or transformers made them up."""
    labels = config.id2label or {}
    names = tuple(str(labels[index]) for index in range(config.num_labels) if index in labels)
    if len(names) != config.num_labels:
        return ()
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _plain(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = _cleaned(json.loads(config.to_json_string(use_diff=False)))
    return {key: value for key, value in values.items() if key != "_name_or_path"}
