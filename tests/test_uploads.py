"""Uploaded files: where they land, and what is refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from ispasp import uploads
from ispasp.errors import RunError, SettingError


def kept(tmp_path: Path, content: bytes, name: str, **options: int) -> Path:
    return uploads.keep(io.BytesIO(content), name, uploads.CHECKPOINTS, tmp_path / "runs", **options)


def test_a_file_is_kept_once_by_its_content(tmp_path: Path) -> None:
    content = b"weights" * 500_000  # more than one piece
    first = kept(tmp_path, content, "Mine.PTH")
    folder = tmp_path / "runs" / ".uploads"
    assert first == folder / f"{hashlib.sha256(content).hexdigest()}.pth"
    assert first.is_absolute() and first.read_bytes() == content
    assert kept(tmp_path, content, "another name.pth") == first
    assert kept(tmp_path, b"other", "Mine.pth") != first
    assert {path.suffix for path in folder.iterdir()} == {".pth"} and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", ["../../evil.pth", "/etc/passwd.pth", "a\0b.pth", "..\\x.pth", ".pth"])
def test_the_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    path = kept(tmp_path, b"x", name)
    assert path.parent == tmp_path / "runs" / ".uploads" and path.stem == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("name", ["model.pt2", "model.pkl", "model.pth.exe", "pth", "", "images.zip"])
def test_other_kinds_of_file_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    accepted = "upload a .safetensors or .pt or .pth or .bin file"
    with pytest.raises(SettingError, match=accepted):
        kept(tmp_path, b"x", name)
    assert not (tmp_path / "runs").exists()


def test_too_large_and_empty_files_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="larger than 3 MB: put it on this machine"):
        kept(tmp_path, bytes(3 * 2**20 + 1), "model.pth", max_bytes=3 * 2**20)
    with pytest.raises(SettingError, match="empty"):
        kept(tmp_path, b"", "model.pth")
    assert list((tmp_path / "runs" / ".uploads").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="cannot be written to .*uploads"):
        kept(tmp_path, b"x", "model.pth")
