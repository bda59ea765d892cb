"""Taylor scores against explicit gates and finite differences, and the labels they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ispasp import taylor
from ispasp.blocks import find
from ispasp.calibration import Batch, as_batch
from ispasp.errors import CalibrationError, SettingError
from ispasp.graph import trace
from tests.selector_networks import gathered, run


class Residual(nn.Module):
    """Two residual blocks with in-place activations and additions, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.a1, self.n1, self.a2 = (
            nn.Conv2d(4, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 3, padding=1),
        )
        self.b1, self.b2 = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.a2(self.relu(self.n1(self.a1(x))))
        out += x
        x = self.relu(out)
        out = self.b2(self.relu(self.b1(x)))
        out += x
        x = self.relu(out)
        return self.head(x.mean((2, 3)))


class Plain(nn.Module):
    """Two convolutions and two linear layers; the flatten makes groups of four features."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.f1, self.f2 = nn.Linear(6 * 4, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.c2(F.relu(self.c1(x)))), 2).flatten(1)
        return self.f2(torch.tanh(self.f1(x)))


class Tokens(nn.Module):
    """A feed-forward block over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.f2, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.f2(F.gelu(self.f1(x)))).mean(1))


TAUGHT = {"plain": (Plain, (2, 4, 4)), "residual": (Residual, (2, 5, 5)), "tokens": (Tokens, (5, 4))}


def gated(model: nn.Module, name: str, groups: int, x: Tensor, label: Tensor) -> Tensor:
    """The derivative of one example's loss in gates on the groups of ``name``, by autograd through hooks.

    The gates multiply the consumer's weight, group by group: the same as gates on what it reads.
    """
    gate = torch.ones(groups, dtype=torch.float64, requires_grad=True)
    consumer = model.get_submodule(name)
    weight = consumer.weight.detach()
    spread = gate.repeat_interleave(weight.shape[1] // groups).view(1, -1, *[1] * (weight.ndim - 2))
    with torch.enable_grad():
        logits = torch.func.functional_call(model, {f"{name}.weight": weight * spread}, (x[None],))
        loss = F.cross_entropy(logits, label[None])
    return torch.autograd.grad(loss, gate)[0]


@pytest.mark.parametrize("name", TAUGHT)
def test_taylor_equals_explicit_gates_one_example_at_a_time(name: str) -> None:
    make, shape = TAUGHT[name]
    model, inputs, labels = make().eval(), torch.randn(9, *shape), torch.randint(3, (9,))
    before = inputs.clone()
    batches = [Batch((inputs[:4],), {}, labels[:4]), Batch((inputs[4:],), {}, labels[4:])]
    traced = trace(model, batches[0])
    blocks = [block for block in find(traced) if block.prunable]
    assert len(blocks) == {"plain": 3, "residual": 2, "tokens": 1}[name]
    with torch.no_grad():  # as the pruner calls it
        found = taylor.scores(traced, blocks, batches)
    assert torch.equal(inputs, before)
    assert list(found) == [block.name for block in blocks]
    wide = make().double().eval()
    wide.load_state_dict(model.state_dict())
    for block in blocks:
        gates = [
            gated(wide, block.consumer, block.groups, x.double(), label)
            for x, label in zip(inputs, labels, strict=True)
        ]
        expected = torch.stack(gates).square().sum(0)
        assert found[block.name].dtype == torch.float64
        assert torch.allclose(found[block.name], expected, rtol=1e-3, atol=1e-7 * float(expected.max()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_agrees_with_finite_differences() -> None:
    """The loss at gates slightly off one, one example."""
    model, x, label = Plain().double().eval(), torch.randn(1, 2, 4, 4).double(), torch.tensor([2])
    traced = trace(model, Batch((x,), {}, label))
    block = next(block for block in find(traced) if block.prunable)
    found = taylor.scores(traced, [block], [Batch((x,), {}, label)])[block.name]
    step = 1e-5
    for group in range(block.groups):
        losses = []
        for gate in (1 + step, 1 - step):
            weight = model.c2.weight.detach().clone()
            weight[:, group] *= gate
            logits = torch.func.functional_call(model, {"c2.weight": weight}, (x,))
            losses.append(F.cross_entropy(logits, label).item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(found[group]) == pytest.approx(slope**2, rel=1e-4, abs=1e-12)


def test_taylor_refuses_data_without_fitting_labels() -> None:
    model, x = Plain().eval(), torch.randn(4, 2, 4, 4)
    traced = trace(model, Batch((x,), {}))
    blocks = [block for block in find(traced) if block.prunable]

    def scores(labels: Tensor | None, graph: object = traced) -> None:
        taylor.scores(graph, blocks, [Batch((x,), {}, labels)])  # type: ignore[arg-type]

    with pytest.raises(CalibrationError, match="Batch 1 .* has no labels, which selector taylor needs"):
        scores(None)
    with pytest.raises(CalibrationError, match="labels from -1 to 7, the model 3 classes; .* from 0 to 2"):
        scores(torch.tensor([0, -1, 2, 7]))
    with pytest.raises(CalibrationError, match=r"labels of shape \(3,\) for 4 examples"):
        scores(torch.tensor([0, 1, 2]))
    segments = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    graph = trace(segments, Batch((x,), {}))
    blocks = [block for block in find(graph) if block.prunable]
    with pytest.raises(CalibrationError, match=r"first output is \(4, 3, 2, 2\) for 4 examples"):
        scores(torch.tensor([0, 1, 2, 0]), graph)


def test_taylor_selector_needs_the_scores() -> None:
    found, *_ = gathered("two layers")
    with pytest.raises(SettingError, match="needs labels with the calibration data"):
        run("taylor", found, 3)
    object.__setattr__(found, "taylor", torch.arange(14, dtype=torch.float64))
    assert run("taylor", found, 3)[0].selected == (11, 12, 13)


def test_heads_whose_rows_begin_with_all_first_tokens() -> None:
    """nn.MultiheadAttention's projection reads (tokens * examples, features); the oracle closes real gates."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    model, x, labels = Attending().eval(), torch.randn(6, 7, 8), torch.randint(0, 3, (6,))
    traced = trace(model, as_batch(x))
    (block,) = [block for block in find(traced) if block.prunable]
    found = taylor.scores(traced, [block], [as_batch((x, labels))])[block.name]
    expected = torch.zeros(4, dtype=torch.float64)
    for one, label in zip(x, labels, strict=True):
        gates = torch.ones(4, requires_grad=True)

        def close(_: object, given: tuple[Tensor, ...], gates: Tensor = gates) -> tuple[Tensor, ...]:
            return (given[0] * gates.repeat_interleave(2),)

        hook = model.attention.out_proj.register_forward_pre_hook(close)
        # The module calls the projection's weights alone; its parts are computed here as it computes them.
        q, k, v = F.linear(one, model.attention.in_proj_weight, model.attention.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (4, 2)).transpose(0, 1) for part in (q, k, v))
        heads = ((q @ k.transpose(-2, -1)) / 2**0.5).softmax(-1) @ v
        out = model.attention.out_proj(heads.transpose(0, 1).flatten(1))
        hook.remove()
        loss = F.cross_entropy(model.head(out.mean(0)), label)
        expected += torch.autograd.grad(loss, gates)[0].double() ** 2
    assert torch.allclose(found, expected, rtol=1e-4)
