"""Images from class folders, of any layout and format, and the labels that the folders' names give."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ispasp.calibration import as_batch, read
from ispasp.datasets.decoding import Undecodable, decode
from ispasp.datasets.labels import match_classes
from ispasp.datasets.request import Request
from ispasp.datasets.tree import layout
from ispasp.errors import CalibrationError
from tests.small_images import CLASSES, GREY, RGB, digest_of, folder, labels, load, picture, values

# ---------------------------------------------------------------- class folders


def test_a_folder_gives_normalised_labelled_batches_that_do_not_overlap(tmp_path: Path):
    found = load(f"folder:{folder(tmp_path)}")
    batch = as_batch(found.calibration[0])
    assert batch.tensors[0].shape == (8, 3, 8, 8) and batch.tensors[0].dtype == torch.float32
    assert len(found.calibration) == len(found.evaluation) == 1
    # Pixel 7 of the third channel, by hand.
    assert torch.allclose(batch.tensors[0][:, 2], torch.tensor((7 / 255 - 0.3) / 0.3))
    calibration, evaluation = values(found.calibration), values(found.evaluation)
    assert len(set(calibration)) == 8 and len(set(evaluation)) == 4
    assert not set(calibration) & set(evaluation)
    assert labels(found.calibration) == [value // 10 for value in calibration]
    assert labels(found.evaluation) == [value // 10 for value in evaluation]
    assert found.classes == CLASSES and found.notes == ()
    assert found.pictures.dtype == torch.uint8 and found.pictures[:, 0, 0, 0].tolist() == calibration
    read(found.calibration), read(found.evaluation)


def test_the_seed_decides_and_fewer_samples_are_part_of_more(tmp_path: Path):
    root = folder(tmp_path, per_class=30)
    first, again, other = (load(f"folder:{root}", seed=seed) for seed in (3, 3, 4))
    more = load(f"folder:{root}", seed=3, samples=20)
    assert values(first.calibration) == values(again.calibration) and digest_of(first) == digest_of(again)
    assert set(values(first.calibration)) != set(values(other.calibration)) and digest_of(first) != digest_of(
        other
    )
    assert set(values(first.calibration)) < set(values(more.calibration))
    # What is evaluated on does not depend on how much calibrates.
    assert values(first.evaluation) == values(more.evaluation)
    assert digest_of(first) != digest_of(more)


def test_the_digest_is_that_of_the_calibration_inputs_alone(tmp_path: Path):
    found = load(f"folder:{folder(tmp_path)}")
    inputs = found.calibration[0][0]
    sha = hashlib.sha256(b"0 torch.float32 (8, 3, 8, 8)\n" + inputs.numpy().tobytes())
    assert digest_of(found) == sha.hexdigest()
    assert digest_of(load(f"folder:{tmp_path}", classes=(), outputs=5)) == sha.hexdigest()


@pytest.mark.parametrize("test", ["val", "test", "validation", "Val"])
def test_training_images_calibrate_and_the_other_folder_evaluates(tmp_path: Path, test: str):
    folder(tmp_path / "train", start=0)
    folder(tmp_path / test, start=100)
    found = load(f"folder:{tmp_path}", samples=20, evaluation=20)
    assert sorted(values(found.calibration)) == list(range(20))
    assert sorted(values(found.evaluation)) == list(range(100, 120))
    assert labels(found.evaluation) == [(value - 100) // 10 for value in values(found.evaluation)]


def test_a_copy_of_a_calibration_image_is_not_evaluated_on(tmp_path: Path):
    folder(tmp_path / "train", start=0)
    folder(tmp_path / "val", start=18)
    found = load(f"folder:{tmp_path}", samples=20, evaluation=20)
    assert sorted(values(found.evaluation)) == list(range(20, 38))
    assert "2 of the images to evaluate with are copies" in " ".join(found.notes)


def test_images_without_class_folders_have_no_labels(tmp_path: Path):
    for number in range(20):
        picture(tmp_path / f"{number}.png", number)
    found = load(f"folder:{tmp_path}")
    assert as_batch(found.calibration[0]).labels is None and found.classes == ()
    assert not set(values(found.calibration)) & set(values(found.evaluation))
    assert "accuracy is unknown" in " ".join(found.notes)


def test_a_pool_that_is_too_small_is_shared_and_said_so(tmp_path: Path):
    found = load(f"folder:{folder(tmp_path, per_class=5)}", samples=512, evaluation=1000)
    assert len(values(found.calibration)) == 8 and len(values(found.evaluation)) == 2
    assert "Only 8 images for calibration, where 512" in " ".join(found.notes)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused(tmp_path: Path, count: int):
    for number in range(count):
        picture(tmp_path / "cat" / f"{number}.png", number)
    with pytest.raises(CalibrationError, match="no images|at least one for each"):
        load(f"folder:{tmp_path}")


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(CalibrationError, match="does not exist"):
        load(f"folder:{tmp_path / 'nowhere'}")


def test_only_what_is_drawn_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder(tmp_path, per_class=50)
    opened = []
    monkeypatch.setattr(
        "ispasp.datasets.tree.decode", lambda content, how: opened.append(1) or decode(content, how)
    )
    load(f"folder:{tmp_path}", samples=8, evaluation=4)
    assert len(opened) == 12


def test_images_that_do_not_decode_are_counted_named_and_skipped(tmp_path: Path):
    folder(tmp_path, per_class=15)
    (tmp_path / "cat" / "003.png").write_bytes(b"no image at all")
    (tmp_path / "dog" / "004.png").write_bytes((tmp_path / "dog" / "005.png").read_bytes()[:-26])
    found = load(f"folder:{tmp_path}", samples=24, evaluation=6)
    assert len(values(found.calibration)) + len(values(found.evaluation)) == 28
    (note,) = [note for note in found.notes if "skipped" in note]
    assert note.startswith("2 of the images") and "'cat/003.png' (no image)" in note
    assert "'dog/004.png' (damaged)" in note


def test_a_bad_image_is_replaced_where_there_are_others(tmp_path: Path):
    folder(tmp_path, per_class=40)
    names = sorted(tmp_path.rglob("*.png"))
    for path in names[::40]:
        path.write_bytes(b"")
    found = load(f"folder:{tmp_path}", samples=40, evaluation=20)
    assert len(values(found.calibration)) == 40 and len(values(found.evaluation)) == 20


def test_more_than_a_tenth_of_bad_images_is_refused_with_three_names(tmp_path: Path):
    folder(tmp_path, per_class=15)
    for path in (tmp_path / "cat").iterdir():
        path.write_bytes(b"GIF89a")
    with pytest.raises(CalibrationError, match=r"10%.*'cat/.*'cat/.*'cat/.* 1 more; repair"):
        load(f"folder:{tmp_path}", samples=24, evaluation=6)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_and_a_long_strip_count_as_undecodable(tmp_path: Path):
    Image.new("L", (20_000, 10_000)).save(tmp_path / "bomb.png")
    Image.new("L", (1, 2_000)).save(tmp_path / "strip.png")
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    for name, reason in (("bomb", "pixels"), ("strip", "strip"), ("large", "10000 x 9000")):
        with pytest.raises(Undecodable, match=reason):
            decode((tmp_path / f"{name}.png").read_bytes(), RGB)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("preparation", [RGB, GREY])
def test_every_mode_of_image_becomes_what_the_model_reads(tmp_path: Path, mode: str, preparation):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (12, 9)).save(path)
    assert decode(path.read_bytes(), preparation).shape == (preparation.channels, 8, 8)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".ppm", ".tif"])
def test_formats(tmp_path: Path, suffix: str):
    for number in range(4):
        Image.new("RGB", (8, 8), (number * 60, 0, 0)).save(tmp_path / f"{number}{suffix}")
    assert len(values(load(f"folder:{tmp_path}", samples=2, evaluation=2).calibration)) == 2


@pytest.mark.parametrize("preparation", [RGB, GREY])
def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path, preparation):
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels = decode((tmp_path / "x.png").read_bytes(), preparation)
    assert np.array_equal(pixels[0].numpy(), ramp // 256)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(Undecodable, match="32 bits"):
        decode((tmp_path / "x.tif").read_bytes(), preparation)


def test_a_format_that_hides_behind_another_suffix_is_not_opened(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.eps")
    with pytest.raises(Undecodable, match="no image"):
        decode((tmp_path / "x.eps").read_bytes(), RGB)


def test_links_are_not_followed(tmp_path: Path):
    folder(tmp_path / "outside", start=100)
    root = folder(tmp_path / "inside")
    (root / "more").symlink_to(tmp_path / "outside")
    (root / "cat" / "link.png").symlink_to(tmp_path / "outside" / "cat" / "000.png")
    (root / "cat" / "up").symlink_to(root)
    found = load(f"folder:{root}", samples=100, evaluation=10)
    assert max(values(found.calibration) + values(found.evaluation)) < 20
    assert "3 symbolic links" in " ".join(found.notes)


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path):
    folder(tmp_path)
    (tmp_path / "cat" / "._000.png").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"x")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    found = load(f"folder:{tmp_path}", samples=100)
    assert len(values(found.calibration)) == 16 and "skipped" not in " ".join(found.notes)


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path):
    names = [f"{c}/{n}.png" for c in CLASSES for n in range(5)]
    assert layout(names, "x") == layout(names[::-1], "x")
    assert [p.name for p in layout(names, "x").calibration] == sorted(names)


def test_layouts():
    wrapped = layout(["set/cat/1.png", "set/dog/2.png"], "x")
    assert wrapped.classes == CLASSES and wrapped.calibration[0].name == "set/cat/1.png"
    deep = layout(["cat/a/1.png", "dog/b/c/2.png"], "x")
    assert deep.classes == CLASSES
    split = layout(["d/train/cat/1.png", "d/test/dog/2.png", "d/extra/cow/3.png"], "x")
    assert split.classes == CLASSES and "extra is left out" in split.notes[0]
    assert [p.name for p in split.evaluation] == ["d/test/dog/2.png"]
    # Classes that happen to be called train, plane and car are classes.
    assert layout(["train/1.png", "plane/2.png", "car/3.png"], "x").classes == ("car", "plane", "train")
    plain = layout(["train/1.png", "val/2.png"], "x")
    assert plain.classes == () and len(plain.calibration) == len(plain.evaluation) == 1
    only = layout(["train/cat/1.png", "train/dog/2.png"], "x")
    assert only.evaluation is None and only.classes == CLASSES
    loose = layout(["cat/1.png", "dog/2.png", "3.png"], "x")
    assert len(loose.calibration) == 2 and "1 images lie beside" in loose.notes[0]


# ---------------------------------------------------------------- labels


def asked(classes: tuple[str, ...], outputs: int | None) -> Request:
    return Request(RGB, classes, outputs, samples=1, evaluation=1, seed=0)


def test_folders_are_matched_by_name_however_it_is_written():
    model = ("Dog", "great white shark", "cat, house cat")
    match = match_classes(("CAT", "dog", "great_white-Shark"), asked(model, 3))
    assert match.labels == [2, 0, 1] and match.classes == model and match.notes == ()
    assert match_classes(("dog",), asked(model, 3)).labels == [0]


def test_as_many_folders_as_outputs_are_matched_in_sorted_order_and_said_so():
    wnids = tuple(f"n{number:08}" for number in range(1000))
    match = match_classes(wnids, asked(tuple(f"word {n}" for n in range(1000)), 1000))
    assert match.labels == list(range(1000)) and "sorted order" in match.notes[0]
    assert match.classes[3] == "word 3"
    assert match_classes(("a", "b"), asked((), 2)).classes == ("a", "b")


def test_folders_of_numbers_are_positions_not_words():
    found = tuple(sorted(str(number) for number in range(12)))
    assert found[2] == "10"
    assert match_classes(found, asked((), 12)).labels == [int(name) for name in found]
    assert match_classes(("1", "10", "2", "3", "4", "5", "6", "7", "8", "9"), asked((), 10)).labels == [
        0, 9, 1, 2, 3, 4, 5, 6, 7, 8,
    ]  # fmt: skip
    assert match_classes(("03", "7"), asked((), 10)).labels == [3, 7]
    assert match_classes(("1",), asked(("LABEL_0", "LABEL_1"), 2)).labels == [1]
    assert match_classes(("1",), asked(("cat", "dog"), 2)).labels is None


@pytest.mark.parametrize(
    "found, model, outputs, why",
    [
        (("cow", "dog"), ("cat", "dog", "fox"), 3, "has no class 'cow'"),
        (("cow", "dog"), ("cat", "dog"), 2, "has no class 'cow'"),
        (("a", "b", "c", "d", "e"), (), 9, "no class 'a', 'b', 'c' and 2 more"),
        (("a", "b"), (), None, "an unknown number"),
        (("crane", "dog"), ("crane", "crane", "dog"), 3, "has no class 'crane'"),
        (("Dog", "dog"), ("dog", "cat"), 2, "two are the same class"),
        (("11", "3"), (), 10, "'11' and '3'"),
    ],
)
def test_labels_that_cannot_be_told_are_unknown_with_the_reason(found, model, outputs, why):
    match = match_classes(found, asked(model, outputs))
    assert match.labels is None and match.classes == ()
    assert why in match.notes[0] and "accuracy is unknown" in match.notes[0]
