"""Figures: assertions on the info and on what the figure is made of, never on pixels."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from ispasp import figures, narrative, pictures
from ispasp.figures import LOOKS, GroupState
from ispasp.records import Block, BlockPruned, BlockStarted, Iteration


def started(groups: int, keep: int, decides: bool = False, kind: str = "channel") -> BlockStarted:
    block = Block("layer1.0.conv1", groups, kind=kind, prunable=True, consumers=("layer1.0.conv2",))
    return BlockStarted(block, 0, 1, keep, decides, torch.zeros(2, groups, 4, 4, dtype=torch.float16))


def iteration(
    t: int,
    candidates: tuple[int, ...],
    selected: tuple[int, ...],
    before: tuple[int, ...] = (),
    groups: int = 6,
    relative: float = 0.5,
    converged: bool = False,
) -> Iteration:
    added = tuple(sorted(set(selected) - set(before)))
    dropped = tuple(sorted(set(before) - set(selected)))
    importance = torch.arange(groups, dtype=torch.float64).flip(0)  # group 0 matters most
    hidden = torch.arange(groups, dtype=torch.float64)  # the last group has the largest hidden sum
    return Iteration(
        "layer1.0.conv1",
        t,
        importance,
        hidden,
        candidates,
        selected,
        added,
        dropped,
        relative,
        relative,
        converged,
        0.1,
    )


FIRST = iteration(1, (0, 1, 2, 3), (2, 3), relative=0.157)
SECOND = iteration(2, (0, 4, 5, 1), (4, 5), before=(2, 3), relative=0.149)
THIRD = iteration(3, (0, 1, 4, 5), (4, 5), before=(4, 5), relative=0.149, converged=True)
TRACE = [FIRST, SECOND, THIRD]


def test_group_states_name_every_case() -> None:
    kept, added, dropped, candidate, out = (
        GroupState.KEPT,
        GroupState.ADDED,
        GroupState.DROPPED,
        GroupState.CANDIDATE,
        GroupState.OUT,
    )
    assert list(figures.group_states(FIRST)) == [candidate, candidate, added, added, out, out]
    assert list(figures.group_states(SECOND)) == [candidate, candidate, dropped, dropped, added, added]
    assert list(figures.group_states(THIRD)) == [candidate, candidate, out, out, kept, kept]
    assert figures.group_states(FIRST).dtype == np.uint8


def test_a_block_of_one_iteration_has_only_kept_groups() -> None:
    only = iteration(1, tuple(range(6)), (3, 4), converged=True)
    assert set(figures.group_states(only)) == {GroupState.CANDIDATE, GroupState.KEPT}
    assert LOOKS[GroupState.ADDED].title(1) == "chosen" and LOOKS[GroupState.ADDED].title(2) == "newly added"


def test_a_dropped_candidate_counts_as_dropped() -> None:
    only = iteration(2, (0, 1, 4, 5), (4, 5), before=(0, 5))
    assert figures.group_states(only)[0] == GroupState.DROPPED


def test_states_differ_in_colour_and_in_symbol() -> None:
    for what in ("light", "dark", "symbol", "pattern", "mark", "label"):
        values = [getattr(look, what) for look in LOOKS.values()]
        assert len(set(values)) == len(GroupState), what


@pytest.mark.parametrize("dark", [False, True])
def test_colours_stand_out_from_the_ground(dark: bool) -> None:
    """At least 3 to 1, as WCAG asks of graphics, but for the groups that are out: they stay back."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    ground = luminance("#10161d" if dark else "#ffffff")
    for state, look in LOOKS.items():
        bright, dim = sorted([luminance(look.colour(dark)), ground], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= (2.4 if state is GroupState.OUT else 3), look.label


@pytest.mark.parametrize(("groups", "rows"), [(16, 1), (64, 1), (65, 2), (1024, 16)])
def test_the_map_wraps_and_stays_small(groups: int, rows: int) -> None:
    trace = [iteration(t, (0, 1), (1,), (1,) if t > 1 else (), groups) for t in range(1, 21)]
    info = figures.map_info(started(groups, 1), trace)
    assert (info.rows, info.states.shape, info.states.dtype) == (rows, (20, groups), np.uint8)
    figure = figures.map_figure(info)
    assert sum(len(trace.x) for trace in figure.data) == 20 * groups
    for drawn in figure.data:
        assert isinstance(drawn, go.Scattergl) and drawn.x.dtype == np.uint8
        assert len(drawn.x) == 0 or drawn.x.max() < figures.WRAP


def test_every_square_of_the_map_stands_where_its_group_is() -> None:
    info = figures.map_info(started(130, 1), [iteration(1, (0, 129), (129,), groups=130)])
    figure = figures.map_figure(info)
    added = next(trace for trace in figure.data if trace.name == LOOKS[GroupState.ADDED].label)
    assert (added.x[0], added.y[0], tuple(added.customdata[0])) == (1, 2, (129, 1))


def test_an_empty_trace_gives_an_empty_map() -> None:
    info = figures.map_info(started(16, 8), [])
    assert info.states.shape == (0, 16)
    assert all(len(trace.x) == 0 for trace in figures.map_figure(info).data)


def test_residual_info() -> None:
    info = figures.residual_info(TRACE)
    assert list(info.t) == [1, 2, 3] and info.converged == 3
    assert info.relative == pytest.approx([0.157, 0.149, 0.149])
    line = figures.residual_figure(info).data[0]
    assert list(line.text) == ["0.157", "0.149", "0.149"]
    assert list(line.marker.symbol) == ["circle", "circle", "diamond"]
    assert figures.residual_info([FIRST]).converged is None


def test_score_info_has_both_limits_and_orders() -> None:
    info = figures.score_info(started(6, 2), SECOND)
    assert info.candidate_limit == 0 and info.selected_limit == 4
    assert list(info.order) == [0, 1, 2, 3, 4, 5]
    assert list(figures.score_info(started(6, 2), SECOND, "hidden sum").order) == [5, 4, 3, 2, 1, 0]
    assert list(figures.score_info(started(6, 2), SECOND, "importance").order) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="by 'size'"):
        figures.score_info(started(6, 2), SECOND, "size")


@pytest.mark.parametrize("by", ["number", "hidden sum"])
def test_every_bar_stands_for_its_group(by: str) -> None:
    figure = figures.score_figure(figures.score_info(started(6, 2), SECOND, by), selected=4)
    bars = [trace for trace in figure.data if isinstance(trace, go.Bar)]
    heights = {
        (int(g), i % 2): float(y)
        for i, bar in enumerate(bars)
        for g, y in zip(bar.customdata, bar.y, strict=True)
    }
    assert heights == {(g, row): float(5 - g if row == 0 else g) for g in range(6) for row in (0, 1)}
    assert {bar.width for bar in bars} == {0.85}
    places = {int(g): int(x) for bar in bars for g, x in zip(bar.customdata, bar.x, strict=True)}
    assert places[5] == (5 if by == "number" else 0)


def test_blocks_figure_shows_residual_and_drift() -> None:
    block = started(6, 2).block
    pruned = [BlockPruned(block, 0, (4, 5), 3, 0.149, 0.2, 1.0)]
    bar, line = figures.blocks_figure(pruned).data
    assert bar.y[0] == pytest.approx(0.149) and line.y[0] == pytest.approx(0.2)


REPORT = {
    "params_before": 270_000,
    "params_after": 140_000,
    "macs_before": 41_000_000,
    "macs_after": 21_000_000,
    "accuracy_before": 0.879,
    "accuracy_after": 0.841,
    "agreement": 0.902,
    "blocks": [
        {"name": "a", "groups": 16, "kept": 8},
        {"name": "b", "groups": 8, "kept": 8},
        {"name": "c", "groups": 20, "kept": 8},
    ],
}


def test_comparison_figure_is_per_cent_of_dense() -> None:
    dense, pruned = figures.comparison_figure(REPORT).data
    assert list(dense.x) == [100, 100] and list(pruned.y) == ["parameters", "MACs"]
    assert pruned.x == pytest.approx([51.85, 51.22], abs=0.01)


def test_latency_figure_reaches_to_the_95th_percentile() -> None:
    latency = {
        "batch": 1,
        "dense": {"median_ms": 1.9, "p95_ms": 2.1},
        "pruned": {"median_ms": 1.2, "p95_ms": 1.3},
    }
    (bar,) = figures.latency_figure(latency).data
    assert list(bar.y) == ["dense: 1.9 ms", "pruned: 1.2 ms"]
    assert bar.x == pytest.approx([1.9, 1.2]) and bar.error_x.array == pytest.approx([0.2, 0.1], abs=1e-6)


# -- words ----------------------------------------------------------------------------------------------


def test_sentences() -> None:
    begun = started(6, 2)
    assert narrative.sentence(FIRST, None, begun) == (
        "Iteration 1: 2 of 6 channels chosen; residual 0.157 of the block's output."
    )
    assert narrative.sentence(SECOND, FIRST, begun) == (
        "Iteration 2: 2 channels in, 2 out; residual 0.157 → 0.149."
    )
    assert narrative.sentence(THIRD, SECOND, begun) == (
        "Iteration 3: no channel changed; residual stays at 0.149; converged."
    )
    assert figures.sentence is narrative.sentence


def test_a_sentence_says_when_one_iteration_decides() -> None:
    only = iteration(1, tuple(range(6)), (3, 4, 5), converged=True)
    words = narrative.sentence(only, None, started(6, 3, decides=True), candidate_factor=2)
    assert words.endswith(
        "converged. Every channel was a candidate (2 × 3 ≥ 6), so this one iteration decides."
    )
    everything = iteration(1, tuple(range(6)), tuple(range(6)), converged=True)
    assert narrative.sentence(everything, None, started(6, 6, decides=True)).endswith(
        "The keep ratio keeps every channel of this block."
    )


def test_group_stories_follow_the_steps_of_the_algorithm() -> None:
    begun = started(6, 2)
    stays = narrative.group_story(4, TRACE, 3, begun)
    assert (stays.kept, stays.headline) == (True, "Kept since iteration 2")
    assert (stays.importance_rank, stays.hidden_rank) == (5, 2)
    assert (
        "a candidate by its importance" in stays.reason and "2nd of the 4 channels compared" in stays.reason
    )
    goes = narrative.group_story(2, TRACE, 3, begun)
    assert (goes.kept, goes.headline) == (False, "Dropped in iteration 2")
    assert "no candidate: its importance is the 3rd of 6" in goes.reason
    small = narrative.group_story(0, TRACE, 1, begun)
    assert small.headline == "Not kept" and "only the 4th of the 4 channels compared" in small.reason


def test_a_selected_group_that_is_no_candidate_any_more() -> None:
    later = iteration(2, (0, 1), (2, 3), before=(2, 3))
    story = narrative.group_story(3, [FIRST, later], 2, started(6, 2))
    assert story.headline == "Kept since iteration 1" and "no candidate, but selected before" in story.reason


def test_comparisons_are_ready_to_read() -> None:
    rows = {row.label: row for row in narrative.comparisons(REPORT)}
    assert rows["Parameters"][1:] == ("0.27 M", "0.14 M", "−48 %", True)
    assert rows["MACs per image"][1:] == ("41 M", "21 M", "−49 %", True)
    assert rows["Accuracy"][1:] == ("87.9 %", "84.1 %", "−3.8 points", False)
    assert rows["Agreement"].pruned == "90.2 %"


def test_result_rows_wait_for_the_export() -> None:
    dense, pruned = narrative.result_rows(REPORT)
    assert (dense["Parameters"], pruned["Parameters"]) == ("0.27 M", "0.14 M, −48 %")
    assert (dense["Agreement"], pruned["Agreement"]) == ("–", "90.2 %")
    assert dense["Latency"] == pruned["File size"] == "after export"
    export = {
        "latency": {"dense": {"median_ms": 1.9}, "pruned": {"median_ms": 1.2}, "ratio": 1.58},
        "dense_onnx": {"bytes": 1_110_000},
        "onnx": {"bytes": 590_000},
    }
    dense, pruned = narrative.result_rows(REPORT, export)
    assert (dense["Latency"], pruned["Latency"]) == ("1.9 ms", "1.2 ms, 1.58×")
    assert (dense["File size"], pruned["File size"]) == ("1.11 MB", "0.59 MB")


def test_remarks_name_blocks_that_kept_everything_and_moved_ratios() -> None:
    whole, moved = narrative.remarks(REPORT, 0.5)
    assert "(b)" in whole and "keeps all of its groups" in whole
    assert "c keeps 8 of 20 (0.40 instead of 0.50)" in moved and "a keeps" not in moved
    assert narrative.remarks(REPORT, 0.5, {"b": 1.0, "c": 0.4}) == []


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "7"),
        (1234, "1.23 k"),
        (99_000, "99 k"),
        (272_474, "0.272 M"),
        (40_800_000, "40.8 M"),
        (3.68e9, "3.68 G"),
    ],
)
def test_quantity(value: float, words: str) -> None:
    assert narrative.quantity(value) == words


def test_quantities_side_by_side_have_the_same_prefix() -> None:
    assert narrative.quantity(75_000, beside=272_000) == "0.075 M"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.42, "0.4 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s")]
)
def test_duration(seconds: float, words: str) -> None:
    assert narrative.duration(seconds) == words


def test_ordinal() -> None:
    assert [narrative.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102, 113)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "102nd", "113th",
    ]  # fmt: skip


# -- pictures -------------------------------------------------------------------------------------------


def test_signed_picture_has_white_for_zero_and_two_ends() -> None:
    image = pictures.signed_picture(np.array([[-2.0, 0.0, 2.0]]), side=3)
    assert image.shape == (1, 3, 3) and image.dtype == np.uint8
    assert tuple(image[0, 1]) == (255, 255, 255)
    blue, orange = image[0, 0], image[0, 2]
    assert blue[2] > blue[0] and orange[0] > orange[2]


def test_map_picture_is_black_at_zero_and_white_at_the_limit() -> None:
    image = pictures.map_picture(np.array([[0.0, 1.0], [2.0, -1.0]]), limit=2.0, side=2)
    assert [int(v) for v in image[..., 0].ravel()] == [0, 127, 255, 0]


def test_pictures_of_nothing_do_not_divide_by_zero() -> None:
    assert pictures.map_picture(np.zeros((2, 2)), side=2).max() == 0
    assert pictures.signed_picture(np.full((1, 1), np.nan), side=1).min() == 255


def test_filter_sheets() -> None:
    assert pictures.filter_sheet(np.ones((16, 3, 3)), side=36, columns=8).shape == (
        2 * 36 + 4,
        8 * 36 + 7 * 4,
        4,
    )
    assert pictures.filter_sheet(np.arange(784.0), side=28).shape == (112, 112, 3)
    assert pictures.filter_sheet(np.arange(6.0), side=6).shape == (4, 24, 3)
    assert pictures.filter_sheet(np.ones((200, 1, 1)), side=4, columns=8, most=64).shape[0] == 8 * 4 + 7 * 4


def test_photo_takes_grey_and_colour() -> None:
    assert pictures.photo(np.zeros((1, 28, 28), dtype=np.uint8), side=56).shape == (56, 56, 3)
    assert pictures.photo(np.zeros((3, 32, 32), dtype=np.uint8), side=32).shape == (32, 32, 3)
