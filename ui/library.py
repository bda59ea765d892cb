"""What the widgets ask the library, cached: models, blocks, sizes, pictures, saved runs."""

from __future__ import annotations

import atexit
import gc
import threading
from pathlib import Path

import numpy as np
import streamlit as st

from ispasp import calibration, data, device, evaluate, inspector, pictures, runs, zoo
from ispasp.records import Block, BlockStarted
from ispasp.result import RunRecord
from ispasp.settings import groups_to_keep

FIRST_MODEL = "cifar10_resnet20"
"""The model chosen on a first visit."""

_READING = threading.Lock()
_BLOCKS: dict[str, list[Block]] = {}


def settle() -> None:
    """Take what is loaded by now out of Python's cyclic garbage collection.

    Streamlit collects all generations after every page run, and with torch loaded that holds the interpreter
    for 0.3-0.7 s on two cores: at two page runs per second the jobs' threads would hardly move.
    """
    gc.collect()
    gc.freeze()


@st.cache_resource(show_spinner=False)
def settle_once() -> None:
    """:func:`settle` for what the imports brought, at the first page run of the process."""
    settle()
    atexit.register(gc.unfreeze)  # else extension modules report their types as leaked at exit


def blocks(model: str) -> list[Block]:
    """The prunable blocks of a sample model. Tracing takes seconds the first time in a process."""
    with _READING:  # whoever comes while another thread traces waits for its answer
        if model not in _BLOCKS:
            _BLOCKS[model] = runs.sample_blocks(model)
            settle()  # tracing loads as much again as torch itself
        return _BLOCKS[model]


@st.cache_data(show_spinner=False)
def macs(model: str) -> int:
    """Multiply-accumulates of the dense model for one image."""
    card = zoo.card(model)
    images = data.choose(_images(card.dataset), 1, 0)
    batch = calibration.as_batch(data.batches(images, card.mean, card.std)[0])
    return evaluate.count_macs(zoo.load(model), batch)


@st.cache_resource(show_spinner=False)
def _images(dataset: str) -> data.Images:
    return data.sample_images(dataset, "calibration")


def image_count(dataset: str) -> int:
    return len(_images(dataset))


def devices() -> dict[str, str]:
    """Choices of device by name, with what each is called; ``auto`` first."""
    named = {name: device.describe(device.pick(name)) for name in device.available()}
    return {"auto": f"auto: {next(iter(named.values()))}"} | named


def device_name() -> str:
    """What the first of this machine's devices is called; 'auto' takes it."""
    return device.describe(device.pick("auto"))


def slot(name: str) -> str:
    """The one device behind a choice, so that 'auto' and 'cpu' wait for each other."""
    return str(device.pick(name))


def kept(model: str, keep: float, by_block: dict[str, float], multiple: int) -> list[int]:
    """Groups that each block of the model would keep."""
    return [groups_to_keep(b.groups, by_block.get(b.name, keep), b.multiple(multiple)) for b in blocks(model)]


@st.cache_data(show_spinner=False, max_entries=256)
def filter_picture(model: str, block: str, group: int) -> np.ndarray:
    """The filters that make a group, as one RGB picture."""
    return pictures.filter_sheet(inspector.group_filters(model, block, group))


@st.cache_data(show_spinner=False, max_entries=32)
def photos(dataset: str, samples: int, seed: int, count: int) -> list[np.ndarray]:
    """The first calibration images of a run, in its order."""
    chosen = data.choose(_images(dataset), samples, seed).images[:count]
    return [pictures.photo(image) for image in chosen.numpy()]


def responses(started: BlockStarted, group: int) -> list[np.ndarray | float]:
    """What a group answers to the first calibration images: pictures for channels, numbers for neurons."""
    sample = started.sample[:, group].numpy().astype(np.float32)
    if sample.ndim == 3:
        limit = float(sample.max(initial=0))
        return [pictures.map_picture(one, limit) for one in sample]
    return [float(value) for value in sample.reshape(len(sample), -1).mean(axis=1)]


@st.cache_resource(show_spinner=False, max_entries=8)
def _open(path: str, changed: float) -> RunRecord:
    return runs.open_run(Path(path))


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
    return runs.default_folder() / (Path(run_id).name.lstrip(".") or "no-such-run")
