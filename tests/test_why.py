"""What a profile is said to mean, on made-up profiles: every reason where it holds, and none where it does not."""

from __future__ import annotations

from ispasp.deployment import why
from ispasp.deployment.by_block import Operator
from ispasp.latency import LatencyReport
from tests.small_profiles import blocks, latency, operator, plain

QUICKEST = 0.004
FASTER = latency(2.0, 1.0, 1.9, 2.1)
PROPORTIONAL = [operator("a", 1.0, 0.5), operator("b", 1.0, 0.52)]


def said(operators: list[Operator], measured: LatencyReport = FASTER) -> list[str]:
    found = why.sentences(operators, *blocks(operators), measured, QUICKEST)
    assert len(found) <= why.MOST
    return found


def odd(layer: str, dense_ms: float, pruned_ms: float, **changed: object) -> Operator:
    shape = {"shape_pruned": (38, 64, 3, 3), "macs_pruned": 2_375_000, "channels_pruned": 0}
    return operator(layer, dense_ms, pruned_ms, **(shape | {"blocked_pruned": False} | changed))


def test_where_time_fell_with_the_multiply_adds_only_the_gain_is_told() -> None:
    first, second = said(PROPORTIONAL)
    assert first == (
        "A call takes 2 ms dense and 1 ms pruned (2.00 times as fast, 95 % interval 1.90 to 2.10); 50.0 % of the "
        "multiply-adds are gone."
    )
    assert "2 ms dense and 1.02 ms pruned; block a gained most (1 ms to 0.5 ms)" in second
    assert why.suggestion(PROPORTIONAL, QUICKEST) is None


def test_no_difference_is_not_called_one() -> None:
    first = said(PROPORTIONAL, latency(1.0, 0.99, 0.98, 1.04))[0]
    assert "no measurable difference, 95 % interval 0.98 to 1.04" in first and "times as fast" not in first


def test_odd_channel_counts_are_named_with_a_suggestion() -> None:
    operators = [*PROPORTIONAL, odd("c", 0.5, 1.0), odd("d", 0.5, 0.9)]
    _, _, slow, reason = said(operators)
    assert slow.startswith(
        "2 of 4 operators with fewer multiply-adds got hardly faster or slower, above all c (0.5 ms to 1 ms"
    )
    assert "no multiple of 8 in c (38) and d (38)" in reason
    assert "takes 3.2 times as long there" in reason  # 1.9 / 1.0 over 2.375 / 4
    assert "2 outside onnxruntime's blocked layout" in reason
    assert reason.endswith("prune with multiple=8.")
    assert why.suggestion(operators, QUICKEST) == why.Suggestion(8, ("c", "d"))


def test_channels_filled_up_to_blocks_of_16_suggest_16() -> None:
    filled = odd("c", 0.5, 0.5, shape_pruned=(6, 64, 3, 3), blocked_pruned=True, channels_pruned=16)
    operators = [*PROPORTIONAL, filled]
    reason = said(operators)[-1]
    assert "1 of them computed as with more channels, to fill blocks (c as with 16)" in reason
    assert reason.endswith("prune with multiple=16, or at least 8.")
    assert why.suggestion(operators, QUICKEST) == why.Suggestion(16, ("c",))


def test_multiples_of_8_that_are_none_of_16_suggest_16() -> None:
    operators = [*PROPORTIONAL, odd("c", 0.5, 0.9, shape_pruned=(40, 64, 3, 3))]
    assert "no multiple of 16 in c (40)" in said(operators)[-1]
    assert why.suggestion(operators, QUICKEST) == why.Suggestion(16, ("c",))


def test_odd_counts_that_cost_nothing_are_not_blamed() -> None:
    fast = [*PROPORTIONAL, odd("c", 0.5, 0.3)]  # 2.375 of 4 million
    assert len(said(fast)) == 2 and why.suggestion(fast, QUICKEST) is None
    little = [*PROPORTIONAL, odd("c", 0.02, 0.04)]
    assert why.suggestion(little, QUICKEST) is None and not any("multiple" in each for each in said(little))


def test_counts_that_pruning_left_are_not_blamed() -> None:
    shapes = {"shape_dense": (64, 3, 3, 3), "shape_pruned": (32, 3, 3, 3)}
    operators = [*PROPORTIONAL, operator("first", 1.0, 0.9, **shapes)]
    assert why.suggestion(operators, QUICKEST) is None
    assert not any("no multiple of" in each for each in said(operators))


def test_time_that_follows_the_maps_is_told() -> None:
    operators = [*PROPORTIONAL, operator("c", 1.0, 0.76)]
    reason = said(operators)[-1]
    assert reason == (
        "Time follows the size of the maps, not the multiply-adds, in c: they take 76.0 % of the dense time, with maps "
        "of 75.0 % of the size and 50.0 % of the multiply-adds."
    )


def test_small_operators_are_told_together() -> None:
    small = [operator(f"s{i}", 0.011, 0.01, shape_pruned=(31, 64, 3, 3)) for i in range(40)]
    found = said([operator("a", 1.0, 0.5), *small])
    assert found[-1].startswith("40 operators with fewer multiply-adds take at most 0.01 ms each")
    assert found[-1].endswith("together 0.4 ms.")
    assert why.suggestion(small, QUICKEST) is None


def test_changes_of_layout_are_counted() -> None:
    reorder = plain("a", "Reorder", 0.05, 0.3, nodes_dense=1, nodes_pruned=12)
    assert said([*PROPORTIONAL, reorder])[-1] == (
        "Changes between memory layouts take 0.3 ms of 1.32 ms in the pruned model (12 of them), 0.05 ms in the dense "
        "one (1)."
    )
    both = plain("a", "Reorder", 0.3, 0.3, nodes_dense=12, nodes_pruned=12)
    assert len(said([*PROPORTIONAL, both])) == 2


def test_operators_without_multiply_adds_are_told() -> None:
    operators = [*PROPORTIONAL, plain("n", "Softmax", 0.5, 0.5), plain("n", "Add", 0.1, 0.1, block=None)]
    assert said(operators)[-1] == (
        "Operators that do no multiply-adds, above all Softmax and Add, take 0.6 ms of 1.62 ms in the pruned model and "
        "0.6 ms of 2.6 ms in the dense one."
    )


def test_the_costliest_reasons_come_first_and_there_are_five_sentences_at_most() -> None:
    operators = [
        *PROPORTIONAL,
        odd("c", 0.5, 1.0),
        operator("d", 1.0, 0.76),
        plain("a", "Reorder", 0.0, 0.4, nodes_pruned=9),
        plain("n", "Softmax", 0.5, 0.5),
    ]
    found = said(operators)
    assert len(found) == 5
    assert "no multiple of 8" in found[3] and "memory layouts" in found[4]


def test_a_profile_of_nothing_says_nothing_that_was_not_measured() -> None:
    assert len(said([])) == 1 and said([])[0].endswith("2.10).")
    assert why.suggestion([], QUICKEST) is None
