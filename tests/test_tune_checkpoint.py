"""Checkpoints: what goes on from one is the same to the last bit, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ispasp.calibration import read as read_batches
from ispasp.errors import RunError
from ispasp.tuning.checkpoint import FILE, TuneState, fingerprint, read, write
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.records import EpochDone
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import MemorySet
from tests.small_distillation import SmallNet
from tests.small_tuning import CPU, end, equal, normed, pictures, tuned, vectors

QUICK = TuneSettings(epochs=4, batch_size=16)


def half_done(**change: Any) -> tuple[Any, list[TuneState]]:
    """A fine-tuning, and where it was after each epoch."""
    states: list[TuneState] = []
    model = normed(dropout=0.4)
    return tuned(model, [vectors()], dataclasses.replace(QUICK, **change), keep=states.append), states


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"optimiser": "adamw", "learning_rate": 0.02},
        {"precision": "fp16", "momentum": 0.0},
        {"distil": 0.5, "patience": 1},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("after", [1, 3])
def test_resumed_is_uninterrupted(change: dict[str, Any], after: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, **change)
    inputs, labels = pictures(60)
    torch.manual_seed(1)
    pruned, dense = SmallNet(5), SmallNet().eval()
    training, evaluation = MemorySet([(inputs, labels)]), read_batches([(inputs, labels)])
    states: list[TuneState] = []

    def work(**more: Any) -> Any:
        return tune_steps(pruned, dense, training, evaluation, settings, device=CPU, stage="a", **more)

    whole, _ = end(work(keep=states.append))
    write(states[min(after, len(states)) - 1], tmp_path / "deep" / "place")
    assert [path.name for path in (tmp_path / "deep" / "place").iterdir()] == [FILE]
    found = read(tmp_path / "deep" / "place", fingerprint(pruned, dense, training, settings, "a"))
    assert found is not None
    torch.manual_seed(99)
    again: list[TuneState] = []
    resumed, events = end(work(state=found, keep=again.append))
    assert resumed.curve == whole.curve and resumed.best_epoch == whole.best_epoch
    assert resumed.stopped == whole.stopped
    assert equal(resumed.model.state_dict(), whole.model.state_dict())
    made = [event for event in events if isinstance(event, EpochDone)]
    assert len(made) == len(again) == len(whole.curve) - found.epoch
    if again:
        assert equal(again[-1].weights, states[-1].weights)
        assert equal(again[-1].optimiser, states[-1].optimiser) and again[-1].scaler == states[-1].scaler
    assert whole.best_epoch > 0 and isinstance(whole.model, SmallNet)


def test_what_is_kept_is_shared_with_nobody() -> None:
    _, states = half_done()
    assert not equal(states[0].weights, states[1].weights)
    assert not equal(states[0].optimiser, states[1].optimiser)
    assert [state.epoch for state in states] == [1, 2, 3, 4] == [len(state.curve) for state in states]
    assert {"momentum_buffer/0.weight", "momentum_buffer/4.bias"} <= states[0].optimiser.keys()


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path / "nothing", "x") is None and not list(tmp_path.iterdir())


def test_another_model_other_data_or_settings(tmp_path: Path) -> None:
    inputs, labels = vectors(40)
    model, training = normed(), MemorySet([(inputs, labels)])
    mark = fingerprint(model, None, training, QUICK)
    assert mark == fingerprint(model, None, MemorySet([(inputs, labels)]), QUICK, "", 4)
    model_2 = normed()
    others = [
        fingerprint(model_2, None, training, QUICK),
        fingerprint(model, model_2, training, QUICK),
        fingerprint(model, None, MemorySet([(inputs + 1, labels)]), QUICK),
        fingerprint(model, None, MemorySet([(inputs, labels + 1)]), QUICK),
        fingerprint(model, None, MemorySet([(inputs[:30], labels[:30])]), QUICK),
        fingerprint(model, None, training, dataclasses.replace(QUICK, seed=1)),
        fingerprint(model, None, training, QUICK, "layer1"),
        fingerprint(model, None, training, QUICK, "", 3),
    ]
    assert len({mark, *others}) == 9
    states: list[TuneState] = []
    tuned(model, training, QUICK, keep=states.append)
    write(states[0], tmp_path)
    assert read(tmp_path, mark)
    with pytest.raises(RunError, match="is of another model, other training data or other settings"):
        read(tmp_path, others[0])
    with pytest.raises(RunError, match="The checkpoint in epoch 1 is of another model"):
        tuned(model_2, training, QUICK, state=states[0])


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "curve":
        path.write_bytes(content.replace(b'\\"epoch\\": 1', b'\\"epoch\\": 7'))
    elif how == "type":
        path.write_bytes(content.replace(b'\\"best\\": true', b'\\"best\\": 1234', 1))
    elif how == "huge":
        wide = content.replace(b'\\"epoch\\": 1,', b'\\"epoch\\": 9999999999999999,', 1)
        path.write_bytes(
            (len(wide) - len(content) + int.from_bytes(content[:8], "little")).to_bytes(8, "little")
            + wide[8:]
        )
    elif how == "best":
        path.write_bytes(content.replace(b'\\"best\\": true', b'\\"best\\":false', 1))
    elif how == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["cut", "empty", "curve", "type", "huge", "best", "folder"])
def test_damaged(how: str, tmp_path: Path) -> None:
    _, states = half_done()
    write(states[0], tmp_path)
    before = (tmp_path / FILE).read_bytes()
    damaged(tmp_path / FILE, how)
    assert how == "folder" or (tmp_path / FILE).read_bytes() != before
    with pytest.raises(RunError, match=r"is damaged \(.*\); remove it to begin anew"):
        read(tmp_path, states[0].fingerprint)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_what_does_not_fit_the_model_is_refused(optimiser: str) -> None:
    inputs, labels = vectors(40)
    model, training, states = normed(), MemorySet([(inputs, labels)]), list[TuneState]()
    settings = dataclasses.replace(QUICK, optimiser=optimiser, precision="fp16", learning_rate=0.02)
    tuned(model, training, settings, keep=states.append)
    state = states[-1]  # nothing is left to do, so that nobody else would look at it
    assert state.best and tuned(model, training, settings, state=state).curve == state.curve
    for part in ("weights", "best", "optimiser"):
        tensors = getattr(state, part)
        for wrong in (
            {name: torch.zeros(5, 5, 5) for name in tensors},
            {name: value for name, value in tensors.items() if name != next(iter(tensors))},
            {"x/y": torch.zeros(1)},
        ):
            if (part, optimiser) == ("optimiser", "sgd") and len(wrong) == len(tensors) - 1:
                continue  # as if that parameter had never had a gradient
            with pytest.raises(
                RunError, match=r"^The checkpoint of epoch 4 is damaged \(.*\); remove it to begin anew.$"
            ):
                tuned(model, training, settings, state=dataclasses.replace(state, **{part: wrong}))
    for scaler in ({}, {"scale": 2.0}, {**state.scaler, "growth_interval": 0.5}):
        with pytest.raises(RunError, match="The checkpoint of epoch 4 is damaged"):
            tuned(model, training, settings, state=dataclasses.replace(state, scaler=scaler))


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    _, states = half_done()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="The checkpoint of epoch 1 cannot be written to .*Make room there"):
        write(states[0], tmp_path / "file")
    write(states[0], tmp_path)
    wrong = dataclasses.replace(states[1], scaler={"scale": float("inf")})
    with pytest.raises(RunError, match="epoch 2 cannot be written"):
        write(wrong, tmp_path)
    assert read(tmp_path, states[0].fingerprint).epoch == 1  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "file"]


def test_half_precision_weights_come_back_in_their_type(tmp_path: Path) -> None:
    inputs, labels = vectors()
    model: nn.Module = normed().half()
    states: list[TuneState] = []
    result = tuned(model, [(inputs.half(), labels)], QUICK, keep=states.append)
    write(states[-1], tmp_path)
    found = read(tmp_path, states[-1].fingerprint)
    assert found is not None and found.weights["0.weight"].dtype == torch.float32
    assert found.best["0.weight"].dtype == torch.float16
    resumed = tuned(model, [(inputs.half(), labels)], QUICK, state=found)
    assert equal(resumed.model.state_dict(), result.model.state_dict())
