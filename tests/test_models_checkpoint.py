"""Checkpoint files: tensors and nothing else are read, no code in them ever runs, and misfits are named."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from ispasp.errors import ModelError
from ispasp.models import checkpoint, read_state


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return network().state_dict()


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_state_dict_of_torch_is_read_however_it_is_wrapped(
    tmp_path: Path, state: dict[str, Tensor], wrapper: str | None, prefix: str, form: str
):
    held: Any = {prefix + name: value for name, value in state.items()}
    held = held if wrapper is None else {wrapper: held, "epoch": 3, "best": 0.5}
    path = tmp_path / "model.pth"
    torch.save(held, path, _use_new_zipfile_serialization=form == "zip")
    for given in (path, str(path), path.read_bytes()):
        read = read_state(given)
        assert list(read) == list(state)
        assert all(torch.equal(read[name], state[name]) for name in state)


def test_safetensors_are_read_from_a_file_and_from_bytes_whatever_their_name(
    tmp_path: Path, state: dict[str, Tensor]
):
    path = tmp_path / "model.bin"
    save_file(state, path)
    for given in (path, path.read_bytes()):
        read = read_state(given)
        assert set(read) == set(state) and all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("form", ["safetensors", "zip"])
def test_what_was_read_does_not_change_with_the_file(tmp_path: Path, state: dict[str, Tensor], form: str):
    path = tmp_path / "w"
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    read = read_state(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "wrapped"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path, state: dict[str, Tensor], form: str):
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    held: Any = {**state, "extra": Touch(trap)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Touch(trap)))
    else:
        held = {"state_dict": state, "optimizer": Touch(trap)} if form == "wrapped" else held
        torch.save(held, path, _use_new_zipfile_serialization=form != "legacy")
    for given in (path, path.read_bytes()):
        named = (
            "is damaged or holds more than tensors" if form == "plain pickle" else r"holds .* \(\S*mkdir\)"
        )
        with pytest.raises(ModelError, match=f"^evil {named}, which could run code") as raised:
            read_state(given, "evil")
        assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)
        assert not trap.exists()
    # The trap is real: unsafe reading springs it.
    if form == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert trap.is_dir()


def test_a_whole_pickled_module_is_refused(tmp_path: Path):
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"more than tensors \(torch\.nn\S+\).*save model\.state_dict\(\)"):
        read_state(tmp_path / "whole.pt")


def test_exported_programs_and_torchscript_are_refused(tmp_path: Path):
    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),))
    torch.export.save(program, tmp_path / "program.pt2")
    shutil.copy(tmp_path / "program.pt2", tmp_path / "renamed.pth")
    for name in ("program.pt2", "renamed.pth"):
        with pytest.raises(ModelError, match=r"is an exported program \(\.pt2\), which can run code"):
            read_state(tmp_path / name)


def test_torchscript_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for member in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{member}", b"")
    with pytest.raises(ModelError, match="is a TorchScript archive, which can run code"):
        read_state(tmp_path / "script.pt")


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_files_are_one_sentence(tmp_path: Path, state: dict[str, Tensor], form: str, share: float):
    path = tmp_path / "cut"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    for given in (path, path.read_bytes()):
        with pytest.raises(ModelError, match="^cut .*damaged") as raised:
            read_state(given, "cut")
        assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x04.", b"hello, world", b"\x89PNG\r\n\x1a\n" * 9]
)
def test_other_content_is_one_sentence(content: bytes):
    with pytest.raises(ModelError, match="^it (is neither|cannot be read|holds|is damaged)") as raised:
        read_state(content, "it")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([1, 2], "holds a list in place of named tensors"),
        ({}, "holds a dict in place of named tensors"),
        ({"a": 1.5}, "holds 'a', a float, among its tensors"),
        ({3: torch.zeros(1)}, "holds 3, a Tensor, among its tensors"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a in it is a sparse"),
        ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, r"a in it is torch\.float8_e4m3fn; save weights as"),
        ({"a": torch.zeros(2, device="meta")}, "a in it is a sparse, quantised or empty tensor"),
        ({"a": torch.tensor([0.0, float("nan")])}, "a in it holds values that are not finite"),
        ({"a": torch.tensor([float("inf")]).half()}, "a in it holds values that are not finite"),
    ],
)
def test_what_is_not_a_state_dict_of_finite_tensors_is_refused(tmp_path: Path, held: Any, said: str):
    torch.save(held, tmp_path / "it")
    with pytest.raises(ModelError, match=said):
        read_state(tmp_path / "it", "it")


def test_non_finite_safetensors_are_refused():
    with pytest.raises(ModelError, match="^w in it holds values that are not finite"):
        read_state(save({"w": torch.tensor([1.0, float("nan")])}), "it")


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path):
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(5 * 2**30)  # a hole: it takes no room on disk
    with pytest.raises(ModelError, match=r"is 5\.0 GiB; at most 4 GiB are read"):
        read_state(tmp_path / "huge.safetensors")


def test_a_few_bytes_cannot_pose_as_a_huge_tensor(tmp_path: Path):
    torch.save({"w": torch.zeros(1).expand(2**33)}, tmp_path / "bomb.pth")
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(ModelError, match=r"What \S+bomb\.pth holds is 32\.0 GiB; at most 4 GiB"):
        read_state(tmp_path / "bomb.pth")


def test_an_archive_that_unfolds_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "flat.pth")
    with (
        zipfile.ZipFile(tmp_path / "flat.pth") as flat,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in flat.namelist():
            bomb.writestr(member, flat.read(member))
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 100_000)
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(ModelError, match=r"bomb\.pth, unpacked, is"):
        read_state(tmp_path / "bomb.pth")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(ModelError, match=f"There is no checkpoint file {path}: give the path of one"):
            read_state(path)


def test_fit_loads_every_tensor_and_casts_half_precision(state: dict[str, Tensor]):
    model = network()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    checkpoint.fit(model, half, "half")
    for name, value in model.state_dict().items():
        assert torch.equal(value, half[name].to(value.dtype)) and value.dtype == state[name].dtype


def test_fit_takes_files_older_than_the_batch_counter(state: dict[str, Tensor]):
    old = OrderedDict((k, v) for k, v in state.items() if not k.endswith("num_batches_tracked"))
    vars(old)["_metadata"] = OrderedDict()
    model = checkpoint.fit(network(), old, "old")
    assert torch.equal(model.state_dict()["4.weight"], state["4.weight"])


def test_fit_names_the_first_three_mismatches(state: dict[str, Tensor]):
    del state["0.bias"]
    state |= {"head.weight": torch.zeros(1), "4.weight": torch.zeros(7, 4), "4.bias": torch.zeros(7)}
    with pytest.raises(ModelError) as raised:
        checkpoint.fit(network(), state, "other.pth")
    assert str(raised.value) == (
        "The weights in other.pth do not belong to this Sequential: missing 0.bias; unexpected head.weight; "
        "4.weight is (7, 4) in place of (2, 4) and 1 more. Give a checkpoint of this architecture, or choose "
        "the architecture that it was saved from."
    )
