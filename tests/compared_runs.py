"""Three small runs on disk that can be compared: made once, copied to where a test wants them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ispasp import runs
from ispasp.run_settings import RunSettings

MADE = {
    "wide": RunSettings("mnist_mlp", 0.5, samples=64, evaluation=200),
    "narrow": RunSettings("mnist_mlp", 0.05, samples=64, evaluation=200),
    "norm": RunSettings("mnist_mlp", 0.05, selector="l2", reconstruct="none", samples=64, evaluation=200),
}


def make(folder: Path) -> Path:
    """The runs ``wide``, ``narrow`` and ``norm`` in ``folder``."""
    for name, settings in MADE.items():
        for _ in runs.execute(settings, folder, folder / name):
            pass
    return folder


def copy(source: Path, target: Path, name: str, **changed: Any) -> None:
    """One more run, with other values in its report."""
    shutil.copytree(source, target / name)
    file = target / name / "run.json"
    plain = json.loads(file.read_text())
    plain["report"] |= changed
    file.write_text(json.dumps(plain))
