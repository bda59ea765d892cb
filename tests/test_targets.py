"""What a consumer's output is added to, found in the graph, and what may and may not be taken from it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ispasp
from ispasp import targets
from ispasp.calibration import Batch
from ispasp.errors import CalibrationError
from ispasp.graph import CONSUMERS, trace
from ispasp.stream import Stream


class Forward(nn.Module):
    """Layers for tokens of 12 features, and whatever forward a test wants."""

    def __init__(self, forward: Callable[[Forward, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.b2 = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(20, 12)
        self.c, self.d = nn.Linear(12, 20), nn.Linear(20, 12)
        self.mix, self.norm, self.head = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 4)
        self.over_tokens = nn.BatchNorm1d(12)
        self.run = forward

    def first(self, x: Tensor) -> Tensor:
        return x + self.d(F.gelu(self.c(x)))

    def second(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, self.first(x)))


def model_of(forward: Callable[[Forward, Tensor], Tensor], seed: int = 0) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(seed)
    return Forward(forward).eval(), [torch.randn(32, 12, 12), torch.randn(16, 12, 12)]


def second_block(forward: Callable[[Forward, Tensor], Tensor]) -> ispasp.BlockPruned:
    """How the block ``a`` was re-fitted, the block ``c`` before it being pruned too."""
    model, batches = model_of(forward)
    result = ispasp.prune(model, batches, 0.5, reconstruct="asymmetric", multiple=1)
    return next(event for event in result.blocks_pruned if event.block.name == "a")


ASYMMETRIC: dict[str, Callable[[Forward, Tensor], Tensor]] = {
    "pre-norm": lambda m, x: x + m.second(m.norm(x)),
    "post-norm of the sum": lambda m, x: m.norm(x + m.second(x)),
    "scaled": lambda m, x: x + 0.5 * m.second(x),
    "a layer scale": lambda m, x: x + m.norm.weight * m.second(x),
    "moved": lambda m, x: (
        x + m.second(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (12, -1)).transpose(0, 1)
    ),
    "two shortcuts": lambda m, x: m.second(m.norm(x)) + m.mix(x) + x,
    "a constant between": lambda m, x: x + (m.second(x) + m.norm.bias + 1.0),
    "no shortcut": lambda m, x: F.gelu(m.second(x)),
    "no shortcut, log-softmax": lambda m, x: m.second(x).log_softmax(-1),
}

SYMMETRIC: dict[str, tuple[Callable[[Forward, Tensor], Tensor], str]] = {
    "norm before the sum": (lambda m, x: x + m.norm(m.second(x)), "behind aten.layer_norm"),
    "activation before the sum": (lambda m, x: x + F.gelu(m.second(x)), "behind aten.gelu"),
    "gated": (lambda m, x: x + x.mean(-1, keepdim=True) * m.second(x), "behind aten.mul"),
    "alpha": (lambda m, x: torch.add(x, m.second(x), alpha=2), "scaled"),
    "doubled": (lambda m, x: (lambda y: y + y)(m.second(x)) + x, "added to itself"),
    "constant alpha": (lambda m, x: torch.add(m.norm.bias, m.second(x), alpha=3) + x, "scaled"),
    "broadcast": (lambda m, x: x + m.second(x.mean(1, keepdim=True)), "another shape"),
    "size": (lambda m, x: m.second(x) + x.shape[0], "another shape"),
}


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_the_dense_stream_is_the_target_where_the_shortcut_is_known(name: str) -> None:
    event = second_block(ASYMMETRIC[name])
    assert (event.target, event.notes) == ("asymmetric", ())
    assert event.error_after is not None and event.error_before is not None
    assert event.error_after < event.error_before


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_is_used_and_said_where_it_is_not(name: str) -> None:
    forward, reason = SYMMETRIC[name]
    event = second_block(forward)
    assert event.target == "symmetric"
    assert len(event.notes) == 1 and reason in event.notes[0], event.notes


def test_every_addend_is_found_whatever_the_order_of_the_additions() -> None:
    orders: list[Callable[[Forward, Tensor], Tensor]] = [
        lambda m, x: m.second(x) + m.mix(x) + x,
        lambda m, x: m.second(x) + (m.mix(x) + x),
    ]
    errors = []
    for order in orders:
        model, batches = model_of(order)
        result = ispasp.prune(model, batches, 0.5, reconstruct="asymmetric", multiple=1)
        with torch.no_grad():
            errors.append((result.model(batches[0]) - model(batches[0])).norm().item())
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_two_consumers_whose_outputs_meet() -> None:
    """The second one's shortcut holds the first one's output, which is not there when both are re-fitted."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        hidden = F.gelu(m.a(x))
        return (x + m.b(hidden)) + m.b2(hidden)

    model, batches = model_of(forward)
    for target in ("symmetric", "asymmetric"):
        result = ispasp.prune(model, batches, 0.5, reconstruct=target, multiple=1)
        event = next(event for event in result.blocks_pruned if event.block.name == "a")
        assert event.block.consumers == ("b", "b2")
        assert event.error_after is not None and event.error_before is not None
        assert event.error_after < event.error_before


def test_a_batch_norm_over_tokens_is_not_the_consumers() -> None:
    """Its channels are the tokens: no intercept may go there. Twelve of each, so that shapes cannot tell."""

    class Unbiased(Forward):
        def __init__(self) -> None:
            super().__init__(lambda m, x: x + m.over_tokens(m.second(x)))
            self.b = nn.Linear(20, 12, bias=False)

    torch.manual_seed(0)
    model, batches = Unbiased().eval(), [torch.randn(32, 12, 12)]
    result = ispasp.prune(model, batches, 0.5, reconstruct="asymmetric", multiple=1)
    event = next(event for event in result.blocks_pruned if event.block.name == "a")
    assert event.target == "symmetric" and "behind aten.batch_norm" in event.notes[0]
    assert torch.equal(result.model.over_tokens.running_mean, model.over_tokens.running_mean)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.BatchNorm1d(8))
        self.right = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def test_recalibration_touches_only_what_pruning_changed() -> None:
    model = Towers().eval()
    result = ispasp.prune(model, [torch.randn(40, 6)], 0.5, multiple=1, recalibrate=True)
    assert torch.equal(result.model.right[1].running_mean, model.right[1].running_mean)
    assert not torch.equal(result.model.left[3].running_mean, model.left[3].running_mean)


def test_recalibration_on_a_single_position_changes_nothing() -> None:
    """Its variance would be zero, and the norm would blow up every other input."""
    model = Towers().eval()
    result = ispasp.prune(model, [torch.randn(1, 6)], 0.5, multiple=1, recalibrate=True)
    assert torch.equal(result.model.left[3].running_var, model.left[3].running_var)
    constant = torch.randn(1, 6).expand(10, 6).contiguous()
    result = ispasp.prune(model, [constant], 0.5, multiple=1, recalibrate=True)
    assert torch.equal(result.model.left[3].running_var, model.left[3].running_var)


class Aliased(nn.Module):
    """Changes a value in place while a view of it is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = x.repeat(1, 2)
        view = z[:, :8]
        y = self.b(F.relu(self.a(x)))
        z.mul_(3)
        return y + view


def test_a_fork_keeps_views_and_bases_together() -> None:
    model, data = Aliased().eval(), torch.randn(5, 6)
    traced = trace(model, Batch((data,), {}))
    stream = Stream(traced, [Batch((data.clone(),), {})])
    read = [node for node in traced.nodes if node.target in CONSUMERS][-1]
    at = traced.nodes.index(read)
    list(stream.advance(traced.nodes[:at]))
    fork = stream.fork()
    for each in (fork, stream):
        list(each.advance(traced.nodes[at:]))
        with torch.no_grad():
            assert torch.allclose(each.outputs(0)[0], model(data))


def test_a_stream_gives_what_the_model_gives_and_holds_what_is_live() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    ).eval()
    batches = [Batch((torch.randn(n, 3, 8, 8),), {}) for n in (2, 5, 1)]
    traced = trace(model, batches[0])
    stream = Stream(traced, [batch.copy() for batch in batches])
    at = next(number for number, node in enumerate(traced.nodes) if node.target in CONSUMERS) + 1
    list(stream.advance(traced.nodes[:at]))
    assert list(stream.values) == [traced.nodes[at - 1]]  # the images were let go of
    list(stream.advance(traced.nodes[at:]))
    with torch.no_grad():
        for number, batch in enumerate(batches):
            assert torch.equal(stream.outputs(number)[0], model(*batch.inputs))


def test_a_budget_cannot_be_shared_out_by_an_output_that_never_changes() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[-1].weight.zero_()
    with pytest.raises(CalibrationError, match="does not change"):
        ispasp.prune(model, [torch.randn(20, 6)], 0.5, multiple=1, allocation="macs")


def test_a_single_number_per_example_is_compared_by_its_error() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(6, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.ReLU(),
        nn.Linear(32, 1),
    ).eval()
    data = torch.randn(200, 6)
    result = ispasp.prune(
        model, [data], 0.5, multiple=1, allocation="params", evaluation=[(data, torch.zeros(200).long())]
    )
    assert min(result.started.keep_groups) > 4
    assert result.predictions is None and result.report["agreement"] is None  # there is no class to agree on


def test_roles_of_a_plain_network() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    traced = trace(model, Batch((torch.randn(2, 6),), {}))
    read = [node for node in traced.nodes if node.target in CONSUMERS][-1]
    assert targets.role(read, traced) == targets.Role()
    assert targets.home_of_intercept(read, targets.Role(), traced) == "2"


class Counting(nn.Module):
    """Changes a buffer whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 8)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        self.count.add_(1)
        return y * self.count


def test_a_fork_has_buffers_of_its_own() -> None:
    traced = trace(Counting().eval(), Batch((torch.randn(5, 6),), {}))
    stream = Stream(traced, [Batch((torch.randn(5, 6),), {})])
    fork = stream.fork()
    list(fork.advance(traced.nodes))
    buffer = next(node for node in traced.fixed if node.target == "count")
    assert float(fork.fixed[buffer]) == 1 and float(stream.fixed[buffer]) == 0


def test_a_budget_is_shared_out_where_a_class_is_masked() -> None:
    class Masked(Forward):
        def __init__(self) -> None:
            super().__init__(lambda m, x: x + m.second(x))
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.mask

    result = ispasp.prune(Masked().eval(), [torch.randn(32, 12, 12)], 0.5, multiple=1, allocation="macs")
    assert sum(result.started.keep_groups) <= 20
