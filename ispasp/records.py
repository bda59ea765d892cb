"""The frozen records that flow from the pruner to page, command line and notebook."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ispasp.pruner import PruneResult


ROLES = ("producer", "rider", "gate", "consumer")


class Shown:
    """What shows itself as a small table in a notebook (``ispasp.display``); its ``repr`` stays as it is."""

    def _repr_html_(self) -> str:
        from ispasp import display  # which knows all records

        return display.html(self)


@dataclass(frozen=True)
class Cut:
    """One module's share in a block: which of its parameters' entries belong to which group.

    Along its outputs (dimension 0 of the weight, and the bias) or its inputs (dimension 1) the module has
    ``repeats * groups * size`` entries; group g owns ``size`` neighbouring ones in each of the repeats.

    Attributes:
        module: qualified name.
        role: ``"producer"``; ``"rider"``, one set of parameters per group on the way (batch norm, depthwise
            convolution); ``"gate"``, what a gate on the groups is computed from; or ``"consumer"``. Producers
            and riders are cut along their outputs, gates and consumers along their inputs.
        size: neighbouring entries per group: 1 for a channel or neuron, the features of an attention head.
        repeats: 2 for a fused gate and up projection, 3 for fused queries, keys and values, else 1.
    """

    module: str
    role: str
    size: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class Block(Shown):
    """One producer and what follows it up to its consumer: what could be pruned, or why not.

    Attributes:
        name: qualified module name of the first producer, e.g. ``layer1.1.conv1``.
        groups: prunable units of the hidden representation (d): neurons, channels or attention heads.
        group_size: features of the consumer's input per group; above 1 for heads and after a flatten.
        kind: ``"channel"`` for a convolutional producer, ``"neuron"`` for a linear one, ``"head"`` in attention.
        prunable: whether the walk proved that groups can be removed.
        reason: why not, in one sentence; empty when prunable.
        cuts: every module that becomes narrower with this block.
        hidden: graph node that enters the consumers.
        reads: graph nodes of the consumers, in execution order.
        gates: graph nodes that read the groups to compute a gate on them (squeeze-excitation).
        signed: whether the hidden representation may be negative (GELU, attention), so that its sum and the
            sum of its absolute values differ.
        tokens_first: whether its rows are all examples of the first token, then of the second, ...
    """

    name: str
    groups: int
    group_size: int = 1
    kind: str = "channel"
    prunable: bool = False
    reason: str = ""
    cuts: tuple[Cut, ...] = ()
    hidden: str = ""
    reads: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    signed: bool = False
    tokens_first: bool = False

    def named(self, role: str) -> tuple[str, ...]:
        """The modules of one role, see ``Cut``."""
        return tuple(cut.module for cut in self.cuts if cut.role == role)

    def multiple(self, features: int) -> int:
        """How many groups make a multiple of so many features of the producer; one head is many features."""
        size = self.cuts[0].size if self.cuts else 1
        return features // math.gcd(features, size)

    @property
    def consumers(self) -> tuple[str, ...]:
        """Qualified names of the modules that read the hidden representation, one per entry of ``reads``."""
        return self.named("consumer")

    @property
    def consumer(self) -> str:
        """The first consumer; empty when the block is not prunable."""
        return self.consumers[0] if self.prunable else ""

    @property
    def riders(self) -> tuple[str, ...]:
        """Modules between producer and consumer with parameters of their own for every group."""
        return self.named("rider")

    @property
    def producers(self) -> tuple[str, ...]:
        """All modules whose outputs are the groups; several in attention and gated layers."""
        return self.named("producer")


class Blocks(Shown, list[Block]):
    """A list of blocks that shows itself as a table in a notebook."""


@dataclass(frozen=True)
class Iteration(Shown):
    """One iteration of Algorithm 1 (Wolfe & Kyrillidis, 2022) on one block of d groups.

    Attributes:
        block: the block's name.
        t: iteration number, from 1.
        importance: (d,) float64 on the CPU, y = sum of A^T V per group, before this selection.
        hidden_sum: (d,) float64 on the CPU, sum of H per group; the same in every iteration.
        score: (d,) float64 on the CPU, what decided which of the merged groups stay: the hidden sum
            in Algorithm 1, the selector's own score otherwise.
        candidates: the c*s groups with the largest importance, sorted.
        selected: the s groups kept after this iteration, sorted.
        added: groups in ``selected`` that the previous iteration did not keep, sorted.
        dropped: groups the previous iteration kept that are no longer selected, sorted.
        residual: ||V||_F^2 after this selection with the consumer's own weights, over the whole
            calibration set.
        relative_residual: ``residual`` over ||A(H)||_F^2, in [0, inf); 0 for a dead block.
        converged: True where every later iteration would select the same groups.
        seconds: wall time of this iteration.
    """

    block: str
    t: int
    importance: Tensor = field(repr=False, compare=False)
    hidden_sum: Tensor = field(repr=False, compare=False)
    score: Tensor = field(repr=False, compare=False)
    candidates: tuple[int, ...]
    selected: tuple[int, ...]
    added: tuple[int, ...]
    dropped: tuple[int, ...]
    residual: float
    relative_residual: float
    converged: bool
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Progress:
    """Work done so far: ``done`` in [0, 1] of the whole job, ``doing`` in words."""

    done: float
    doing: str


@dataclass(frozen=True)
class Started(Shown):
    """The run begins. ``blocks`` are the blocks that will be visited, in network order;
    ``keep_groups`` how many groups each of them will keep."""

    blocks: tuple[Block, ...]
    keep_groups: tuple[int, ...]


@dataclass(frozen=True)
class BlockStarted(Shown):
    """Statistics of a block are ready and its iterations begin.

    Attributes:
        block: the block.
        index: position among the visited blocks, from 0.
        total: number of visited blocks.
        keep_groups: groups that will be kept (s), after rounding.
        one_iteration_decides: True where c*s >= d, so that every group is a candidate.
        sample: hidden representation of the first few calibration examples, on the CPU:
            (n, d, h, w) float16 for channels, (n, d) for neurons, (n, d, tokens) for neurons that read
            tokens, (n, d, group_size) after a flatten.
    """

    block: Block
    index: int
    total: int
    keep_groups: int
    one_iteration_decides: bool
    sample: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class BlockPruned(Shown):
    """A block is done and the pruned stream has moved past its consumer.

    Attributes:
        block: the block.
        index: position among the visited blocks, from 0.
        selected: kept groups, sorted.
        iterations: how many iterations it took.
        relative_residual: of this block alone, on the inputs that the pruned network gave it.
        drift: ||dense - pruned||_F^2 / ||dense||_F^2 of the consumer's output between the dense
            and the pruned stream, over the first few calibration examples: this block's error and
            that of every block before it.
        seconds: wall time of statistics, selection and re-fit.
        target: what the consumer's weights were re-fitted to: ``"none"``, ``"symmetric"`` or
            ``"asymmetric"`` (see ``ispasp.reconstruct``); symmetric also where asymmetric was asked
            for and could not be had, which ``notes`` then say.
        error_before: ||T - A_S(H_S)||_F^2 / ||T||_F^2 over the calibration data, T the target; None
            without a re-fit.
        error_after: the same with the re-fitted weights, never larger.
        notes: warnings, a sentence each.
    """

    block: Block
    index: int
    selected: tuple[int, ...]
    iterations: int
    relative_residual: float
    drift: float
    seconds: float = field(compare=False)
    target: str = "none"
    error_before: float | None = None
    error_after: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the block keeps all of its groups."""
        return len(self.selected) == self.block.groups


@dataclass(frozen=True)
class Distilled(Shown):
    """The sliced model was trained towards the dense one on the unlabelled calibration data.

    Attributes:
        steps: gradient steps made.
        objective_before, objective_after: the objective of ``ispasp.distil`` over the calibration data.
        seconds: wall time.
    """

    steps: int
    objective_before: float
    objective_after: float
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Finished(Shown):
    """The sliced model is verified and measured."""

    result: PruneResult


Event = Started | Progress | BlockStarted | Iteration | BlockPruned | Distilled | Finished
