"""Training images that do not fit into memory: read and decoded ahead of the loop, by threads.

Threads and not processes, since decoding and resizing release the interpreter's lock, and worker processes can
neither be forked safely from a job of the app, which is a thread, nor started afresh there without running the
app's page again.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from hashlib import sha256

import torch
from torch import Tensor

from ispasp import calibration
from ispasp.calibration import Batch
from ispasp.datasets.decoding import Undecodable, decode
from ispasp.datasets.drawing import Skipped
from ispasp.datasets.request import image_batch
from ispasp.datasets.tree import Files, Picture
from ispasp.errors import CalibrationError
from ispasp.preparation import ImagePreparation

AHEAD = 3  # batches under work while the loop trains on one


class FileSet:
    """Images of files as a ``TrainingSet``; their uint8 pixels go to the device, and are normalised there.

    An image that cannot be used, or is a copy of one of ``excluded``, is replaced by the next one of the list that the
    same pass gives out, so that what is held out of it stays out.

    Args:
        opened: opens the place of the files for one pass; closed at its end.
        pictures: the examples, at least one.
        labels: one per example, as the model's outputs; None where unknown.
        preparation: how a file becomes an input.
        excluded: SHA-256 digests of files that must not be trained on.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Files]],
        pictures: Sequence[Picture],
        labels: Sequence[int] | None,
        preparation: ImagePreparation,
        excluded: frozenset[bytes] = frozenset(),
    ) -> None:
        self._opened = opened
        self._pictures = pictures
        self._labels = labels
        self._preparation = preparation
        self._excluded = excluded
        self._device = torch.device("cpu")
        with opened() as files:
            self._place = files.place
        self._unusable: dict[int, str] = {}
        self._copies: set[int] = set()

    @property
    def labelled(self) -> bool:
        return self._labels is not None

    @property
    def images(self) -> bool:
        return True

    @property
    def notes(self) -> list[str]:
        count = len(self._copies)
        copies = f"{count:,} of the images to train on are copies of images to evaluate with: left out."
        return [*self._skipped().notes(), *([copies] if count else [])]

    def __len__(self) -> int:
        return len(self._pictures)

    def to(self, device: torch.device) -> FileSet:
        """The same files, whose images are given out on ``device``."""
        moved = FileSet(self._opened, self._pictures, self._labels, self._preparation, self._excluded)
        moved._device, moved._unusable, moved._copies = device, self._unusable, self._copies
        return moved

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """One batch per list of example numbers.

        Raises:
            CalibrationError: more than a tenth of all images cannot be used.
        """
        waiting: deque[list[Future[tuple[int, Tensor]]]] = deque()
        given = frozenset(itertools.chain.from_iterable(order))
        with self._opened() as files, ThreadPoolExecutor(_threads(), "decoding") as pool:
            try:
                for numbers in order:
                    waiting.append([pool.submit(self._example, files, number, given) for number in numbers])
                    if len(waiting) > AHEAD:
                        yield self._batch(waiting.popleft())
                while waiting:
                    yield self._batch(waiting.popleft())
            finally:
                pool.shutdown(
                    wait=False, cancel_futures=True
                )  # the files are closed when all threads have ended

    def _example(self, files: Files, number: int, given: frozenset[int]) -> tuple[int, Tensor]:
        """The number and the pixels (C, height, width) of the first usable image from ``number`` on.

        Any image where none of the numbers ``given`` is usable, as may be when a pass is of a few.
        """
        turn = [range(number, len(self)), range(number)]
        preferred = (at for at in itertools.chain(*turn) if at in given)
        for at in itertools.chain(preferred, *turn):
            if at in self._unusable or at in self._copies:
                continue
            try:
                content = files.read(self._pictures[at].name)
                if sha256(content).digest() in self._excluded:
                    self._copies.add(at)
                    continue
                return at, decode(content, self._preparation)
            except Undecodable as reason:
                self._unusable[at] = str(reason)
                self._skipped()
        raise CalibrationError(f"{self._place} holds no image to train on that can be used.")

    def _skipped(self) -> Skipped:
        """The unusable so far. Raises CalibrationError where they are too many."""
        skipped = Skipped("images", len(self), self._place)
        for at, reason in sorted(self._unusable.copy().items()):
            skipped.add(repr(self._pictures[at].name), reason)
        return skipped

    def _batch(self, found: Sequence[Future[tuple[int, Tensor]]]) -> Batch:
        examples = [future.result() for future in found]
        pixels = torch.stack([image for _, image in examples])
        labels = None if self._labels is None else torch.tensor([self._labels[at] for at, _ in examples])
        if self._device.type == "cuda":
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
        images = self._preparation.normalised(pixels.to(self._device))
        return calibration.as_batch(
            image_batch(self._preparation, images, None if labels is None else labels.to(self._device))
        )


def _threads() -> int:
    """As many as there are processors, in equal parts where several processes of one launch share them."""
    return max(1, _processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _processors() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
