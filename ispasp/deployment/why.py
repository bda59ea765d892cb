"""Why fewer multiply-adds were faster, or were not: sentences that a profile bears out.

Every reason is given with what was measured, and only where it costs a few hundredths of the pruned model's time.
What a layer costs too much is counted against a time that falls with its multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ispasp.deployment.by_block import BlockTime, Operator
from ispasp.errors import listing
from ispasp.latency import LatencyReport
from ispasp.narrative import percent, plural

MOST = 5  # sentences
LAGS = 1.25  # times the time that would follow from the multiply-adds
FEWER = 0.95  # at most so much of the dense model's multiply-adds is called fewer
TELLING = 0.05  # of the pruned model's operators' time
SMALL = 3  # times the quickest node: such an operator is mostly the call itself, and less time is none at all
NEAR = 0.2  # how far time and size of the maps may be apart where one is said to follow the other
NAMED = 4  # layers in a sentence


@dataclass(frozen=True)
class Suggestion:
    """Prune to channel counts that are multiples of ``multiple``; ``layers`` are those whose counts cost time."""

    multiple: int
    layers: tuple[str, ...]


class _Reason(NamedTuple):
    """What costs ``ms`` more than multiply-adds would have it."""

    ms: float
    sentence: str


def sentences(
    operators: Sequence[Operator],
    blocks: Sequence[BlockTime],
    rest: BlockTime,
    latency: LatencyReport,
    quickest_ms: float,
) -> list[str]:
    """At most five: what pruning gained, where the time went, what did not get faster, and why.

    Args:
        operators, blocks, rest: the profile.
        latency: of calls that were not profiled.
        quickest_ms: median time of the quickest node of both models.
    """
    reasons = [*_of_layers(operators, quickest_ms), _reorders(operators), _without_macs(operators)]
    least = _telling(operators, quickest_ms)
    told = sorted((r for r in reasons if r is not None and r.ms >= least), key=lambda r: -r.ms)
    found = [_gained(operators, latency), _where(operators, blocks, rest), _not_faster(operators)]
    return [*filter(None, found), *(reason.sentence for reason in told)][:MOST]


def suggestion(operators: Sequence[Operator], quickest_ms: float) -> Suggestion | None:
    """Which layers would gain from other channel counts; None where theirs are not the reason."""
    odd = _odd(operators, quickest_ms)
    if not odd or sum(map(_excess, odd)) < _telling(operators, quickest_ms):
        return None
    return Suggestion(_multiple(odd), tuple(dict.fromkeys(o.layer for o in odd)))


def _telling(operators: Sequence[Operator], quickest_ms: float) -> float:
    """Milliseconds from which a reason is worth a sentence."""
    return max(TELLING * sum(o.pruned_ms for o in operators), SMALL * quickest_ms)


def _gained(operators: Sequence[Operator], latency: LatencyReport) -> str:
    dense, pruned = (sum(getattr(o, f"macs_{side}") for o in operators) for side in ("dense", "pruned"))
    interval = f"95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}"
    times = f"{latency.ratio:.2f} times as fast, {interval}"
    if round(latency.ratio_low, 2) <= 1 <= round(latency.ratio_high, 2):
        times = f"no measurable difference, {interval}"
    fewer = f"; {percent(1 - pruned / dense)} of the multiply-adds are gone" if dense else ""
    return (
        f"A call takes {_ms(latency.dense.median_ms)} dense and {_ms(latency.pruned.median_ms)} pruned "
        f"({times}){fewer}."
    )


def _where(operators: Sequence[Operator], blocks: Sequence[BlockTime], rest: BlockTime) -> str:
    dense, pruned = sum(o.dense_ms for o in operators), sum(o.pruned_ms for o in operators)
    if not pruned:
        return ""
    most = max(blocks, key=lambda b: b.dense_ms - b.pruned_ms, default=None)
    saved = ""
    if most is not None and most.dense_ms > most.pruned_ms:
        saved = f"; block {most.block} gained most ({_ms(most.dense_ms)} to {_ms(most.pruned_ms)})"
    return (
        f"By profile, which takes time itself, the operators take {_ms(dense)} dense and {_ms(pruned)} pruned{saved}; "
        f"what belongs to no pruned block takes {_ms(rest.dense_ms)} and {_ms(rest.pruned_ms)}, "
        f"{percent(rest.pruned_ms / pruned)} of the pruned model's time."
    )


def _not_faster(operators: Sequence[Operator]) -> str:
    total = sum(o.pruned_ms for o in operators)
    fewer = [o for o in operators if _fewer(o)]
    slow = [o for o in fewer if o.pruned_ms >= FEWER * o.dense_ms and o.pruned_ms >= 0.01 * total]
    if not slow:
        return ""
    slow.sort(key=_excess, reverse=True)
    worst = [
        f"{o.layer} ({_ms(o.dense_ms)} to {_ms(o.pruned_ms)} with {percent(1 - o.macs_pruned / o.macs_dense)} fewer)"
        for o in slow[:3]
    ]
    return (
        f"{len(slow)} of {plural(len(fewer), 'operator')} with fewer multiply-adds got hardly faster or slower, above "
        f"all {listing(worst)}."
    )


def _of_layers(operators: Sequence[Operator], quickest_ms: float) -> list[_Reason]:
    """Why layers with fewer multiply-adds take longer than these have it; each layer counts for one reason."""
    lags = [o for o in operators if _lags(o)]
    small = [o for o in lags if _small(o, quickest_ms)]
    odd = _odd(operators, quickest_ms)
    maps = [o for o in lags if o not in small and o not in odd and _follows_maps(o)]
    found = []
    if odd:
        found.append(_Reason(sum(map(_excess, odd)), _of_channels(odd)))
    if maps:
        time, moved, macs = (
            sum(getattr(o, f"{name}pruned{unit}") for o in maps)
            / sum(getattr(o, f"{name}dense{unit}") for o in maps)
            for name, unit in (("", "_ms"), ("moved_", ""), ("macs_", ""))
        )
        found.append(
            _Reason(
                sum(map(_excess, maps)),
                f"Time follows the size of the maps, not the multiply-adds, in {_some([o.layer for o in maps])}: they "
                f"take {percent(time)} of the dense time, with maps of {percent(moved)} of the size and "
                f"{percent(macs)} of the multiply-adds.",
            )
        )
    if small:
        found.append(
            _Reason(
                sum(map(_excess, small)),
                f"{plural(len(small), 'operator')} with fewer multiply-adds take at most "
                f"{_ms(max(o.pruned_ms for o in small))} each, where the quickest node of all takes "
                f"{_ms(quickest_ms)}: too small for multiply-adds to matter, together "
                f"{_ms(sum(o.pruned_ms for o in small))}.",
            )
        )
    return found


def _of_channels(odd: Sequence[Operator]) -> str:
    least = _least(odd)
    widths = [f"{o.layer} ({' and '.join(map(str, _odd_widths(o, least)))})" for o in odd]
    filled = [o for o in odd if o.channels_pruned > o.shape_pruned[0]]
    more = ""
    if filled:
        example = f"{filled[0].layer} as with {filled[0].channels_pruned}"
        more += f", {len(filled)} of them computed as with more channels, to fill blocks ({example})"
    if lost := sum(o.blocked_dense and not o.blocked_pruned for o in odd):
        more += f", {lost} outside onnxruntime's blocked layout, which the dense model runs them in"
    multiple = _multiple(odd)
    advice = "16, or at least 8" if multiple > least else multiple
    return (
        f"Channel counts are no multiple of {least} in {_some(widths)}: a multiply-add takes {_per_mac(odd):.1f} times "
        f"as long there as in the dense model{more}; prune with multiple={advice}."
    )


def _reorders(operators: Sequence[Operator]) -> _Reason | None:
    own = [o for o in operators if o.op_type == "Reorder"]
    dense, pruned = sum(o.dense_ms for o in own), sum(o.pruned_ms for o in own)
    total = sum(o.pruned_ms for o in operators)
    if not own:
        return None
    return _Reason(
        pruned - dense,
        f"Changes between memory layouts take {_ms(pruned)} of {_ms(total)} in the pruned model "
        f"({sum(o.nodes_pruned for o in own)} of them), {_ms(dense)} in the dense one "
        f"({sum(o.nodes_dense for o in own)}).",
    )


def _without_macs(operators: Sequence[Operator]) -> _Reason | None:
    own = [o for o in operators if not o.macs_dense + o.macs_pruned and o.op_type != "Reorder"]
    macs = [sum(getattr(o, f"macs_{side}") for o in operators) for side in ("dense", "pruned")]
    if not own or not macs[0]:
        return None
    dense, pruned = sum(o.dense_ms for o in own), sum(o.pruned_ms for o in own)
    times: dict[str, float] = {}
    for o in own:
        times[o.op_type] = times.get(o.op_type, 0.0) + o.pruned_ms
    names = sorted(times, key=lambda name: -times[name])[:3]
    return _Reason(
        pruned - dense * macs[1] / macs[0],
        f"Operators that do no multiply-adds, above all {listing(names)}, take {_ms(pruned)} of "
        f"{_ms(sum(o.pruned_ms for o in operators))} in the pruned model and {_ms(dense)} of "
        f"{_ms(sum(o.dense_ms for o in operators))} in the dense one.",
    )


def _fewer(o: Operator) -> bool:
    return o.dense_ms > 0 and 0 < o.macs_pruned <= FEWER * o.macs_dense


def _excess(o: Operator) -> float:
    """Milliseconds beyond a time that falls with the multiply-adds."""
    return o.pruned_ms - o.dense_ms * o.macs_pruned / o.macs_dense


def _lags(o: Operator) -> bool:
    return _fewer(o) and o.pruned_ms > LAGS * o.dense_ms * o.macs_pruned / o.macs_dense


def _small(o: Operator, quickest_ms: float) -> bool:
    return o.pruned_ms <= SMALL * quickest_ms * o.nodes_pruned


def _odd(operators: Sequence[Operator], quickest_ms: float) -> list[Operator]:
    """Layers that lag and have channel counts that are no multiple of 8; of 16, where all are multiples of 8."""
    lags = [o for o in operators if _lags(o) and not _small(o, quickest_ms)]
    for multiple in (8, 16):
        if odd := [o for o in lags if _odd_widths(o, multiple)]:
            return sorted(odd, key=_excess, reverse=True)
    return []


def _least(odd: Sequence[Operator]) -> int:
    """What the channel counts are no multiple of."""
    return 8 if any(_odd_widths(o, 8) for o in odd) else 16


def _multiple(odd: Sequence[Operator]) -> int:
    """What they should be: 16 where onnxruntime fills up blocks of 16 on this machine, as 8 or more channels show."""
    return 16 if any(o.channels_pruned - o.shape_pruned[0] >= 8 for o in odd) else _least(odd)


def _odd_widths(o: Operator, multiple: int) -> list[int]:
    """The outputs and inputs that pruning made no multiple of ``multiple``."""
    changed = zip(o.shape_dense[:2], o.shape_pruned[:2], strict=False)
    return [after for before, after in changed if after != before and after % multiple]


def _follows_maps(o: Operator) -> bool:
    moved = o.moved_pruned / o.moved_dense if o.moved_dense else 0.0
    return abs(o.pruned_ms / o.dense_ms - moved) <= NEAR * moved


def _per_mac(own: Sequence[Operator]) -> float:
    """How many times as long a multiply-add takes in the pruned model as in the dense one."""
    dense, pruned = sum(o.dense_ms for o in own), sum(o.pruned_ms for o in own)
    return pruned / dense * sum(o.macs_dense for o in own) / sum(o.macs_pruned for o in own)


def _some(names: Sequence[str]) -> str:
    if len(names) <= NAMED:
        return listing(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"


def _ms(value: float) -> str:
    return f"{value:.3g} ms"
