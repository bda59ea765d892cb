"""What fine-tuning trains on: the same examples from every source, in memory and from files, none of them evaluated."""

from __future__ import annotations

import threading
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ispasp import data, datasets, zoo
from ispasp.calibration import as_batch
from ispasp.datasets import Training, file_set, training
from ispasp.datasets.file_set import FileSet
from ispasp.errors import CalibrationError, SettingError
from ispasp.finetune import finetune
from ispasp.preparation import ImagePreparation, TextPreparation
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import MemorySet
from tests.small_images import CLASSES, GREY, RGB, folder, labels, picture, values

CPU = torch.device("cpu")


def load(where: str, preparation=RGB, classes=CLASSES, outputs: int | None = 2, **changes) -> Training:
    settings = {"seed": 0, "evaluation": 4} | changes
    return datasets.load_training(datasets.parse(where), preparation, classes, outputs=outputs, **settings)


def everything(found: Training) -> list:
    """All examples in their order, as batches of 5."""
    order = torch.arange(len(found.set)).split(5)
    return list(found.set.batches([numbers.tolist() for numbers in order]))


def zipped(root: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root).as_posix())
    return path


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decoding")]


@pytest.fixture
def from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no training image fitted into memory."""
    monkeypatch.setattr(training, "MEMORY_BYTES", 0)


# ---------------------------------------------------------------- in memory


def test_batches_are_the_examples_asked_for_in_their_order():
    images = torch.arange(7.0).view(7, 1, 1, 1)
    one = MemorySet([(images[:4], torch.arange(4)), (images[4:], torch.arange(4, 7))])
    assert (len(one), one.labelled, one.images) == (7, True, True)
    found = list(one.batches([[6, 0, 3], [5, 5]]))
    assert [batch.inputs[0].flatten().tolist() for batch in found] == [[6, 0, 3], [5, 5]]
    assert [batch.labels.tolist() for batch in found] == [[6, 0, 3], [5, 5]]
    assert one.to(CPU) is one


def test_keywords_and_missing_labels():
    text = {"input_ids": torch.arange(6).view(3, 2), "attention_mask": torch.ones(3, 2, dtype=torch.int64)}
    both = MemorySet([{**text, "labels": torch.tensor([1, 0, 1])}])
    [batch] = both.batches([[2, 0]])
    assert both.labelled and not both.images
    assert batch.keywords["input_ids"].tolist() == [[4, 5], [0, 1]] and batch.labels.tolist() == [1, 1]
    partly = MemorySet([{**text, "labels": torch.tensor([1, 0, 1])}, text])
    assert not partly.labelled and next(partly.batches([[5]])).labels is None


def test_bad_batches_are_named_as_training_data():
    with pytest.raises(CalibrationError, match="The training data is empty"):
        MemorySet([])
    with pytest.raises(CalibrationError, match="Batch 1 of the training data has 1 values that are NaN"):
        MemorySet([torch.tensor([[1.0], [float("nan")]])])
    with pytest.raises(CalibrationError, match="2 labels for 3 examples"):
        MemorySet([(torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64))])


# ---------------------------------------------------------------- folders and archives


def test_a_folder_is_trained_on_but_for_what_is_evaluated(tmp_path: Path):
    root = folder(tmp_path, per_class=30)
    found = load(f"folder:{root}")
    trained, evaluated = values(everything(found)), values(found.evaluation)
    assert isinstance(found.set, MemorySet) and found.set.labelled and found.set.images
    assert sorted(trained + evaluated) == list(range(60)) and len(evaluated) == 4
    assert labels(everything(found)) == [value // 30 for value in trained]
    assert (found.classes, found.notes) == (CLASSES, ())
    # What is evaluated on is what a run on the same folder is measured on.
    run = datasets.load(
        datasets.parse(f"folder:{root}"), RGB, CLASSES, outputs=2, samples=8, seed=0, evaluation=4
    )
    assert values(run.evaluation) == evaluated
    assert set(values(run.calibration)) < set(trained)


def test_fewer_examples_are_part_of_more_and_too_many_are_a_note(tmp_path: Path):
    root = folder(tmp_path)
    some, all_ = load(f"folder:{root}", examples=6), load(f"folder:{root}", examples=1000)
    assert values(everything(some)) == values(everything(all_))[:6]
    assert values(some.evaluation) == values(all_.evaluation)
    assert all_.notes == ("Only 16 images for training, where 1,000 were asked for.",)
    with pytest.raises(SettingError, match="examples is 0"):
        load(f"folder:{root}", examples=0)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_from_files_it_is_the_same_as_in_memory(tmp_path: Path, monkeypatch, kind: str):
    root = folder(tmp_path / "images", per_class=12)
    where = f"folder:{root}" if kind == "folder" else f"zip:{zipped(root, tmp_path / 'images.zip')}"
    memory = load(where)
    monkeypatch.setattr(training, "MEMORY_BYTES", 0)
    files = load(where)
    assert isinstance(files.set, FileSet) and len(files.set) == len(memory.set)
    assert (files.set.labelled, files.set.images) == (True, True)
    order = [[3, 1], [0], [7, 7, 19], *([n] for n in range(12))]
    for one, other in zip(memory.set.batches(order), files.set.to(CPU).batches(order), strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.labels, other.labels)
    assert [torch.equal(a[0], b[0]) for a, b in zip(memory.evaluation, files.evaluation, strict=True)] == [
        True
    ]
    assert labels(memory.evaluation) == labels(files.evaluation)
    assert (files.classes, files.notes) == (memory.classes, memory.notes)


def test_fine_tuning_from_files_gives_the_weights_that_it_gives_in_memory(tmp_path: Path, monkeypatch):
    where = f"folder:{folder(tmp_path, per_class=20)}"
    tuned = []
    for limit in (2**30, 0):
        monkeypatch.setattr(training, "MEMORY_BYTES", limit)
        found = load(where)
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
        )
        tuned.append(
            finetune(
                network,
                found.set,
                settings=TuneSettings(epochs=3, batch_size=8, learning_rate=0.003),
                device="cpu",
            )
        )
    first, second = (model.state_dict() for model in tuned)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], network.state_dict()["0.weight"])


def test_training_and_validation_folders_and_copies_of_evaluation_images(tmp_path: Path, from_files: None):
    folder(tmp_path / "train", per_class=12)
    folder(tmp_path / "val", per_class=3, start=300)
    picture(tmp_path / "train" / "cat" / "copy.png", 300)  # the first of the validation images
    found = load(f"folder:{tmp_path}", evaluation=6)
    trained = values(everything(found))
    assert set(trained) == set(range(24)) and len(trained) == 25
    assert values(found.evaluation).count(300) == 1
    assert found.notes == ("1 of the images to train on are copies of images to evaluate with: left out.",)
    assert values(everything(found)) == trained


def test_an_image_that_cannot_be_used_is_replaced_and_too_many_are_refused(tmp_path: Path, from_files: None):
    folder(tmp_path / "train", per_class=15)
    folder(tmp_path / "test", per_class=2, start=300)
    (tmp_path / "train" / "dog" / "004.png").write_bytes(b"no image")
    found = load(f"folder:{tmp_path}")
    trained = values(everything(found))
    assert len(trained) == 30 and set(trained) == set(range(30)) - {19}
    assert labels(everything(found)) == [value // 15 for value in trained]
    assert "'train/dog/004.png' (no image)" in found.notes[-1]
    for number in range(4):
        (tmp_path / "train" / "cat" / f"{number:03}.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match="above 10% of the 30 needed.*repair or remove them"):
        everything(load(f"folder:{tmp_path}"))
    assert decoding_threads() == []


def test_an_image_is_replaced_by_one_of_the_same_pass(tmp_path: Path, from_files: None):
    folder(tmp_path / "train", per_class=15)
    folder(tmp_path / "test", per_class=2, start=300)
    numbered = values(everything(load(f"folder:{tmp_path}")))
    broken = numbered.index(19)  # the image dog/004.png
    (tmp_path / "train" / "dog" / "004.png").write_bytes(b"no image")
    found = load(f"folder:{tmp_path}")
    beside = (broken + 1) % 30
    trained = [number for number in range(30) if number != beside]
    assert numbered[beside] not in values(list(found.set.batches([trained[:9], trained[9:]])))
    assert values(list(found.set.batches([[broken]]))) == [numbered[beside]]  # rather than none


def test_leaving_the_loop_early_leaves_no_thread_and_no_open_file(tmp_path: Path, from_files: None):
    found = load(f"zip:{zipped(folder(tmp_path / 'images', per_class=40), tmp_path / 'images.zip')}")
    loop = found.set.batches([[n] for n in range(60)])
    next(loop)
    assert decoding_threads()
    loop.close()
    assert decoding_threads() == []
    (tmp_path / "images.zip").unlink()
    with pytest.raises(CalibrationError, match="cannot be read"):
        next(found.set.batches([[0]]))


def test_it_is_read_in_a_thread_as_the_app_does(tmp_path: Path, from_files: None):
    root = folder(tmp_path / "images")
    found = load(f"folder:{root}")
    seen: list[list[int]] = []
    job = threading.Thread(target=lambda: seen.append(values(everything(found))))
    job.start()
    job.join()
    assert seen == [values(everything(found))]


def test_no_more_threads_than_this_process_has_processors_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_set, "_processors", lambda: 8)
    assert file_set._threads() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert file_set._threads() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert file_set._threads() == 1


def test_images_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(20):
        picture(tmp_path / f"{number}.png", number)
    for limit in (2**30, 0):
        monkeypatch.setattr(training, "MEMORY_BYTES", limit)
        found = load(f"folder:{tmp_path}")
        assert not found.set.labelled and found.classes == ()
        assert all(batch.labels is None for batch in everything(found))
        assert "no class folders" in found.notes[0]


# ---------------------------------------------------------------- other sources


def test_sample_images():
    card, preparation = zoo.card("mnist_mlp"), zoo.preparation("mnist_mlp")
    found = load("sample:mnist", preparation, card.classes, 10, examples=10_000, evaluation=90)
    chosen = data.choose(data.sample_images("mnist", "train"), 4000, seed=0)
    [batch] = found.set.batches([list(range(4000))])
    assert torch.equal(batch.inputs[0], preparation.normalised(chosen.images))
    assert torch.equal(batch.labels, chosen.labels)
    assert labels(found.evaluation) == data.sample_images("mnist", "test").labels[:90].tolist()
    assert found.notes == ("Only 4,000 images for training, where 10,000 were asked for.",)


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_sample_pairs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "TRAINING_PAIRS", 600)
    card, preparation = zoo.card("nli_bert"), zoo.preparation("nli_bert")
    found = load("sample:nli", preparation, card.classes, 3, evaluation=50)
    assert len(found.set) == 600 and found.set.labelled and not found.set.images
    pairs = data.sample_pairs("nli", "train", 600)
    [batch] = found.set.batches([[599, 0]])
    assert batch.labels.tolist() == [pairs.labels[599], pairs.labels[0]]
    expected = preparation.encode([pairs.premises[599]], [pairs.hypotheses[599]])["input_ids"]
    assert torch.equal(batch.keywords["input_ids"][:1], expected)
    assert found.notes == ("600 sentence pairs to train on were written; ask for more if need be.",)
    fewer = load("sample:nli", preparation, card.classes, 3, examples=30)
    assert len(fewer.set) == 30 and fewer.notes == ()


def test_pairs_of_a_file(tmp_path: Path):
    rows = "".join(f"a{n}\tb{n}\t{n % 2}\n" for n in range(50))
    (tmp_path / "pairs.tsv").write_text("premise\thypothesis\tlabel\n" + rows)

    class Numbers:
        """The number in each premise as its only token."""

        def __call__(self, premises, hypotheses, **settings):
            return {"input_ids": torch.tensor([[int(premise[1:])] for premise in premises])}

    found = load(f"pairs:{tmp_path / 'pairs.tsv'}", TextPreparation(Numbers(), 1))
    [batch] = found.set.batches([list(range(46))])
    trained = batch.keywords["input_ids"].flatten().tolist()
    evaluated = torch.cat([part["input_ids"] for part in found.evaluation]).flatten().tolist()
    assert sorted(trained + evaluated) == list(range(50)) and len(evaluated) == 4
    assert batch.labels.tolist() == [number % 2 for number in trained]


def test_mnist_of_torchvision(tmp_path: Path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, start in (("train", 30, 0), ("t10k", 12, 100)):
        for kind, values_ in (
            ("images-idx3", np.arange(start, start + count)[:, None, None] * np.ones((1, 8, 8), int)),
            ("labels-idx1", np.arange(count) % 10),
        ):
            header = bytes([0, 0, 8, values_.ndim]) + b"".join(n.to_bytes(4, "big") for n in values_.shape)
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + values_.astype(np.uint8).tobytes())
    found = load(f"torchvision:MNIST@{tmp_path}", GREY, tuple("0123456789"), 10, evaluation=12)
    [batch] = found.set.batches([list(range(30))])
    pixels = (batch.inputs[0][:, 0, 0, 0] * 0.25 + 0.5).mul(255).round().long()
    assert sorted(pixels.tolist()) == list(range(30)) and torch.equal(batch.labels, pixels % 10)
    assert len(torch.cat([part[1] for part in found.evaluation])) == 12


def test_imagenet_folders_are_read_from_their_files(tmp_path: Path, from_files: None):
    folder(tmp_path / "train", per_class=6)
    folder(tmp_path / "val", per_class=2, start=300)
    (tmp_path / "spare" / "cat").mkdir(parents=True)
    found = load(f"torchvision:ImageNet@{tmp_path}")
    assert isinstance(found.set, FileSet)
    assert sorted(values(everything(found))) == list(range(12))
    assert sorted(values(found.evaluation)) == [300, 301, 302, 303]


def test_a_python_file(tmp_path: Path):
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "def one():\n    return [(torch.full((10, 2), float(n)), torch.full((10,), n)) for n in range(5)]\n"
        "def two():\n    return one(), one()[:1]\n"
        "def endless():\n    while True: yield torch.zeros(10, 2)\n"
    )
    where = f"python:{tmp_path / 'own.py'}"
    found = load(f"{where}:one", None, (), None, allow_code=True, calibration=50)
    assert len(found.set) == 46 and found.set.labelled and not found.set.images
    assert [as_batch(batch).labels.tolist() for batch in found.evaluation] == [[4, 4, 4, 4]]
    pair = load(f"{where}:two", None, (), None, allow_code=True)
    assert len(pair.set) == 50 and "4 of the evaluation examples are training examples too" in pair.notes[0]
    some = load(f"{where}:endless", None, (), None, allow_code=True, examples=30)
    assert len(some.set) == 30 and not some.set.labelled


@pytest.mark.parametrize("calibration", (1, 7, 10, 47, 48, 200))
@pytest.mark.parametrize("evaluation", (1, 9, 12, 100))
@pytest.mark.parametrize("examples", (None, 1, 5, 30, 200))
def test_one_iterable_is_evaluated_on_what_pruning_is_measured_on(
    tmp_path: Path, calibration: int, evaluation: int, examples: int | None
):
    """A run that was trained and is opened again must not be measured on examples that it was trained on."""
    (tmp_path / "own.py").write_text(
        "import torch\ndef one(): return list(torch.arange(48.0).view(12, 4, 1))\n"
    )
    source, given = f"python:{tmp_path / 'own.py'}:one", (None, ())
    found = load(source, *given, None, allow_code=True, evaluation=evaluation, calibration=calibration,
                 examples=examples)  # fmt: skip
    numbers = [int(x) for part in everything(found) for x in as_batch(part).inputs[0].flatten()]
    apart = [int(x) for part in found.evaluation for x in as_batch(part).inputs[0].flatten()]
    assert numbers and apart and not set(numbers) & set(apart)
    opened = datasets.load(datasets.parse(source), *given, outputs=None, samples=calibration, seed=0,
                           evaluation=len(apart), allow_code=True)  # fmt: skip
    assert [int(x) for part in opened.evaluation for x in as_batch(part).inputs[0].flatten()] == apart
    if examples is None:
        assert len(numbers) == 48 - len(apart) and len(apart) <= 9
    elif examples == 30:
        assert len(numbers) == 30


def test_noise_has_no_labels_and_says_so():
    small = ImagePreparation((4, 4), None, (0.5,), (0.5,))
    found = load("noise", small, (), 10)
    assert len(found.set) == 2000 and not found.set.labelled
    assert "training towards the dense model on noise says nothing about accuracy" in found.notes[0]
    assert len(load("noise", small, (), 10, examples=7).set) == 7
    trained = load("noise", small, (), 10, examples=100, evaluation=50, calibration=32)
    opened = datasets.load(datasets.parse("noise"), small, (), outputs=10, samples=32, seed=0, evaluation=50)
    assert torch.equal(torch.cat(trained.evaluation), torch.cat(opened.evaluation))
