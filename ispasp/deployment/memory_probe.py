"""How much memory a session takes: run as a process of its own, by path, so that nothing but onnxruntime is loaded.

    python -P memory_probe.py MODEL.onnx FEED.npz PROVIDER THREADS

FEED.npz holds an array for each input, by its name with one letter before it.

Prints the bytes by which the process's resident memory grows at most while the model is opened and called once, or
``null`` where the system does not tell.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def resident() -> tuple[int, int] | None:
    """Bytes of this process in memory, now and at most; where only the most is known, that twice."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        said = dict(line.split(":", 1) for line in lines)
        if "VmRSS" in said and "VmHWM" in said:
            now, most = (int(said[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
            return now, most
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Bytes on a Mac. Linux gives kilobytes, but those count the process that started this one.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if sys.platform == "darwin" else 0
    return (most, most) if most else None


def main(model: str, feed: str, provider: str, threads: str) -> None:
    """Open, call once, print."""
    with np.load(feed) as arrays:
        inputs = {name[1:]: array for name, array in arrays.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # what importing took at most is forgotten
    before = resident()
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    session.run(None, inputs)
    after = resident()
    print(json.dumps(after[1] - before[0] if before and after else None))


if __name__ == "__main__":
    main(*sys.argv[1:])
