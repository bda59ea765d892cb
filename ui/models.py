"""Models as the page knows them: read once, a few kept, and described without them."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import streamlit as st

from ispasp import evaluate, models, opened, user_code, zoo
from ispasp.errors import ISpaSPError
from ispasp.models import RANDOM, LoadedModel, ModelSource
from ispasp.preparation import ImagePreparation, TextPreparation
from ispasp.records import Block

KEPT = 2  # modules in memory; large ones take gigabytes
_REMEMBERED = 64
_FAILURE_SECONDS = 30.0  # a model that could not be read is tried again after this
_ANSWER_SECONDS = 3.0  # the server of published weights has to answer

T = TypeVar("T")
_Key = tuple[str, str, float]
_READING = threading.RLock()
_LOADED: OrderedDict[_Key, LoadedModel] = OrderedDict()
_FACTS: OrderedDict[_Key, Facts] = OrderedDict()
_COSTS: OrderedDict[_Key, tuple[int, int]] = OrderedDict()
_FAILED: OrderedDict[_Key, tuple[float, str]] = OrderedDict()


@dataclass(frozen=True)
class Facts:
    """What is known of a model once it was read.

    Attributes:
        blocks: the prunable ones, in network order, of every kind.
        parameters, macs: of the dense model; MACs for one example.
        reads: ``"image"``, ``"text"`` (sentence pairs), or ``"own"`` where only a Python file knows.
        words: what it is and where its weights come from.
    """

    blocks: tuple[Block, ...]
    parameters: int
    macs: int
    reads: str
    words: str

    @property
    def kinds(self) -> list[str]:
        """Kinds of groups that can be pruned, in network order."""
        return list(dict.fromkeys(block.kind for block in self.blocks))


def settle() -> None:
    """Take what is loaded by now out of Python's cyclic garbage collection.

    Streamlit collects all generations after every page run, and with torch loaded that holds the interpreter
    for 0.3-0.7 s on two cores: at two page runs per second the jobs' threads would hardly move.
    """
    gc.unfreeze()  # what has been let go since is collected
    gc.collect()
    gc.freeze()


def allow_code() -> bool:
    """Whether the app was started with the permission to run a person's Python files."""
    return os.environ.get("ISPASP_ALLOW_CODE") == "1"


def shown(source: ModelSource) -> ModelSource:
    """The source whose blocks stand for those of ``source``: published weights need not be fetched for that."""
    if source.kind == "torchvision" and not source.weights and not published_file(source.name).is_file():
        return replace(source, weights=RANDOM)
    return source


def at_once(source: ModelSource) -> bool:
    """Whether the model may be read without being asked for: no download, and nobody's code is run."""
    if source.kind == "huggingface":
        return Path(source.name).expanduser().is_dir() or known(source) is not None
    return source.kind != "python" or known(source) is not None


def known(source: ModelSource) -> Facts | None:
    """What is known already, without reading anything."""
    return _FACTS.get(_key(shown(source)))


def failure(source: ModelSource) -> str:
    """Why the model could not be read a short while ago; empty where it could, or was not tried."""
    when, sentence = _FAILED.get(_key(shown(source)), (0.0, ""))
    return sentence if time.monotonic() - when < _FAILURE_SECONDS else ""


def facts(source: ModelSource) -> Facts:
    """Read the model and find its blocks: seconds, the first time in a process.

    Raises:
        ISpaSPError: it cannot be read.
    """
    source = shown(source)
    key = _key(source)
    with _READING:  # whoever comes while another thread reads waits for its answer
        if key not in _FACTS:
            if sentence := failure(source):
                raise ISpaSPError(sentence)
            try:
                _put(_FACTS, key, _describe(loaded(source)), _REMEMBERED)
            except Exception as error:  # of foreign code, too: whatever it raises, the page goes on
                sentence = (
                    str(error) if isinstance(error, ISpaSPError) else f"{source} cannot be read: {error!r}."
                )
                _put(_FAILED, key, (time.monotonic(), sentence), _REMEMBERED)
                raise ISpaSPError(sentence) from error
            settle()  # tracing loads as much again as torch itself
        return _FACTS[key]


def costs(source: ModelSource) -> tuple[int, int]:
    """Parameters and MACs for one example of the dense model, which takes no tracing.

    Raises:
        ISpaSPError: it cannot be read.
    """
    source = shown(source)
    key = _key(source)
    with _READING:
        if key not in _COSTS:
            model = loaded(source)
            found = evaluate.count_parameters(model.model), evaluate.count_macs(model.model, model.example)
            _put(_COSTS, key, found, _REMEMBERED)
        return _COSTS[key]


def loaded(source: ModelSource) -> LoadedModel:
    """The model itself, from memory where it was among the last few.

    Raises:
        ISpaSPError: it cannot be read.
    """
    source = shown(source)
    key = _key(source)
    with _READING:
        if key not in _LOADED:
            _put(_LOADED, key, models.load(source, allow_code=allow_code()), KEPT)
        _LOADED.move_to_end(key)
        return _LOADED[key]


def forget(source: ModelSource) -> None:
    """Try anew what could not be read."""
    _FAILED.pop(_key(shown(source)), None)
    reachable.clear()


def published_file(name: str) -> Path:
    """Where torch keeps the published weights of a torchvision model once they were fetched."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / _published(name)[0].rpartition("/")[2]


def published_megabytes(name: str) -> float:
    return _published(name)[1]


@st.cache_data(show_spinner=False, max_entries=256)
def _published(name: str) -> tuple[str, float]:
    """Address and size in MB of the published weights."""
    from torchvision.models import get_model_weights  # type: ignore[import-untyped]

    best = get_model_weights(name).DEFAULT
    return best.url, float(best.meta.get("_file_size", 0.0))


@st.cache_data(show_spinner="Looking for the published weights …", max_entries=256, ttl=60)
def reachable(name: str) -> str:
    """Why the published weights of a torchvision model cannot be had from here; empty where they can."""
    url, _ = _published(name)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return getattr(reason, "strerror", None) or str(reason)


def names() -> list[str]:
    """torchvision's classification models."""
    from ispasp.models import torchvision_models

    return torchvision_models.names()


def _describe(model: LoadedModel) -> Facts:
    reads = {ImagePreparation: "image", TextPreparation: "text"}.get(type(model.preparation), "own")
    return Facts(tuple(opened.prunable_blocks(model)), *costs(model.source), reads, model.words)


def reads(source: ModelSource) -> str:
    """``Facts.reads``, also where the model was not read yet; empty where only reading it would tell."""
    if source.kind == "sample":
        return zoo.card(source.name).kind
    if source.kind in ("torchvision", "python"):
        return {"torchvision": "image", "python": "own"}[source.kind]
    found = known(source)
    return found.reads if found else ""


def _key(source: ModelSource) -> _Key:
    """A file that was changed is another model."""
    files = [Path(source.weights)] if source.weights not in ("", RANDOM) else []
    if source.kind == "huggingface":
        files.append(Path(source.name).expanduser() / "config.json")
    if source.kind == "python":
        with contextlib.suppress(ISpaSPError):  # reading it will say what is wrong
            files.append(user_code.split(source.name)[0])
    changed = 0.0
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            changed += file.stat().st_mtime
    return str(source), source.weights, changed


def _put(cache: OrderedDict[_Key, T], key: _Key, value: T, most: int) -> None:
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
