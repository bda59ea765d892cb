"""Fine-tunings that one process does alone or two share.

As a program: ``python -m tests.shared_tuning FOLDER`` joins the others, does all of them, writes what came out and what
happened when the second process failed, or ended, in the middle of a further one.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ispasp
from ispasp import processes
from ispasp.calibration import Batch, read
from ispasp.errors import ISpaSPError
from ispasp.tuning import checkpoint
from ispasp.tuning.drawing import generator_of, held_out, steps_of
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import MemorySet
from tests.small_distillation import SmallNet, mlp, narrow
from tests.small_tuning import Words, normed, pictures, sentences, tuned, vectors

# 57 examples, of which 51 are trained on in steps of 12 and 13: slices are uneven.
SETTINGS = TuneSettings(epochs=2, batch_size=15, learning_rate=0.02)


def images(**change: Any) -> tuple[nn.Module, Any, TuneSettings, nn.Module]:
    dense, data = SmallNet().eval(), [pictures(57)]
    pruned = narrow(dense, 5)
    pruned.dropout.p = 0.0  # which every process draws for itself
    return pruned, data, dataclasses.replace(SETTINGS, **change), dense


def words(each: bool) -> tuple[nn.Module, Any, TuneSettings, nn.Module]:
    settings = dataclasses.replace(SETTINGS, distil=0.0 if each else 0.5)
    return Words(4, each).eval(), [sentences(57, each)], settings, Words(8, each).eval()


def frozen() -> tuple[nn.Module, Any, TuneSettings, None]:
    """A part is frozen, and another never used."""
    model = normed()
    model[0].requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2)))
    return model, [vectors(57)], dataclasses.replace(SETTINGS, precision="fp16"), None


CASES: dict[str, Callable[[], tuple[nn.Module, Any, TuneSettings, nn.Module | None]]] = {
    "labels": images,
    "both": lambda: images(distil=0.5),
    "dense alone": lambda: images(distil=1.0),
    "words": lambda: words(False),
    "every token": lambda: words(True),
    "three a step": lambda: images(batch_size=3, epochs=1),
    "frozen": frozen,
}


def outcome(name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The last weights and the curve of one of them."""
    torch.manual_seed(0)
    model, data, settings, dense = CASES[name]()
    evaluation = read([(*batch[:-1], batch[-1]) if isinstance(batch, tuple) else batch for batch in data * 3])
    states: list[Any] = []
    result = tuned(model, data, settings, dense, evaluation, keep=states.append)
    assert bool(states) == processes.here().leads
    weights = states[-1].weights if states else {}
    best = {f"best {key}": value for key, value in result.model.state_dict().items()}
    return {**weights, **best}, [{**dataclasses.asdict(done), "seconds": 0} for done in result.curve]


def wrong_label() -> str:
    """What is said where only the second process comes upon a label that there is not."""
    torch.manual_seed(0)
    model, [(inputs, labels)], settings, _ = CASES["labels"]()
    numbers = steps_of(held_out(57, 0.1, 0)[1], settings.batch_size, generator_of(0, "", 1, "order"))[2]
    labels[numbers[-1]] = 77
    try:
        with processes.joined(timeout_seconds=60):
            tuned(model, [(inputs, labels)], settings)
    except ISpaSPError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def cut_off() -> str:
    """What the first process says when the second ends in the second epoch."""
    asked = itertools.count()

    def stop() -> bool:
        if processes.here().rank == 1 and next(asked) == 5:
            os._exit(0)
        return False

    torch.manual_seed(0)
    model, data, settings, _ = CASES["labels"]()
    try:
        tuned(model, data, settings, stop=stop)
    except ISpaSPError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def apart() -> str:
    """What is said where the second process has not found the checkpoint that the first goes on from."""
    model, data, settings, _ = frozen()
    given = MemorySet(data)
    mark = checkpoint.fingerprint(model, None, given, settings)
    state = checkpoint.TuneState(mark, "", 1, (), {}, {}, {})
    try:
        tuned(model, given, settings, state=state if processes.here().leads else None)
    except ISpaSPError as error:
        return str(error)
    return "nothing"


class Unread:
    """A set whose examples do not lie in memory; it counts those that were asked for."""

    labelled, images, notes = True, False, ()

    def __init__(self, given: MemorySet) -> None:
        self.given, self.asked = given, 0

    def __len__(self) -> int:
        return len(self.given)

    def to(self, device: torch.device) -> Unread:
        return self

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        for numbers in order:
            self.asked += len(numbers)
            yield from self.given.batches([numbers])


def unlike() -> dict[str, str]:
    """What is said where the second process was given something else than the first."""
    inputs, labels = vectors(200)
    other = processes.here().rank
    seeded = torch.Generator().manual_seed(other)
    model, changed, flipped = mlp(4), inputs.clone(), labels.clone()
    changed[101] += other
    flipped[101] = (flipped[101] + other) % 3
    shuffled = DataLoader(TensorDataset(inputs, labels), 50, shuffle=True, generator=seeded)
    moved = copy.deepcopy(model)
    moved[2].bias.data[1] += other
    rounded = copy.deepcopy(model)
    rounded[0].weight.data *= 1 + 1e-6 * other
    unread = Unread(MemorySet(shuffled))
    usual = {"data": [(inputs, labels)], "settings": dataclasses.replace(SETTINGS, batch_size=90)}
    cases: dict[str, dict[str, Any]] = {
        "model": {"pruned": moved},
        "dense": {"dense": moved},
        "settings": {"settings": dataclasses.replace(usual["settings"], seed=other)},
        "order": {"data": shuffled},
        "one example": {"data": [(changed, labels)]},
        "one label": {"data": [(inputs, flipped)]},
        "files": {"data": unread},
        "evaluation": {"evaluation": read([(inputs, flipped)])},
        "nothing": {},
        "last digits": {"pruned": rounded},
    }
    said = {}
    for name, change in cases.items():
        try:
            tuned(**{"pruned": model, **usual, **change})
            said[name] = "nothing"
        except ISpaSPError as error:
            said[name] = f"{type(error).__name__}: {error}"
    said["read"] = str(unread.asked)
    place = Path(sys.argv[1]) / "not kept"
    try:
        ispasp.finetune(moved, [(inputs, labels)], settings=usual["settings"], device="cpu", checkpoint=place)
    except ISpaSPError as error:
        said["door"] = f"{type(error).__name__}: {error}"
    return said


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with processes.joined(timeout_seconds=60) as group:
        curves = {}
        for case in CASES:
            tensors, curves[case] = outcome(case)
            save_file(
                {k: v.clone().contiguous() for k, v in tensors.items()}, folder / f"{case} {group.rank}"
            )
        torch.manual_seed(0)
        given, batches, settings, dense = CASES["both"]()
        for _ in range(2):  # the second time it is finished already
            model = ispasp.finetune(
                given, batches, dense=dense, settings=settings, device="cpu", checkpoint=folder / "kept"
            )
        save_file(model.state_dict(), folder / f"door {group.rank}")
        (folder / f"curves {group.rank}").write_text(json.dumps(curves))
        (folder / f"apart {group.rank}").write_text(apart())
        torch.manual_seed(0)
        (folder / f"unlike {group.rank}").write_text(json.dumps(unlike()))
    (folder / f"wrong {group.rank}").write_text(wrong_label())
    with processes.joined(timeout_seconds=60):
        (folder / "said").write_text(cut_off())
