"""What a source of data gives to train on, and what the result is measured on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from ispasp.datasets.archives import zip_images
from ispasp.datasets.file_set import FileSet
from ispasp.datasets.folders import FolderFiles
from ispasp.datasets.loading import loaded
from ispasp.datasets.request import EVERYTHING, Data, Request, image_batches, input_bytes
from ispasp.datasets.source import DataSource
from ispasp.datasets.torchvision_sets import imagenet, named
from ispasp.datasets.tree import Files, drawn_pictures, image_tree, layout
from ispasp.errors import CalibrationError
from ispasp.paths import expanded
from ispasp.preparation import ImagePreparation, TextPreparation
from ispasp.settings import check_whole_number
from ispasp.tuning.training_set import MemorySet, TrainingSet

MEMORY_BYTES = 2**30  # training images above that are read from their files in every epoch


@dataclass(frozen=True, eq=False)
class Training:
    """Training data as a model reads them.

    Attributes:
        set: the examples to train on.
        evaluation: batches of other examples, as ``datasets.load`` gives them.
        classes: names in the order of the labels; empty where labels are unknown.
        said: sentences for the user about what was drawn.
    """

    set: TrainingSet
    evaluation: list[Any]
    classes: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user; more may come while files are read."""
        return (*self.said, *self.set.notes)


def load_training(
    source: DataSource,
    preparation: ImagePreparation | TextPreparation | None,
    model_classes: Sequence[str],
    *,
    outputs: int | None,
    examples: int | None = None,
    seed: int = 0,
    evaluation: int = 1000,
    calibration: int = 0,
    allow_code: bool = False,
) -> Training:
    """Training examples of a source and others to evaluate on.

    The same source, numbers and seed give the same. Evaluation examples are drawn as ``datasets.load`` draws them,
    and never trained on, nor are their copies (of batches from a Python file these are only told of). Where both come
    from one pool they are at most a fifth of it, or what ``examples`` leaves: so they may be fewer than those of
    ``load``, and the rest of these may be trained on. Measure before and after on those given here; asked for so many,
    ``load`` gives the very same.

    Args:
        source: where the data come from. Images of folders, archives and ImageNet that take more than ``MEMORY_BYTES``
            are read from their files while the model trains.
        preparation, model_classes, outputs, allow_code: as for ``datasets.load``.
        examples: how many to train on, 1 or more; None for all there are. Fewer come back, with a note, where there
            are fewer.
        seed: draws the examples; 0 to 2**63 - 1.
        evaluation: evaluation examples at most, 1 or more.
        calibration: how many examples ``load`` is asked for to calibrate with, 0 or more; none of them, and no copy of
            one, is evaluated on. All others can be trained on, where a Python file has one iterable for everything.

    Raises:
        SettingError, CalibrationError, UserCodeError, ModelError: as ``datasets.load``.
    """
    samples = EVERYTHING if examples is None else examples
    check_whole_number("examples", samples, at_least=1)
    request = Request(
        preparation, tuple(model_classes), outputs, samples, evaluation, seed, "training", calibration
    )
    opened = _opened(source)
    if opened is not None:
        return _from_files(opened, request.reading(ImagePreparation, source), request)
    return _in_memory(loaded(source, request, allow_code=allow_code))


def _opened(source: DataSource) -> Callable[[], AbstractContextManager[Files]] | None:
    """Opens the image files of a source; None where it is no place of image files."""
    files: Files
    if source.kind == "zip":
        return lambda: zip_images(source.name)
    if source.kind == "folder":
        files = FolderFiles(expanded(source.name, CalibrationError))
    elif source.kind == "torchvision" and source.name.startswith("ImageNet@"):
        files = imagenet(named(source.name)[1])
    else:
        return None
    return lambda: nullcontext(files)


def _from_files(
    opened: Callable[[], AbstractContextManager[Files]], preparation: ImagePreparation, request: Request
) -> Training:
    with opened() as files:
        found = layout(files.names, files.place)
        count, _ = found.planned(request)
        if count * input_bytes(preparation) <= MEMORY_BYTES:
            return _in_memory(image_tree(files, preparation, request))
        drawn = drawn_pictures(files, found, preparation, request, unread=True)
    training, evaluation = (
        [picture for picture, _ in part] for part in (drawn.calibration, drawn.evaluation)
    )
    return Training(
        FileSet(opened, training, drawn.labels(training), preparation, drawn.digests),
        image_batches(preparation, [pixels for _, pixels in drawn.evaluation], drawn.labels(evaluation)),
        drawn.classes,
        tuple(drawn.notes),
    )


def _in_memory(found: Data) -> Training:
    return Training(MemorySet(found.calibration), found.evaluation, found.classes, found.notes)
