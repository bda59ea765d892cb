"""What the widgets ask the library, cached: pictures, examples, devices, saved runs."""

from __future__ import annotations

import atexit
import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st

from ispasp import data, datasets, device, inspector, pictures, store
from ispasp.errors import ISpaSPError
from ispasp.models import parse
from ispasp.records import Block, BlockStarted
from ispasp.result import RunRecord
from ispasp.run_settings import RunSettings
from ispasp.settings import groups_to_keep
from ui import models

FIRST_MODEL = "cifar10_resnet20"
"""The model chosen on a first visit."""


@st.cache_resource(show_spinner=False)
def settle_once() -> None:
    """``models.settle`` for what the imports brought, at the first page run of the process."""
    models.settle()
    atexit.register(gc.unfreeze)  # else extension modules report their types as leaked at exit


def warm() -> None:
    """Read the first model's network, so that the first visitor need not wait."""
    models.facts(parse(FIRST_MODEL))


@st.cache_resource(show_spinner=False)
def sample_count(dataset: str) -> int:
    """How many calibration examples ship under this name."""
    pairs = dataset in data.PAIR_DATASETS
    return len(
        data.sample_pairs(dataset, "calibration") if pairs else data.sample_images(dataset, "calibration")
    )


@st.cache_resource(show_spinner=False)
def training_count(dataset: str) -> int:
    """How many training examples ship under this name, or are written anew where they are made by rules."""
    return data.training_count(dataset)


def devices() -> dict[str, str]:
    """Choices of device by name, with what each is called; ``auto`` first."""
    named = {name: device.describe(device.pick(name)) for name in device.available()}
    return {"auto": f"auto: {next(iter(named.values()))}"} | named


def device_name() -> str:
    """What the first of this machine's devices is called; 'auto' takes it."""
    return device_words("auto")


def device_words(name: str) -> str:
    """What the device behind a choice is called, as reports have it."""
    return device.describe(device.pick(name))


def slot(name: str) -> str:
    """The one device behind a choice, so that 'auto' and 'cpu' wait for each other."""
    return str(device.pick(name))


def planned(settings: RunSettings) -> tuple[list[Block], list[int]]:
    """The blocks that a run with these settings would visit, and the groups that each of them would keep.

    Raises:
        ISpaSPError: the model cannot be read.
    """
    found = models.facts(settings.model_source()).blocks
    blocks = [block for block in found if block.kind in settings.kinds]
    return blocks, [
        groups_to_keep(
            b.groups, settings.keep_by_block.get(b.name, settings.keep), b.multiple(settings.multiple)
        )
        for b in blocks
    ]


@st.cache_data(show_spinner=False, max_entries=256)
def filter_picture(model: str, weights: str, name: str, group: int) -> np.ndarray:
    """The filters that make a group, as one RGB picture.

    Raises:
        ISpaSPError: the model cannot be read, or is another one by now.
    """
    source = parse(model, weights)
    block = next((b for b in models.facts(source).blocks if b.name == name), None)
    if models.shown(source) != source:
        raise ISpaSPError("The published weights are not on this machine any more.")
    if block is None:
        raise ISpaSPError(f"The model has no block {name} any more: it is another one.")
    return pictures.filter_sheet(inspector.group_filters(models.loaded(source).model, block, group))


@dataclass(frozen=True)
class Examples:
    """The first calibration examples of a run, in its order: pictures or texts; neither where they are unknown."""

    pictures: tuple[np.ndarray, ...] = ()
    texts: tuple[str, ...] = ()


@st.cache_data(show_spinner=False, max_entries=32)
def examples(model: str, weights: str, source: str, samples: int, seed: int, count: int) -> Examples:
    """Read as few of them as will be shown.

    Raises:
        ISpaSPError: they cannot be read, or the model cannot.
    """
    place = datasets.parse(source)
    if place.kind == "python":
        return Examples()
    found = datasets.load(
        place,
        models.loaded(parse(model, weights)).preparation,
        (),
        outputs=None,
        # The order of the shipped data depends on how many there are; elsewhere fewer are the first of more.
        samples=samples if place.kind == "sample" else min(samples, count),
        seed=seed,
        evaluation=1,
    )
    shown = () if found.pictures is None else tuple(map(pictures.photo, found.pictures[:count].numpy()))
    return Examples(shown, found.texts[:count])


@dataclass(frozen=True)
class Answer:
    """What a group answers to one example: a picture (of a map, or of its tokens), a number, or both."""

    picture: np.ndarray | None = None
    number: float | None = None


def answers(started: BlockStarted, group: int) -> list[Answer]:
    """What a group answers to the first calibration examples, one entry each.

    Maps for channels, a number for neurons; both where it answers to every token, the number being the mean. A
    head's answer to a token is the root mean square of its features.
    """
    sample = started.sample[:, group].numpy().astype(np.float32)
    if started.block.kind == "head":
        sample = np.sqrt((sample**2).mean(axis=1)).reshape(len(sample), -1)
    if sample.ndim == 3:
        limit = float(sample.max(initial=0))
        return [Answer(pictures.map_picture(one, limit)) for one in sample]
    if sample.ndim == 1 or started.block.kind == "channel":
        return [Answer(None, float(one)) for one in sample.reshape(len(sample), -1).mean(axis=1)]
    limit = float(np.abs(sample).max(initial=0)) or 1.0
    return [Answer(pictures.token_strip(one, limit), float(one.mean())) for one in sample]


@st.cache_resource(show_spinner=False, max_entries=8)
def _open(path: str, changed: float) -> RunRecord:
    return store.open_run(Path(path))


def open_run(run_id: str) -> RunRecord:
    """A run of this server's folder; an id with a path in it finds nothing.

    Raises:
        RunError: it is missing, damaged or foreign.
    """
    path = run_path(run_id)
    file = path / "run.json"
    return _open(str(path), file.stat().st_mtime if file.is_file() else 0.0)


def run_path(run_id: str) -> Path:
    # ".." is its own name, and no run's.
    return store.default_folder() / (Path(run_id).name.lstrip(".") or "no-such-run")
