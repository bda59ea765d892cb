"""The widgets for where something lies: a path, an upload, and all that makes up a source of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from ispasp import datasets, store, uploads
from ispasp.datasets import DataSource
from ispasp.errors import ISpaSPError, SettingError
from ui.words import HELP, escaped

SETS = ("CIFAR10", "MNIST", "ImageNet")
_SUFFIXES: dict[str, Sequence[str]] = {
    "weights": uploads.CHECKPOINTS, "zip": uploads.ARCHIVES, "pairs": uploads.PAIRS,
}  # fmt: skip


def data_source(kind: str, locked: bool, prefix: str = "") -> DataSource:
    """Ask for the rest of a source of data.

    Args:
        kind: of ``DataSource``, or a whole source such as ``"sample:mnist"``.
        prefix: of the widgets' keys, on a page that is not Explore.

    Raises:
        SettingError: something is missing, in a sentence.
    """
    if kind == "noise":
        st.caption("⚠️ Noise: sizes and speed are right, accuracy stays unknown.")
        return DataSource("noise")
    if kind.startswith("sample:"):
        st.caption("They come with the app, and are brought to what the model reads.")
        return datasets.parse(kind)
    if kind == "python":
        given = st.text_input(
            "File and function", key=f"{prefix}python_data", placeholder="path/to/file.py:function",
            help=HELP["python_data"], disabled=locked, persist_state="session",
        )  # fmt: skip
        if not (given or "").strip():
            raise SettingError("Choose the data: give file and function, such as path/to/file.py:function.")
        return DataSource("python", given.strip())
    if kind == "torchvision":
        name = st.selectbox(
            "Set",
            SETS,
            key=f"{prefix}data_set",
            help=HELP["data_set"],
            disabled=locked,
            persist_state="session",
        )
        folder = path("", "Folder it lies in", "path/to/folder", locked, f"{prefix}data_path")
        if not folder:
            raise SettingError(f"Choose the data: give the folder that {name} lies in.")
        return DataSource("torchvision", f"{name}@{folder}")
    title, hint, what, test = {
        "folder": ("Folder with class folders", "path/to/folder", "a folder", Path.is_dir),
        "zip": ("Zip of class folders", "path/to/images.zip", "a zip file", Path.is_file),
        "pairs": ("TSV or JSONL file", "path/to/pairs.tsv", "a file of sentence pairs", Path.is_file),
    }[kind]
    given = path(kind if kind != "folder" else "", title, hint, locked, f"{prefix}data_path")
    more = "" if kind == "folder" else ", or upload one"
    if not given:
        raise SettingError(f"Choose the data: give the path of {what}{more}.")
    if not exists(given, test):
        raise SettingError(f"There is no {what.partition(' ')[2]} {given}: check the path{more}.")
    return DataSource(kind, given)


def put(source: DataSource, prefix: str = "") -> None:
    """Let the widgets of ``data_source``, and the list of kinds at ``data``, say this; call before they are drawn."""
    state = st.session_state
    state[f"{prefix}data"] = str(source) if source.kind == "sample" else source.kind
    if source.kind == "torchvision":
        name, _, folder = source.name.partition("@")
        state[f"{prefix}data_set"] = name if name in SETS else SETS[0]
        state[f"{prefix}data_path"] = folder
    elif source.kind == "python":
        state[f"{prefix}python_data"] = source.name
    elif source.kind != "sample":
        state[f"{prefix}data_path"] = source.name


def path(upload: str, title: str, placeholder: str, locked: bool, key: str) -> str:
    """Ask for a path on this machine, and where ``upload`` says which file it is, offer to upload it.

    Args:
        upload: ``"weights"``, ``"zip"`` or ``"pairs"``; empty for a folder.
    """
    field, button = (
        st.columns([2.2, 1], vertical_alignment="bottom", gap="small") if upload else (st.container(), None)
    )
    if button is not None:
        with button, st.popover("Upload", width="stretch", disabled=locked):
            count = st.session_state.get(f"uploads_of_{key}", 0)
            st.file_uploader(
                f"{title}, to be kept with the runs", type=list(_SUFFIXES[upload]), help=HELP["upload"],
                key=f"upload_{key}_{count}", on_change=_keep_upload, args=(upload, key, count),
            )  # fmt: skip
    with field:
        given = st.text_input(
            title,
            key=key,
            placeholder=placeholder,
            help=HELP["path"],
            disabled=locked,
            persist_state="session",
        )
    if problem := st.session_state.pop(f"refused_{key}", ""):
        st.error(escaped(problem))
    return (given or "").strip()


def _keep_upload(upload: str, key: str, count: int) -> None:
    """Put an uploaded file where runs are kept, and its path into the field; the uploader begins anew."""
    file = st.session_state.get(f"upload_{key}_{count}")
    if file is None:
        return
    try:
        kept = uploads.keep(file, file.name, _SUFFIXES[upload], store.default_folder())
        st.session_state[key] = str(kept)
    except ISpaSPError as problem:
        st.session_state[f"refused_{key}"] = str(problem)
    st.session_state[f"uploads_of_{key}"] = count + 1


def exists(path: str, test: Callable[[Path], bool]) -> bool:
    """Whether there is such a file, or such a folder, as ``test`` says."""
    try:
        return test(Path(path).expanduser())
    except (OSError, ValueError):  # a name that no file can have
        return False
