"""torchvision's data sets: on disk, damaged, fetched, and without a network."""

from __future__ import annotations

import hashlib
import pickle
import socket
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets as torchvision_datasets

from ispasp import zoo
from ispasp.datasets import torchvision_sets
from ispasp.errors import CalibrationError, SettingError
from tests.small_images import GREY, RGB, folder, labels, load, values


def idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: two zero bytes, type 8 (uint8), dimensions, sizes, values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    )


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for start, (prefix, count) in enumerate((("train", 30), ("t10k", 12))):
        raw = tmp_path / "MNIST" / "raw"
        numbers = np.arange(count, dtype=np.uint8)
        idx(raw / f"{prefix}-images-idx3-ubyte",
            (numbers + 100 * start)[:, None, None] * np.ones((1, 28, 28), np.uint8))  # fmt: skip
        idx(raw / f"{prefix}-labels-idx1-ubyte", numbers % 10)
    return tmp_path


def test_mnist_on_disk(mnist: Path):
    digits = tuple(str(digit) for digit in range(10))
    found = load(f"torchvision:MNIST@{mnist}", GREY, digits, 10, samples=30, evaluation=12)
    shown = found.pictures[:, 0, 0, 0].tolist()
    assert labels(found.calibration)[:16] == [value % 10 for value in shown]
    evaluated = (found.evaluation[0][0][:, 0, 0, 0] * 0.25 + 0.5).mul(255).round().long().tolist()
    assert sorted(evaluated) == list(range(100, 112))
    assert labels(found.evaluation) == [(value - 100) % 10 for value in evaluated]


def test_damaged_mnist_is_one_sentence(mnist: Path):
    (mnist / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x09")
    with pytest.raises(CalibrationError, match=r"MNIST in .* cannot be read .*remove it"):
        load(f"torchvision:MNIST@{mnist}", GREY)


def test_mnist_with_a_label_that_no_digit_has(mnist: Path):
    idx(mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.full(30, 200, np.uint8))
    with pytest.raises(CalibrationError, match="label 200"):
        load(f"torchvision:MNIST@{mnist}", GREY)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images in CIFAR-10's files; torchvision unpickles none without its checksum."""
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def write(name: str, content: object) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def part(start: int, count: int) -> dict[str, object]:
        pixels = np.arange(start, start + count, dtype=np.uint8)[:, None] * np.ones((1, 3072), np.uint8)
        return {"data": pixels, "labels": [number % 10 for number in range(count)]}

    kind = torchvision_datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [write("data_batch_1", part(0, 20))])
    monkeypatch.setattr(kind, "test_list", [write("test_batch", part(200, 10))])
    file, md5 = write("batches.meta", {"label_names": list(names)})
    monkeypatch.setattr(kind, "meta", {"filename": file, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar10_on_disk(cifar10: Path):
    card = zoo.card("cifar10_resnet20")
    found = load(f"torchvision:CIFAR10@{cifar10}", RGB, card.classes, 10, samples=20, evaluation=10)
    shown = found.pictures[:, 0, 0, 0].tolist()
    assert labels(found.calibration)[:16] == [value % 10 for value in shown]
    assert found.classes == card.classes and found.notes == ()


def test_imagenet_folders(tmp_path: Path):
    wnids = ("n01440764", "n01443537", "n01484850")
    folder(tmp_path / "train", 4, wnids)
    folder(tmp_path / "val", 2, wnids, start=50)
    folder(tmp_path / "bonnets", 2, wnids, start=90)
    found = load(f"torchvision:ImageNet@{tmp_path}", RGB, ("tench", "goldfish", "shark"), 3, samples=12)
    assert sorted(values(found.calibration)) == list(range(12))
    assert labels(found.evaluation) == [(value - 50) // 2 for value in values(found.evaluation)]
    assert any("sorted order" in note for note in found.notes)
    with pytest.raises(CalibrationError, match="put its val folder there"):
        load(f"torchvision:ImageNet@{tmp_path / 'train'}")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR10@", "SVHN@data"])
def test_torchvision_names_of_another_form(name: str):
    with pytest.raises(SettingError, match=r"MNIST, CIFAR10 and ImageNet.*torchvision:CIFAR10@data"):
        load(f"torchvision:{name}")


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_without_a_network_it_is_one_sentence_at_once(tmp_path: Path, monkeypatch, name: str):
    """A server that takes connections and never answers: the worst of networks."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision_sets, "CONNECT_SECONDS", 0.2)
        monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", [address, address])
        monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", address)
        started = time.monotonic()
        with pytest.raises(CalibrationError, match=r"No intact \w+ lies in .* copy .*gz there .*folder:PATH"):
            load(f"torchvision:{name}@{tmp_path / 'new'}", GREY)
    assert time.monotonic() - started < 3
    assert not (tmp_path / "new").exists()


def test_what_is_fetched_is_checked_and_used(cifar10: Path, tmp_path: Path, monkeypatch):
    """The archive comes from a file address, which urllib fetches like any other."""
    archive = tmp_path / "served" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar10 / "cifar-10-batches-py", "cifar-10-batches-py")
    kind = torchvision_datasets.CIFAR10
    monkeypatch.setattr(kind, "url", archive.as_uri())
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    found = load(f"torchvision:CIFAR10@{tmp_path / 'a'}", RGB, (), 10)
    assert labels(found.calibration) == [value % 10 for value in found.pictures[:, 0, 0, 0].tolist()]
    monkeypatch.setattr(kind, "tgz_md5", "0" * 32)
    with pytest.raises(CalibrationError, match="came damaged from the network"):
        load(f"torchvision:CIFAR10@{tmp_path / 'b'}")
    assert not list((tmp_path / "b").iterdir())
