"""The data that any source gives, for a number of examples and a seed."""

from __future__ import annotations

from collections.abc import Sequence

from ispasp.datasets.archives import zip_images
from ispasp.datasets.folders import FolderFiles
from ispasp.datasets.noise import noise
from ispasp.datasets.pairs import sentence_pairs
from ispasp.datasets.python_file import python_data
from ispasp.datasets.request import Data, Request
from ispasp.datasets.samples import sample_data
from ispasp.datasets.source import DataSource
from ispasp.datasets.torchvision_sets import torchvision_set
from ispasp.datasets.tree import image_tree
from ispasp.errors import CalibrationError
from ispasp.paths import expanded
from ispasp.preparation import ImagePreparation, TextPreparation


def load(
    source: DataSource,
    preparation: ImagePreparation | TextPreparation | None,
    model_classes: Sequence[str],
    *,
    outputs: int | None,
    samples: int,
    seed: int,
    evaluation: int = 1000,
    allow_code: bool = False,
) -> Data:
    """Calibration and evaluation batches of a source, as the model reads them.

    The same source, numbers and seed give the same data. Calibration examples never serve the evaluation.

    Args:
        source: where the data come from.
        preparation: how raw data become inputs; None for a model whose own file brings batches.
        model_classes: names of the model's outputs in their order; empty where unknown.
        outputs: how many classes the model puts out; None where unknown.
        samples: calibration examples, 1 or more; fewer come back, with a note, where there are fewer.
        seed: draws the examples; 0 to 2**63 - 1.
        evaluation: evaluation examples at most, 1 or more.
        allow_code: whether a Python file may be run.

    Raises:
        SettingError: a number is out of its range, or the source's name is not of its form.
        CalibrationError: the data cannot be had or used, or are of another kind than the model reads.
        UserCodeError: running code is not allowed, or the user's code raises.
        ModelError: shipped data are missing or damaged.
    """
    request = Request(preparation, tuple(model_classes), outputs, samples, evaluation, seed)
    return loaded(source, request, allow_code=allow_code)


def loaded(source: DataSource, request: Request, *, allow_code: bool) -> Data:
    """What ``request`` wants of a source; the rest as for ``load``."""
    if source.kind == "python":
        return python_data(source.name, request, allow_code=allow_code)
    if source.kind == "sample":
        return sample_data(source.name, request)
    if source.kind == "pairs":
        return sentence_pairs(source.name, request.reading(TextPreparation, source), request)
    images = request.reading(ImagePreparation, source)
    if source.kind == "folder":
        return image_tree(FolderFiles(expanded(source.name, CalibrationError)), images, request)
    if source.kind == "zip":
        with zip_images(source.name) as files:
            return image_tree(files, images, request)
    if source.kind == "torchvision":
        return torchvision_set(source.name, images, request)
    return noise(images, request)
