"""What became of every layer: widths, multiply-adds and parameters before and after, by block.

The sums over all layers are the figures of the run's report (``evaluate.count_macs``, ``count_parameters``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ispasp import evaluate, models, plain_files
from ispasp.calibration import Batch
from ispasp.deployment.by_block import Operator
from ispasp.deployment.opened_run import OpenedRun
from ispasp.errors import RunError
from ispasp.graph import exclusive
from ispasp.narrative import percent
from ispasp.records import Block
from ispasp.result import load, load_record, untrained
from ispasp.run_settings import RunSettings
from ispasp.store import EXPORT

FILE = "diff.json"
FORMAT = 1
WHOLE = "(model)"
"""What the outermost module goes by, where it has parameters or operations of its own."""
OTHER = "other"
_MORE_WORTH = ("producer", "rider", "gate", "consumer")  # a layer that ends one block often begins the next


@dataclass(frozen=True)
class LayerDiff:
    """One module with parameters or multiply-adds of its own, those of its children not among them.

    Attributes:
        layer: qualified name.
        block: the block that it becomes narrower with, or whose heads it computes with; None for the others. Of
            two blocks the one that it produces.
        kind: its class, such as ``"Conv2d"``.
        role: ``"producer"``, ``"rider"``, ``"gate"`` or ``"consumer"`` in that block, see ``records.Cut``; else
            ``"other"``.
        dense_shape, pruned_shape: of its weight, or of its largest parameter; empty where it has none.
        macs_dense, macs_pruned: multiply-adds of one example.
        params_dense, params_pruned: parameters; one that several layers share counts at the first.
    """

    layer: str
    block: str | None
    kind: str
    role: str
    dense_shape: tuple[int, ...]
    pruned_shape: tuple[int, ...]
    macs_dense: int
    macs_pruned: int
    params_dense: int
    params_pruned: int

    @property
    def changed(self) -> bool:
        """Whether pruning made anything of it smaller."""
        return (self.dense_shape, self.macs_dense, self.params_dense) != (
            self.pruned_shape,
            self.macs_pruned,
            self.params_pruned,
        )


class Totals(NamedTuple):
    """Sums over all layers, as in a run's report."""

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


class _Own(NamedTuple):
    """What one module has by itself: the order in which it was called, and its multiply-adds; see ``LayerDiff``."""

    order: dict[str, int]
    macs: dict[str, int]


def of_run(run: OpenedRun) -> list[LayerDiff]:
    """The layers of an opened run, in network order."""
    blocks = [event.block for event in run.result.blocks_pruned]
    return model_diff(run.dense.model, run.result.model, run.calibration[0], blocks)


def of_saved(path: Path, *, allow_code: bool = False) -> list[LayerDiff]:
    """The layers of a saved run without its data and the dense weights, neither of which counts here.

    Raises:
        RunError, ModelError: the run is damaged, or its architecture cannot be built here.
    """
    settings, pruned = RunSettings.of(load_record(path)), load(path, allow_code=allow_code)
    described = pruned.settings.get("architecture")
    if not isinstance(described, dict):
        raise RunError(f"The run {path.name} does not say how to build its model; run it again.")
    dense = models.build(described, allow_code=allow_code)
    example = untrained(settings.model, allow_code=allow_code).example
    return model_diff(dense, pruned.model, example, [event.block for event in pruned.blocks_pruned])


def model_diff(
    dense: nn.Module, pruned: nn.Module, example: Batch, blocks: Iterable[Block]
) -> list[LayerDiff]:
    """Compare two models layer by layer, in the order in which the dense one runs them.

    Args:
        dense, pruned: in eval mode; the second came from the first by ``surgery.slice_block``. Neither is changed.
        example: of it the first example is run through both.
        blocks: those that were pruned.
    """
    before, after = _own(dense, example), _own(pruned, example)
    both = set(before.order) & set(after.order)
    macs = [_folded(own.macs, both) for own in (before, after)]
    params = [_own_parameters(model) for model in (dense, pruned)]
    places = _places(blocks)
    found = []
    for name in _in_order(dense, before.order):
        counted = [each.get(name, 0) for each in (*macs, *params)]
        shapes = [_shape(model.get_submodule(name)) for model in (dense, pruned)]
        if not any(counted):
            continue
        block, role = places.get(name) or (_around(name, places), OTHER)
        kind = type(dense.get_submodule(name)).__name__
        found.append(LayerDiff(name or WHOLE, block, kind, role, shapes[0], shapes[1], *counted))
    return found


def totals(diffs: Iterable[LayerDiff]) -> Totals:
    """Sums over all layers."""
    diffs = list(diffs)
    return Totals(
        sum(d.macs_dense for d in diffs),
        sum(d.macs_pruned for d in diffs),
        sum(d.params_dense for d in diffs),
        sum(d.params_pruned for d in diffs),
    )


def shares(operators: Iterable[Operator]) -> dict[str, float]:
    """Share in [0, 1] of the pruned model's time by layer, of a profile's operators."""
    spent: dict[str, float] = {}
    for operator in operators:
        spent[operator.layer] = spent.get(operator.layer, 0.0) + operator.pruned_ms
    whole = sum(spent.values()) or 1.0
    return {layer: ms / whole for layer, ms in spent.items()}


def as_rows(diffs: Sequence[LayerDiff], latency: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """A table's rows, one per layer, with plain values and units in the heads; the sum comes last.

    Args:
        latency: share in [0, 1] of the pruned model's time by layer, where that was measured; the column is left
            out without it.
    """
    sums = totals(diffs)
    rows = [
        _row(
            d.layer,
            d.block or "–",
            d.role,
            d.kind,
            (size(d.dense_shape), size(d.pruned_shape)),
            (d.macs_dense, d.macs_pruned),
            (d.params_dense, d.params_pruned),
        )
        for d in diffs
    ]
    if latency is not None:
        for row in rows:
            row["Share of latency"] = percent(latency[row["Layer"]]) if row["Layer"] in latency else "–"
    whole = _row("all", "", "", "", ("", ""), sums[:2], sums[2:])
    return [*rows, whole | ({"Share of latency": ""} if latency is not None else {})]


def size(shape: Sequence[int]) -> str:
    """``"64 × 32 × 3 × 3"``: outputs, inputs, and what else a weight has; a dash where there is none."""
    return " × ".join(map(str, shape)) or "–"


def write_diff(folder: Path, diffs: Iterable[LayerDiff]) -> None:
    """Write ``diff.json`` into a run's export folder, or into the one that will take its place.

    Raises:
        RunError: it cannot be written.
    """
    plain_files.write_json(folder / FILE, {"format": FORMAT, "layers": [asdict(d) for d in diffs]})


def read_diff(path: Path) -> list[LayerDiff] | None:
    """The layers of the run in the folder ``path``, as ``write_diff`` left them; None where nothing was written.

    Raises:
        RunError: the file is damaged, or from a newer version.
    """
    file = path / EXPORT / FILE
    if not file.is_file():
        return None
    try:
        plain = plain_files.read_json(file)
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {str(plain['format'])[:20]!r}")
        layers = [
            plain_files.check_fields(LayerDiff(**plain_files.tuples(values))) for values in plain["layers"]
        ]
        if any(min(d.macs_dense, d.macs_pruned, d.params_dense, d.params_pruned) < 0 for d in layers):
            raise ValueError("a count is below zero")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error!r}): export the run again.") from error
    return layers


def _row(
    layer: str,
    block: str,
    role: str,
    kind: str,
    shapes: tuple[str, str],
    macs: tuple[int, int],
    params: tuple[int, int],
) -> dict[str, Any]:
    return {
        "Layer": layer,
        "Block": block,
        "Role": role,
        "Kind": kind,
        "Weight before": shapes[0],
        "Weight after": shapes[1],
        "MACs before": macs[0],
        "MACs after": macs[1],
        "Parameters before": params[0],
        "Parameters after": params[1],
    }


@torch.no_grad()
def _own(model: nn.Module, batch: Batch) -> _Own:
    """Run one example and give every operation to the innermost module that was running."""
    example = batch.first(1).to(evaluate.device_of(model))
    order: dict[str, int] = {}
    macs: dict[str, int] = {}
    running: list[str] = []
    given = 0
    with exclusive(), FlopCounterMode(display=False) as counter:

        def settle() -> None:
            nonlocal given
            done = counter.get_total_flops()
            if running and done > given:
                macs[running[-1]] = macs.get(running[-1], 0) + (done - given) // 2
            given = done

        def enter(module: nn.Module, _: object) -> None:
            settle()
            running.append(names[module])
            order.setdefault(names[module], len(order))

        def leave(*_: object) -> None:
            settle()
            running.pop()

        names = {module: name for name, module in model.named_modules()}
        handles = [module.register_forward_pre_hook(enter) for module in names]
        handles += [module.register_forward_hook(leave) for module in names]
        try:
            model(*example.inputs, **example.keywords)
        finally:
            for handle in handles:
                handle.remove()
    return _Own(order, macs)


def _folded(macs: Mapping[str, int], called: Collection[str]) -> dict[str, int]:
    """Multiply-adds by layers that both models call: ``nn.MultiheadAttention`` computes its output projection
    itself, the attention that takes its place calls it."""
    found: dict[str, int] = {}
    for name, count in macs.items():
        while name and name not in called:
            name = name.rpartition(".")[0]
        found[name] = found.get(name, 0) + count
    return found


def _own_parameters(model: nn.Module) -> dict[str, int]:
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        counts[name] = sum(p.numel() for p in own)
    return counts


def _in_order(model: nn.Module, order: Mapping[str, int]) -> list[str]:
    """Names of all modules as they run; those that are not called follow the module listed before them."""
    places: dict[str, int] = {}
    last = 0
    for name, _ in model.named_modules():
        places[name] = last = order.get(name, last)
    return sorted(places, key=places.__getitem__)


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return tuple(weight.shape)
    own = [tuple(p.shape) for p in module.parameters(recurse=False)]
    return max(own, key=math.prod, default=())


def _places(blocks: Iterable[Block]) -> dict[str, tuple[str, str]]:
    """Block and role by layer."""
    found: dict[str, tuple[str, str]] = {}
    for block in blocks:
        for cut in block.cuts:
            known = found.get(cut.module)
            if known is None or _MORE_WORTH.index(cut.role) < _MORE_WORTH.index(known[1]):
                found[cut.module] = (block.name, cut.role)
    return found


def _around(name: str, places: Mapping[str, tuple[str, str]]) -> str | None:
    """The block whose producers all lie within the module ``name``, and no others: attention between its heads."""
    inside = {place for module, place in places.items() if module.startswith(f"{name}.")}
    blocks = {block for block, role in inside if role == "producer"}
    return blocks.pop() if name and len(blocks) == 1 else None
