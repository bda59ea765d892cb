"""Where data come from, as one line of text."""

from __future__ import annotations

from dataclasses import dataclass

from ispasp.errors import SettingError, listing

# kind -> what follows the colon
KINDS = {
    "sample": "NAME",
    "folder": "PATH",
    "zip": "PATH",
    "torchvision": "NAME@FOLDER",
    "pairs": "FILE",
    "python": "path/to/file.py:function",
    "noise": "",
}


@dataclass(frozen=True)
class DataSource:
    """A source of calibration and evaluation data; ``str()`` of it is what ``parse`` reads.

    Attributes:
        kind: one of ``KINDS``.
        name: what follows the colon; empty for noise.

    Raises:
        SettingError: the kind is unknown, or the name is missing or too much.
    """

    kind: str
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SettingError(f"Unknown source of data {self.kind!r}: give {_accepted()}.")
        if bool(self.name.strip()) != bool(KINDS[self.kind]):
            raise SettingError(f"Got {str(self)!r} as source of data: give {_form(self.kind)}.")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


def parse(text: str) -> DataSource:
    """Read ``"folder:PATH"`` and its like.

    Raises:
        SettingError: it is none of the accepted forms.
    """
    kind, _, name = text.strip().partition(":")
    if kind not in KINDS:
        raise SettingError(f"Unknown source of data {text!r}: give {_accepted()}.")
    return DataSource(kind, name.strip())


def _form(kind: str) -> str:
    return f"{kind}:{KINDS[kind]}" if KINDS[kind] else kind


def _accepted() -> str:
    return "one of " + listing(_form(kind) for kind in KINDS)
