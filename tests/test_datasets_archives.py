"""Zip archives of images: the same data as from a folder, and every kind of hostile one."""

from __future__ import annotations

import io
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from ispasp import datasets
from ispasp.datasets import archives
from ispasp.datasets.decoding import Undecodable
from ispasp.errors import CalibrationError
from ispasp.preparation import ImagePreparation
from tests.small_images import digest_of

RGB = ImagePreparation((8, 8), None, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 7)).save(buffer, format="PNG")
    return buffer.getvalue()


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def animals(prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{n}.png": png(20 * i + n) for i, name in enumerate(("cat", "dog")) for n in range(10)
    }


def load(content: bytes, **changes):
    settings = {"outputs": 2, "samples": 8, "seed": 0, "evaluation": 4} | changes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.zip"
        path.write_bytes(content)
        return datasets.load(datasets.parse(f"zip:{path}"), RGB, ("cat", "dog"), **settings)


def member(name: str, **attributes: int) -> bytes:
    """An archive with one file of that very name, and other fields of its entry set as given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("x")
        info.filename = name
        for field, value in attributes.items():
            setattr(info, field, value)
        file.writestr(info, png(1))
    return buffer.getvalue()


@pytest.mark.parametrize("prefix", ["", "pets/", "a/b/"])
def test_an_archive_gives_what_the_folder_gives(tmp_path: Path, prefix: str):
    content = packed(
        animals(prefix) | {"__MACOSX/cat/._0.png": b"x", "cat/.DS_Store": b"x", "READ ME.txt": b"x"}
    )
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        file.extractall(tmp_path / "folder")
    (tmp_path / "mine.zip").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    from_folder, from_file = (
        datasets.load(
            datasets.parse(f"{kind}:{tmp_path / name}"), RGB, ("cat", "dog"),
            outputs=2, samples=8, seed=0, evaluation=4,
        )
        for kind, name in (("folder", "folder"), ("zip", "mine.zip"))
    )  # fmt: skip
    assert digest_of(from_folder) == digest_of(from_file)
    assert torch.equal(from_file.evaluation[0][1], from_folder.evaluation[0][1])
    assert from_file.notes == ()
    # Nothing was written anywhere near.
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["../cat/1.png", "cat/../../1.png", "/etc/1.png", "C:/cat/1.png", "c:1.png", "cat\\1.png", "../x.txt"],
)
def test_a_path_that_leads_out_is_refused(name: str):
    with pytest.raises(CalibrationError, match=r"mine.zip holds .*leads out of it"):
        load(member(name))


def test_a_name_with_a_null_byte_is_refused():
    with pytest.raises(CalibrationError, match="leads out of it"):
        load(member("cat/1.pngX..").replace(b"1.pngX..", b"1.png\0.."))


def test_a_symbolic_link_is_refused():
    with pytest.raises(CalibrationError, match="symbolic link"):
        load(member("cat/1.png", create_system=3, external_attr=(stat.S_IFLNK | 0o777) << 16))


@pytest.mark.parametrize("name", ["cat/more.zip", "x.tar.gz", "a.7z"])
def test_an_archive_in_the_archive_is_refused(name: str):
    with pytest.raises(CalibrationError, match="an archive of its own"):
        load(packed(animals() | {name: b"PK"}))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_a_bound_are_refused(method: int):
    with pytest.raises(CalibrationError, match=f"method {method}.*deflate"):
        load(packed(animals(), method))


def test_an_encrypted_member_is_refused():
    content = bytearray(packed({"cat/1.png": png(1)}))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(CalibrationError, match="password"):
        load(bytes(content))


def test_a_bomb_is_refused_before_it_is_unpacked():
    zeros = bytes(30 * 2**20)
    with pytest.raises(CalibrationError, match="times its size, and the limit is 200"):
        load(packed({f"cat/{n}.png": zeros for n in range(3)}))
    # One bomb among images that make the whole look harmless.
    stored = {
        f"dog/{n}.png": torch.randint(256, (400_000,), dtype=torch.uint8).numpy().tobytes() for n in range(3)
    }
    with pytest.raises(CalibrationError, match="'cat/0.png', which unpacks to more than 200"):
        load(packed({"cat/0.png": zeros} | stored))


def test_overlapping_members_are_refused_by_their_sum(monkeypatch):
    """Many entries of the list that share one packed member: a small file, a large sum."""
    buffer = io.BytesIO()
    noise = torch.randint(256, (20_000,), dtype=torch.uint8).numpy().tobytes()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("cat/0.png", noise * 5)
        (first,) = file.infolist()
        for number in range(1, 3000):
            copy = zipfile.ZipInfo(f"cat/{number}.png")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
                setattr(copy, field, getattr(first, field))
            file.filelist.append(copy)
            file.NameToInfo[copy.filename] = copy
        file._didModify = True
    assert len(buffer.getvalue()) < 500_000
    with pytest.raises(CalibrationError, match="times its size"):
        load(buffer.getvalue())


def declared(content: bytes, size: int) -> bytes:
    """The archive with another unpacked size in both headers of its only member."""
    changed = bytearray(content)
    struct.pack_into("<L", changed, content.rindex(b"PK\x01\x02") + 24, size)
    struct.pack_into("<L", changed, content.index(b"PK\x03\x04") + 22, size)
    return bytes(changed)


def test_a_header_that_lies_unpacks_no_more_than_it_says(monkeypatch):
    bomb = packed({"cat/0.png": bytes(8 * 2**20)})
    files = archives.ZipFiles(io.BytesIO(declared(bomb, 1000)), "x.zip")
    with pytest.raises(Undecodable, match="damaged in the archive"):
        files.read("cat/0.png")
    # And whatever it says, no more than the limit of an image and one byte is taken out of it.
    monkeypatch.setattr(archives, "RATIO_FROM_BYTES", 2**30)
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 2**20)
    with pytest.raises(CalibrationError, match="limit for an image is 1 MiB"):
        archives.ZipFiles(io.BytesIO(bomb), "x.zip")
    # Through the back door of a size that zipfile does not check before it reads.
    files = archives.ZipFiles(io.BytesIO(declared(bomb, 2**20)), "x.zip")
    files._archive.getinfo("cat/0.png").file_size = 2**33
    assert len(files.read("cat/0.png")) == 2**20 + 1


def test_a_file_of_3_gb_is_refused_unread(tmp_path: Path):
    path = tmp_path / "big.zip"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    with pytest.raises(CalibrationError, match="is 3.0 GiB, and the limit is 2 GiB"):
        datasets.load(datasets.parse(f"zip:{path}"), RGB, (), outputs=2, samples=8, seed=0)


def test_limits_on_number_list_and_total(monkeypatch):
    content = packed(animals())
    monkeypatch.setattr(archives, "MAX_MEMBERS", 19)
    with pytest.raises(CalibrationError, match="holds 20 files, and the limit is 19"):
        load(content)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(CalibrationError, match="unpacks to .* GiB"):
        load(content)
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(CalibrationError, match="MiB of file names"):
        load(content)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file" * 100, packed(animals())[:-30]])
def test_what_is_no_archive_is_one_sentence(content: bytes):
    with pytest.raises(CalibrationError, match="mine.zip cannot be read as a zip file"):
        load(content)


def test_any_damage_to_an_archive_is_one_sentence_or_none():
    """Each byte of the list of members overwritten in turn."""
    content = packed({"cat/0.png": png(1), "cat/1.png": png(2)})
    start = content.index(b"PK\x01\x02")
    refused = 0
    for at in range(start, len(content)):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        try:
            load(bytes(changed), samples=1, evaluation=1)
        except CalibrationError:
            refused += 1
    assert refused > 50


def test_a_stored_member_may_be_larger_than_the_list_of_members(monkeypatch):
    content = packed(animals() | {"cat/0.png": png(0) + bytes(5000)}, zipfile.ZIP_STORED)
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 4000)
    assert load(content, samples=16).notes == ()


def test_a_damaged_member_counts_as_undecodable():
    content = bytearray(packed(animals(), zipfile.ZIP_STORED))
    content[content.index(b"IDAT")] ^= 0xFF
    found = load(bytes(content), samples=16, evaluation=4)
    assert "'cat/0.png' (damaged in the archive)" in " ".join(found.notes)


def test_an_archive_without_images_and_one_that_is_not_there():
    with pytest.raises(CalibrationError, match="mine.zip holds no images"):
        load(packed({"a.txt": b"x"}))
    with pytest.raises(CalibrationError, match="nowhere.zip cannot be read .*check the path"):
        datasets.load(datasets.parse("zip:nowhere.zip"), RGB, (), outputs=2, samples=8, seed=0)


def test_two_members_of_one_name_are_refused():
    content = packed({"cat/1.png": png(1), "cat/2.png": png(2)}).replace(b"cat/2.png", b"cat/1.png")
    with pytest.raises(CalibrationError, match="several files of one name"):
        load(content)
