"""What a session costs before it is warm: the time until its first answer, and memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import numpy as np

from ispasp import plain_files
from ispasp.latency import Opener, nanoseconds, order
from ispasp.parity import open_session, session_batch
from ispasp.records import Progress

TURNS = 5
_PROBE = Path(__file__).with_name("memory_probe.py")
_MOST_SECONDS = 300  # for one probe


def first_answers(openers: tuple[Opener, Opener]) -> Generator[Progress, None, tuple[float, float]]:
    """Milliseconds to open a model and make its first call, dense and pruned: medians of a few, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS):
        for side in order(turn):
            yield Progress(turn / TURNS, f"measuring the cold start, {turn + 1} of {TURNS}")
            opened = openers[side]
            times[side].append(nanoseconds(lambda: opened().run()) / 1e6)  # noqa: B023 - called at once
    return statistics.median(times[0]), statistics.median(times[1])


def memory(path: Path, inputs: object, threads: int, provider: str) -> Generator[Progress, None, int | None]:
    """Bytes by which a fresh process grows at most while it opens the file and calls it once.

    Args:
        path: an ONNX file that is known to run.
        inputs: one batch.
        threads: intra-op threads.
        provider: onnxruntime's name of it. What a GPU holds in its own memory is not counted.

    Returns:
        None where the system does not tell, or the process fails.
    """
    _, feed = session_batch(open_session(path, threads=threads, provider=provider), inputs)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "feed.npz"
        # A letter before every name: savez has parameters of its own.
        np.savez(file, **{f"_{name}": array for name, array in feed.items()})  # type: ignore[arg-type]
        # -P: the folder of the script is no place to import from.
        command = [sys.executable, "-P", str(_PROBE), str(path), str(file), provider, str(threads)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with process:
            try:
                for _ in range(_MOST_SECONDS * 10):
                    try:
                        printed, _ = process.communicate(timeout=0.1)
                    except subprocess.TimeoutExpired:
                        yield Progress(0.0, "measuring the memory of a session")
                    else:
                        break
                else:
                    return None
            finally:
                process.kill()
    return _bytes(printed)


def _bytes(printed: str) -> int | None:
    try:
        value = plain_files.parse(printed)
    except ValueError:
        return None
    return value if isinstance(value, int) and value >= 0 else None
