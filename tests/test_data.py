"""The shipped images: what there is, how it is batched and chosen, and damaged archives."""

from __future__ import annotations

import io
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample_models
from ispasp import data, zoo
from ispasp.data import Images, Pairs
from ispasp.errors import CalibrationError, ModelError, SettingError

SHIPPED = Path(sample_models.__file__).parent
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")


@pytest.fixture(scope="module")
def digits() -> Images:
    return data.sample_images("mnist", "calibration")


def toy(count: int) -> Images:
    """Images whose every pixel is the image's own position, so that a choice can be read off."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Images(pixels, torch.arange(count) % 2, ("even", "odd"))


def png(shape: tuple[int, ...], value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def archive(folder: Path, members: dict[str, bytes]) -> Path:
    """A folder with ``members`` as its mnist archive."""
    (folder / "data").mkdir()
    with zipfile.ZipFile(folder / "data" / "mnist.zip", "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return folder


@pytest.mark.parametrize("dataset, shape", [("cifar10", (3, 32, 32)), ("mnist", (1, 28, 28))])
@pytest.mark.parametrize("split, count", [("calibration", 512), ("test", 1000)])
def test_shipped_images_have_their_counts_shapes_and_types(dataset, shape, split, count):
    images = data.sample_images(dataset, split)
    assert images.images.shape == (count, *shape)
    assert images.images.dtype == torch.uint8 and images.images.is_contiguous()
    assert images.labels.shape == (count,) and images.labels.dtype == torch.int64
    assert len(images) == count
    assert int(images.images.max()) > 200 and int(images.images.min()) < 50
    # No image stands in for another: all are different.
    assert len(images.images.flatten(1).unique(dim=0)) == count


@pytest.mark.parametrize("dataset, split", [(d, s) for d in data.DATASETS for s in data.SPLITS])
def test_any_prefix_is_balanced(dataset: str, split: str):
    labels = data.sample_images(dataset, split).labels
    counts = torch.nn.functional.one_hot(labels, 10).cumsum(0)
    assert int((counts.max(1).values - counts.min(1).values).max()) <= 1


@pytest.mark.parametrize("name", ["cifar10_mobilenetv2", "cifar10_resnet20", "mnist_mlp"])
def test_classes_are_those_of_the_models_outputs(name: str):
    card = zoo.card(name)
    for split in data.SPLITS:
        assert data.sample_images(card.dataset, split).classes == card.classes


def test_labels_are_the_folders_and_pixels_the_files(digits: Images):
    with zipfile.ZipFile(SHIPPED / "data" / "mnist.zip") as file:
        names = [name for name in file.namelist() if name.startswith("calibration/")]
        for position in (0, 7, 511):
            label = int(names[position].split("/")[1])
            pixels = np.array(Image.open(io.BytesIO(file.read(names[position]))))
            assert digits.labels[position] == label
            assert np.array_equal(digits.images[position, 0].numpy(), pixels)


def test_colour_channels_come_in_the_order_red_green_blue(tmp_path: Path):
    orange = np.zeros((2, 3, 3), dtype=np.uint8)
    orange[:] = (250, 120, 5)
    buffer = io.BytesIO()
    Image.fromarray(orange).save(buffer, format="PNG")
    images = data.sample_images("mnist", "test", archive(tmp_path, {"test/fruit/1.png": buffer.getvalue()}))
    assert images.images.shape == (1, 3, 2, 3)
    assert images.images[0, :, 1, 2].tolist() == [250, 120, 5]


@pytest.mark.parametrize("dataset, count", [("cifar10", 20_000), ("mnist", 4000)])
def test_no_test_image_is_trained_on_and_calibration_images_are_training_images(dataset: str, count: int):
    calibration, test, train = (data.sample_images(dataset, split) for split in data.SPLITS)
    assert len(train) == count
    assert len(torch.cat([test.images, train.images]).flatten(1).unique(dim=0)) == 1000 + count
    assert torch.equal(calibration.images, train.images[:512])
    assert torch.equal(calibration.labels, train.labels[:512])


def test_unknown_names_list_the_known():
    with pytest.raises(SettingError, match="'imagenet'.*cifar10 and mnist"):
        data.sample_images("imagenet", "test")
    with pytest.raises(SettingError, match="'valid'.*calibration, test and train"):
        data.sample_images("mnist", "valid")
    # A name is looked up, never used as a path.
    with pytest.raises(SettingError):
        data.sample_images("../data/mnist", "test")


def test_batches_are_normalised_and_lose_nothing():
    images = toy(10)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    made = data.batches(images, mean, std, batch_size=4)
    assert [len(x) for x, _ in made] == [4, 4, 2]
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in made)
    whole = torch.cat([x for x, _ in made])
    assert torch.equal(torch.cat([y for _, y in made]), images.labels)
    for channel in range(3):
        expected = (images.images[:, channel].numpy() / 255 - mean[channel]) / std[channel]
        assert np.allclose(whole[:, channel].numpy(), expected, atol=1e-6)


def test_batches_of_a_card_have_mean_0_and_spread_1():
    card = zoo.card("mnist_mlp")
    pixels = torch.cat([x for x, _ in data.batches(data.sample_images("mnist", "test"), card.mean, card.std)])
    assert abs(float(pixels.mean())) < 0.02
    assert abs(float(pixels.std()) - 1) < 0.02


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8"])
def test_batch_size_must_be_a_whole_number_from_1(size):
    with pytest.raises(SettingError, match=rf"batch_size is {size!r}; give a whole number of 1 or more"):
        data.batches(toy(4), (0, 0, 0), (1, 1, 1), batch_size=size)


@pytest.mark.parametrize(
    "mean, std",
    [((0,), (1, 1, 1)), ((0, 0, 0), (1,)), ((0, 0, 0), (1, 0, 1)), ((0, 0, 0), (1, float("nan"), 1))],
)
def test_mean_and_std_must_fit_the_channels(mean, std):
    with pytest.raises(SettingError, match=r"3 channel\(s\)"):
        data.batches(toy(4), mean, std)


def test_choice_is_seeded_and_without_replacement():
    images = toy(200)
    taken = data.choose(images, 50, seed=3)
    positions = taken.images[:, 0, 0, 0].tolist()
    assert len(set(positions)) == 50
    assert positions == sorted(positions)
    assert positions != list(range(50))
    assert torch.equal(taken.labels, torch.tensor(positions) % 2)
    assert taken.classes == images.classes
    assert torch.equal(data.choose(images, 50, seed=3).images, taken.images)
    assert not torch.equal(data.choose(images, 50, seed=4).images, taken.images)


def test_choice_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = data.choose(toy(100), 10, seed=1).images
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(data.choose(toy(100), 10, seed=1).images, first)


def test_smaller_choice_is_part_of_the_larger():
    small = set(data.choose(toy(100), 20, seed=5).images[:, 0, 0, 0].tolist())
    large = set(data.choose(toy(100), 60, seed=5).images[:, 0, 0, 0].tolist())
    assert small < large


def test_all_of_them_is_the_list_itself():
    images = toy(30)
    assert torch.equal(data.choose(images, 30, seed=8).images, images.images)


@pytest.mark.parametrize("samples", [0, -3, 31, 2.0, True, None])
def test_samples_outside_the_list_are_refused(samples):
    with pytest.raises(SettingError, match=re.escape(f"samples is {samples!r}") + ".*from 1 to 30"):
        data.choose(toy(30), samples, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, "0"])
def test_seed_must_be_a_whole_number(seed):
    with pytest.raises(SettingError, match="seed"):
        data.choose(toy(30), 3, seed=seed)


@pytest.mark.parametrize(
    "images, labels, classes",
    [
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",)),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), ("a",)),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ("a",)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), ("a",)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), ("a",)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), ("a",)),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, -1]), ("a",)),
    ],
    ids=["none", "float", "three axes", "more labels", "float labels", "label too large", "label negative"],
)
def test_images_refuse_what_is_not_images(images, labels, classes):
    with pytest.raises(CalibrationError):
        Images(images, labels, classes)


def test_missing_archive_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"data/mnist\.zip cannot be read"):
        data.sample_images("mnist", "test", tmp_path)


@pytest.mark.parametrize(
    "members, said",
    [
        ({"calibration/0/1.png": png((4, 4))}, "no test images"),
        ({"test/0/1.png": b"no image"}, "cannot identify"),
        ({"test/0/1.png": png((4, 4))[:-30]}, ""),
        ({"test/0/1.png": png((4, 4)), "test/1/2.png": png((4, 5))}, "lies among"),
        ({"test/0/1.png": png((4, 4)), "test/1/2.png": png((4, 4, 3))}, "lies among"),
        ({"test/0/1.png": png((4, 4, 4))}, "lies among"),
        ({"test/0/1.png": png((4, 4)), "../../outside.png": png((4, 4))}, "outside.png"),
        ({"test/0/1.png": png((4, 4)), "test/../1.png": png((4, 4))}, "is not named"),
        ({"test/0/1.png": png((4, 4)), "test/0/1.pkl": b""}, "is not named"),
    ],
    ids=["other split", "text", "cut", "size", "mode", "alpha", "outside", "parent", "pickle"],
)
def test_archive_that_holds_something_else_is_damaged(members: dict[str, bytes], said: str, tmp_path: Path):
    folder = archive(tmp_path, members)
    with pytest.raises(ModelError, match=rf"data/mnist\.zip is damaged.*{said}"):
        data.sample_images("mnist", "test", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mnist.zip"]


def test_truncated_and_altered_archives_are_damaged(tmp_path: Path):
    content = (SHIPPED / "data" / "mnist.zip").read_bytes()
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "mnist.zip"
    altered = bytearray(content)
    altered[len(content) * 3 // 4] ^= 0xFF  # inside a test image: its checksum no longer fits
    for broken in (b"", content[:-200], bytes(altered)):
        path.write_bytes(broken)
        with pytest.raises(ModelError, match=r"data/mnist\.zip is damaged"):
            data.sample_images("mnist", "test", tmp_path)


def toy_pairs(count: int) -> Pairs:
    numbers = [str(number) for number in range(count)]
    return Pairs(
        tuple(numbers), tuple(f"not {number}" for number in numbers), torch.arange(count) % 2, ("a", "b")
    )


@pytest.mark.parametrize("split, count", [("calibration", 512), ("test", 1000)])
def test_shipped_pairs_are_the_grammars(split: str, count: int):
    pairs = data.sample_pairs("nli", split)
    assert len(pairs) == len(pairs.premises) == len(pairs.hypotheses) == count
    assert pairs.labels.shape == (count,) and pairs.labels.dtype == torch.int64
    assert pairs.classes == zoo.card("nli_bert").classes
    counts = torch.nn.functional.one_hot(pairs.labels, 3).cumsum(0)
    assert int((counts.max(1).values - counts.min(1).values).max()) <= 1


def test_training_pairs_begin_with_those_to_calibrate_with():
    calibration, train = (data.sample_pairs("nli", split, 900) for split in ("calibration", "train"))
    assert (len(calibration), len(train)) == (512, 900)
    assert train.premises[:512] == calibration.premises and train.hypotheses[:512] == calibration.hypotheses
    assert not set(train.hypotheses) & set(data.sample_pairs("nli", "test").hypotheses)
    for count in (0, data.MAX_TRAINING_PAIRS + 1):
        with pytest.raises(SettingError, match="training"):
            data.sample_pairs("nli", "train", count)


def test_unknown_pairs_list_the_known():
    with pytest.raises(SettingError, match="'xnli'.*nli"):
        data.sample_pairs("xnli", "test")
    with pytest.raises(SettingError, match="'valid'.*calibration, test and train"):
        data.sample_pairs("nli", "valid")
    with pytest.raises(SettingError, match="'valid'.*calibration, test and train"):
        data.sample_batches("mnist_mlp", "valid")


def test_pairs_are_chosen_as_images_are():
    taken = data.choose(toy_pairs(200), 50, seed=3)
    positions = [int(premise) for premise in taken.premises]
    assert positions == data.choose(toy(200), 50, seed=3).images[:, 0, 0, 0].tolist()
    assert taken.hypotheses == tuple(f"not {position}" for position in positions)
    assert torch.equal(taken.labels, torch.tensor(positions) % 2)
    with pytest.raises(SettingError, match="from 1 to 20"):
        data.choose(toy_pairs(20), 21, seed=0)


def test_sample_batches_of_an_image_model_are_its_images():
    card = zoo.card("cifar10_resnet20")
    images = data.choose(data.sample_images(card.dataset, "calibration"), 96, seed=5)
    expected = data.batches(images, card.mean, card.std)
    made = data.sample_batches("cifar10_resnet20", "calibration", samples=96, seed=5)
    assert [len(x) for x, _ in made] == [64, 32]
    for (x, y), (x2, y2) in zip(made, expected, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


@needs_transformers
def test_sample_batches_of_a_text_model_are_its_pairs():
    pairs = data.choose(data.sample_pairs("nli", "calibration"), 96, seed=5)
    made = data.sample_batches("nli_bert", "calibration", samples=96, seed=5)
    assert [set(batch) for batch in made] == [
        {"input_ids", "token_type_ids", "attention_mask", "labels"} for _ in range(2)
    ]
    assert [batch["input_ids"].shape for batch in made] == [(64, 32), (32, 32)]
    assert torch.equal(torch.cat([batch["labels"] for batch in made]), pairs.labels)
    decoded = zoo.preparation("nli_bert").tokenizer.decode(made[0]["input_ids"][3], skip_special_tokens=True)
    assert decoded == f"{pairs.premises[3]} {pairs.hypotheses[3]}"
    again = data.sample_batches("nli_bert", "calibration", samples=96, seed=5)
    assert all(
        torch.equal(batch[key], other[key]) for batch, other in zip(made, again, strict=True) for key in batch
    )
    with pytest.raises(SettingError, match="batch_size"):
        data.sample_batches("nli_bert", "test", batch_size=0)


@needs_transformers
def test_padding_occurs_and_is_masked():
    pad = zoo.preparation("nli_bert").tokenizer.pad_token_id
    for split in data.SPLITS[:2]:
        [batch] = data.sample_batches("nli_bert", split, batch_size=1000)
        mask = batch["attention_mask"]
        assert torch.equal(mask == 0, batch["input_ids"] == pad)
        lengths = mask.sum(1)
        # Pairs differ in length, none is cut, and padding follows the words.
        assert int(lengths.min()) <= 12 and 20 <= int(lengths.max()) < mask.shape[1]
        assert torch.equal(mask.cumprod(1), mask)


def test_training_examples_are_counted_without_being_decoded() -> None:
    assert data.training_count("mnist") == len(data.sample_images("mnist", "train"))
    assert data.training_count("nli") == data.TRAINING_PAIRS
    with pytest.raises(SettingError, match="Unknown data set"):
        data.training_count("imagenet")
