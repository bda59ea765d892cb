"""Runs that one process does alone or several share, and how to launch several.

As a program: ``python -m tests.shared_work OUT [NAME ...]`` joins the others, does the runs of these names (all by
default) and writes what came out to the file OUT.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ispasp import calibration, gram, processes, reconstruct
from ispasp.records import Finished
from ispasp.result import PruneResult
from ispasp.settings import PruneSettings
from ispasp.subject import Subject
from ispasp.variant import Variant
from tests.conftest import settle_batch_norm
from tests.test_padding import Gated, Tokens, padded

ROOT = Path(__file__).resolve().parent.parent


class Pictures(nn.Module):
    """A residual block with batch norms, one more convolution, and a classifier: (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.a_norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.b_norm = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.head = nn.Conv2d(8, 12, 3, stride=2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = F.relu(x + self.b_norm(self.b(self.a_norm(self.a(x)).relu())))
        return self.head(self.c(x).relu().mean((2, 3)))


def pictures() -> tuple[nn.Module, list[Any]]:
    """13 labelled examples in batches of 6, 4 and 3: shares are uneven, and cut through batches."""
    inputs = torch.randn(13, 3, 8, 8).split([6, 4, 3])
    model = settle_batch_norm(Pictures(), [batch * 1.5 + 0.1 for batch in inputs])
    return model, [(batch, torch.randint(0, 5, (len(batch),))) for batch in inputs]


DATA = {
    "pictures": pictures,
    "tokens": lambda: (Tokens().eval(), padded(100.0)),
    "gated": lambda: (Gated().eval(), padded(100.0)),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ispasp": ("pictures", {"candidate_factor": 1.0}),
    "contribution": ("pictures", {"selector": "ispasp-contribution", "reconstruct": "symmetric"}),
    "obs": ("pictures", {"selector": "obs", "reconstruct": "asymmetric"}),
    "cosamp": ("pictures", {"selector": "cosamp", "reconstruct": "asymmetric", "recalibrate": True}),
    "gfs": ("pictures", {"selector": "gfs", "recalibrate": True}),
    "taylor": ("pictures", {"selector": "taylor", "reconstruct": "symmetric"}),
    "activation": ("pictures", {"selector": "activation", "recalibrate": True}),
    "macs": ("pictures", {"allocation": "macs", "reconstruct": "symmetric"}),
    "sampled": ("pictures", {"reconstruct": "symmetric"}),
    "padding": ("tokens", {"reconstruct": "asymmetric"}),
    "padding, obs": ("tokens", {"selector": "obs", "reconstruct": "symmetric"}),
    "padding, macs": ("tokens", {"selector": "activation", "allocation": "macs"}),
    "gated": ("gated", {"selector": "ispasp-contribution", "reconstruct": "symmetric"}),
}


def outcomes(names: Sequence[str] = ()) -> dict[str, Any]:
    """What the runs of these names come to, as plain values."""

    @functools.cache
    def subject(name: str) -> Subject:
        torch.manual_seed(0)
        model, batches = DATA[name]()
        return Subject(model, calibration.read(batches), [], torch.device("cpu"))

    found = {}
    for name in names or CASES:
        data, options = CASES[name]
        small = {"MOST_GRAM_BYTES": 10_000} if name == "sampled" else {}
        with (
            mock.patch.multiple(gram, **{"MOST_GRAM_BYTES": gram.MOST_GRAM_BYTES, **small}),
            mock.patch.object(reconstruct, "SAMPLED_POSITIONS", 300),
        ):
            *_, last = Variant(subject(data), 0.5, PruneSettings(multiple=1, **options)).events()
        assert isinstance(last, Finished)
        found[name] = plain(last.result)
    return found


def plain(result: PruneResult) -> dict[str, Any]:
    """Sets apart from numbers."""
    return {
        "sets": [(i.block, i.t, i.converged, i.candidates, i.selected) for i in result.trace],
        "counts": [block["kept"] for block in result.report["blocks"]],
        "data": [result.settings["calibration_examples"], result.settings["calibration_digest"]],
        "notes": [block["notes"] for block in result.report["blocks"]],
        "scores": [
            [
                *i.importance.tolist(),
                *i.hidden_sum.tolist(),
                *i.score.tolist(),
                i.residual,
                i.relative_residual,
            ]
            for i in result.trace
        ],
        "errors": [
            [b.relative_residual, b.drift, b.error_before or 0.0, b.error_after or 0.0]
            for b in result.blocks_pruned
        ],
        "weights": [value.double().flatten().tolist() for value in result.model.state_dict().values()],
    }


def launch(commands: Sequence[Sequence[str]], **more: str) -> list[subprocess.Popen[str]]:
    """Start one process for each command, as those of one launch; ``more`` goes into their environment."""
    common = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WORLD_SIZE": str(len(commands)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank, command in enumerate(commands)
    ]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def ended(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a process that must end within so many seconds."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err


if __name__ == "__main__":
    with processes.joined(timeout_seconds=60) as group, processes.shared():
        written = outcomes(sys.argv[2:])
    if group.leads:
        Path(sys.argv[1]).write_text(json.dumps(written))
