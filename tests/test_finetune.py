"""Fine-tuning in one call: presets, checkpoints, and what it takes and gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import ispasp
from ispasp.errors import CalibrationError, DeviceError, ModelError, RunError, SettingError
from ispasp.tuning import checkpoint
from ispasp.tuning.settings import PRESETS, TuneSettings
from ispasp.tuning.training_set import MemorySet
from tests.small_distillation import mlp, pair
from tests.small_tuning import equal, normed, tuned, vectors

SETTINGS = TuneSettings(epochs=4, batch_size=16)


def test_a_pruned_network_learns_again() -> None:
    pruned, dense, data = pair()
    labelled = [(images, torch.arange(len(images)) % 5) for images in data]
    found = ispasp.finetune(pruned.train(), labelled, dense=dense, settings=SETTINGS, device="cpu")
    assert not found.training and pruned.training and found is not pruned
    steps = tuned(pruned, labelled, SETTINGS, dense)
    assert steps.best_epoch > 0 and equal(found.state_dict(), steps.model.state_dict())
    as_set = ispasp.finetune(pruned, MemorySet(labelled), dense=dense, settings=SETTINGS, device="cpu")
    assert equal(found.state_dict(), as_set.state_dict())


def test_presets() -> None:
    inputs, labels = vectors(60)
    dense, pruned = mlp(12), mlp(4)
    by_name = ispasp.finetune(pruned, [inputs], dense=dense, preset="distil", device="cpu")
    assert equal(by_name.state_dict(), tuned(pruned, [inputs], PRESETS["distil"], dense).model.state_dict())
    with pytest.raises(CalibrationError, match='no labels; .* preset "distil"'):
        ispasp.finetune(pruned, [inputs], dense=dense, device="cpu")
    with pytest.raises(SettingError, match="distil is 0.5, but there is no dense model; give it"):
        ispasp.finetune(pruned, [(inputs, labels)], device="cpu")
    with pytest.raises(SettingError, match="Unknown preset 'slow'; choose one of quick, paper and distil"):
        ispasp.finetune(pruned, [(inputs, labels)], preset="slow")
    with pytest.raises(DeviceError, match="Unknown device 'abacus'"):
        ispasp.finetune(pruned, [(inputs, labels)], device="abacus")
    with pytest.raises(SettingError, match="epochs is 0, and here no epochs are made after blocks"):
        ispasp.finetune(pruned, [(inputs, labels)], settings=TuneSettings(epochs=0, after_block=1))
    with pytest.raises(CalibrationError, match="The training data is empty"):
        ispasp.finetune(pruned, [], device="cpu")


def test_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = [vectors(60)], normed(dropout=0.3)
    whole = ispasp.finetune(model, data, settings=SETTINGS, device="cpu")
    write, written = checkpoint.write, []

    def killed(state: checkpoint.TuneState, folder: Path) -> None:
        write(state, folder)
        written.append(state.epoch)
        if written == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        ispasp.finetune(model, data, settings=SETTINGS, device="cpu", checkpoint=tmp_path)
    for _ in range(2):  # the second time it is finished already
        again = ispasp.finetune(model, data, settings=SETTINGS, device="cpu", checkpoint=str(tmp_path))
        assert equal(again.state_dict(), whole.state_dict())
        assert written == [1, 2, 3, 4]
    other = dataclasses.replace(SETTINGS, seed=1)
    for change in ({"settings": other}, {"dense": normed()}):
        with pytest.raises(RunError, match="of another model, other training data or other settings"):
            ispasp.finetune(
                model, data, **{"settings": SETTINGS, "device": "cpu", "checkpoint": tmp_path, **change}
            )


def test_what_is_no_model_is_refused_with_a_checkpoint_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a function; give a torch.nn.Module"):
        ispasp.finetune(normed, [vectors(60)], device="cpu", checkpoint=tmp_path)  # type: ignore[arg-type]


def test_a_full_disk_does_not_end_it(tmp_path: Path) -> None:
    data, model = [vectors(60)], normed()
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="The checkpoint of epoch . cannot be written") as warned:
        found = ispasp.finetune(
            model, data, settings=SETTINGS, device="cpu", checkpoint=tmp_path / "file" / "x"
        )
    assert len(warned) == 4
    whole = ispasp.finetune(model, data, settings=SETTINGS, device="cpu")
    assert equal(found.state_dict(), whole.state_dict())
