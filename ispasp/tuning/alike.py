"""Whether all processes of a fine-tuning were given the same.

Each works out its own models and data, and where their machines differ, so do the last digits. So integers, shapes and
settings have to be the same to the last bit, but of floating-point numbers weighted sums are compared, which another
seed or another order changes at once and rounding does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ispasp import processes
from ispasp.calibration import Batch
from ispasp.errors import SettingError
from ispasp.records import Progress
from ispasp.tuning import checkpoint
from ispasp.tuning.drawing import generator_of
from ispasp.tuning.training_set import MemorySet, TrainingSet

PIECE = 2**20  # numbers that one sum is of
ROUNDING = 1e-4  # of their norm: by so much may a sum differ
CHUNK = 256  # examples in memory that are looked at together
LOOKED_AT = 64  # of the examples that are not in memory, and would have to be read


def check_alike(
    models: Sequence[nn.Module | None], training: TrainingSet, evaluation: Sequence[Batch], settings: object
) -> Iterator[Progress]:
    """Make sure that all processes were given the same. All must come here; one alone does nothing.

    Of training data that does not lie in memory, some examples stand for all.

    Args:
        settings: all else that must be the same, ready for JSON.

    Raises:
        SettingError: they were not; then every one of them raises it.
        ProcessError: another process has ended.
    """
    if processes.here().size == 1:
        return
    found = _Sketch([settings, len(training), training.labelled, len(evaluation)])
    doing = Progress(0.0, "comparing what the processes have")
    for model in models:
        found.add({} if model is None else model.state_dict())
        yield doing
    for batches in (training.batches(_looked_at(training)), evaluation):
        for batch in batches:
            found.add(checkpoint.named(batch))
            yield doing
    if not found.same():
        raise SettingError(
            f"The {processes.here().size} processes were given different models, settings, training or evaluation "
            "data; seed them alike, so that each reads the same examples in the same order."
        )


def same(text: str) -> bool:
    """Whether all processes come here with the same text. All must come here.

    Raises:
        ProcessError: another process has ended.
    """
    digest = hashlib.sha256(text.encode()).digest()
    digests = _of_all(torch.tensor(list(digest)))
    return bool((digests == digests[0]).all())


class _Sketch:
    """What is compared instead of all values.

    Attributes:
        exact: a digest of what must be the same to the last bit.
        sums: of each piece of floating-point numbers, weighted, and its norm.
    """

    def __init__(self, plain: object) -> None:
        self.exact = hashlib.sha256(json.dumps(plain).encode())
        self.sums: list[tuple[float, float]] = []
        self.weights = torch.randn(PIECE, generator=generator_of("alike"), dtype=torch.float64)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            if not value.is_floating_point():
                checkpoint.update(self.exact, {name: value})
                continue
            self.exact.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            for piece in value.detach().cpu().reshape(-1).split(PIECE):
                # What is not finite is refused later, and says why.
                numbers = piece.double().nan_to_num(0.0, 0.0, 0.0)
                self.sums.append((float(numbers @ self.weights[: len(numbers)]), float(numbers.norm())))

    def same(self) -> bool:
        """Whether it is that of all processes."""
        if not same(self.exact.hexdigest()):
            return False
        sums, norms = _of_all(torch.tensor(self.sums, dtype=torch.float64).reshape(-1, 2)).unbind(2)
        return bool(((sums - sums[0]).abs() <= ROUNDING * norms.amax(0)).all())


def _of_all(value: Tensor) -> Tensor:
    """(processes, ...): ``value`` of each, which all have in one shape."""
    group = processes.here()
    every = value.new_zeros(group.size, *value.shape)
    every[group.rank] = value
    return processes.summed(every)


def _looked_at(training: TrainingSet) -> list[list[int]]:
    """The examples that are compared, in batches: all that lie in memory, else as many from every part of the list."""
    last = len(training) - 1
    if isinstance(training, MemorySet):
        chosen = list(range(last + 1))
    else:
        chosen = sorted({last * at // (LOOKED_AT - 1) for at in range(LOOKED_AT)})
    return [chosen[at : at + CHUNK] for at in range(0, len(chosen), CHUNK)]
