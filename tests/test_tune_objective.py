"""The objective of distillation, example by example, and that its hooks end with the work."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ispasp.calibration import Batch, read
from ispasp.distil import distil_steps
from ispasp.tuning.loop import tune_steps
from ispasp.tuning.objective import Distance, Sums
from ispasp.tuning.settings import TuneSettings
from ispasp.tuning.training_set import MemorySet
from tests.small_tuning import CPU, vectors


class Tagger(nn.Module):
    """Tokens (N, T) to a class for each: (N, T, 5), or one row per token."""

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat, self.embed, self.head = flat, nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits = self.head(self.embed(input_ids))
        return logits.flatten(0, 1) if self.flat else logits


def divergence(distance: Distance, batch: Batch) -> Tensor:
    return distance.compare(batch, distance.pruned(batch))[1]


def tokens(lengths: list[int], longest: int = 6) -> Batch:
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return Batch((), {"input_ids": torch.randint(0, 20, mask.shape), "attention_mask": mask})


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("lengths", [[6, 1], [2, 5, 3, 1], [4, 0, 6]], ids=str)
def test_every_example_counts_alike_however_long(flat: bool, lengths: list[int]) -> None:
    pruned, dense, batch = Tagger(flat), Tagger(flat), tokens(lengths)
    distance = Distance(pruned, dense)
    whole = divergence(distance, batch)
    expected = list[Tensor]()
    for row, length in enumerate(lengths):  # by hand: every sentence cut to its own length
        if length:
            words = batch.keywords["input_ids"][row, :length]
            p, q = ((model.head(model.embed(words)) / 2).softmax(1) for model in (dense, pruned))
            expected.append((p * (p / q).log()).sum(1).mean())
    assert whole.item() == pytest.approx(sum(expected).item(), rel=1e-5)
    ours, theirs = (
        torch.autograd.grad(value, pruned.head.weight, retain_graph=True)[0]
        for value in (whole, sum(expected))
    )
    torch.testing.assert_close(ours, theirs)
    parts = [divergence(distance, batch.after(at).first(1)).item() for at in range(len(lengths))]
    assert whole.item() == pytest.approx(sum(parts), rel=1e-5)
    assert settled(distance, [batch]) == pytest.approx(
        settled(distance, [batch.first(1), batch.after(1)]), rel=1e-5
    )


def settled(distance: Distance, batches: list[Batch]) -> float:
    """The objective over all of them."""
    sums = Sums()
    for batch in batches:
        distance.measure(batch, distance.pruned(batch), sums)
    return distance.settle(sums)


@pytest.mark.parametrize("shape", [(7, 5), (7, 6, 5), (7, 5, 3, 2)], ids=str)
def test_without_padding_to_the_last_bit(shape: tuple[int, ...]) -> None:
    """As it was: the sum over all predictions, divided by how many an example has."""

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.randn(shape)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.logits

    pruned, dense = Given(), Given()
    classes = 1 if len(shape) != 3 else 2
    log_p, log_q = ((model.logits / 2).log_softmax(classes) for model in (dense, pruned))
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    expected = total / (torch.Size(shape).numel() // shape[classes] // 7)
    # Padding of tokens that the output does not have counts for nothing.
    padded = torch.ones(7, 6) if len(shape) == 3 else torch.tensor([[1, 1, 0]] * 7)
    batch = Batch((torch.zeros(7, 2),), {"attention_mask": padded})
    assert torch.equal(divergence(Distance(pruned, dense), batch), expected)


class Marked(nn.Sequential):
    """Found again among all objects."""


def models() -> tuple[Marked, Marked]:
    inner = [nn.Sequential(nn.Linear(6, 8), nn.ReLU()) for _ in range(2)]
    pruned, dense = (Marked(each, nn.Linear(8, 3)) for each in inner)
    return pruned, dense


def tuning(data: tuple[Tensor, Tensor], **more: Any) -> Generator[object, None, object]:
    settings = TuneSettings(epochs=2, distil=0.5, batch_size=20)
    return tune_steps(*models(), MemorySet([data]), [], settings, device=CPU, **more)


def distilling(data: tuple[Tensor, Tensor]) -> Generator[object, None, object]:
    return distil_steps(*models(), read([data]), 100)


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> list[weakref.ref[Marked]]:
    return [weakref.ref(found) for found in gc.get_objects() if type(found) is Marked]


@pytest.mark.parametrize("how", ["closed", "failed", "finished"])
@pytest.mark.parametrize("made", [tuning, distilling])
def test_copies_of_the_models_end_with_the_work(made: Any, how: str, uncollected: None) -> None:
    work = made(vectors(60))
    for _ in range(8):
        next(work)
    copies = alive()
    assert len(copies) == 4  # those given, too
    if how == "closed":
        work.close()
    elif how == "failed":
        with pytest.raises(RuntimeError, match="the disk is full"):
            work.throw(RuntimeError("the disk is full"))
    else:
        for _ in work:
            pass
    del work
    assert [copy() for copy in copies] == [None] * 4 and not alive()
