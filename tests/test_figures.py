"""Figures: assertions on the info and on what the figure is made of, never on pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from ispasp import figures, narrative, pictures, selectors, stories, vocabulary
from ispasp.figures import LOOKS, GroupState
from ispasp.records import Block, BlockPruned, BlockStarted, Cut, Iteration
from ispasp.settings import RECONSTRUCTIONS
from ispasp.vocabulary import Way, selector_words


def started(groups: int, keep: int, decides: bool = False, kind: str = "channel") -> BlockStarted:
    block = Block(
        "layer1.0.conv1", groups, kind=kind, prunable=True, cuts=(Cut("layer1.0.conv2", "consumer"),)
    )
    return BlockStarted(block, 0, 1, keep, decides, torch.zeros(2, groups, 4, 4, dtype=torch.float16))


def iteration(
    t: int,
    candidates: tuple[int, ...],
    selected: tuple[int, ...],
    before: tuple[int, ...] = (),
    groups: int = 6,
    relative: float = 0.5,
    converged: bool = False,
    score: torch.Tensor | None = None,
    importance: torch.Tensor | None = None,
) -> Iteration:
    added = tuple(sorted(set(selected) - set(before)))
    dropped = tuple(sorted(set(before) - set(selected)))
    if importance is None:
        importance = torch.arange(groups, dtype=torch.float64).flip(0)  # group 0 matters most
    hidden = torch.arange(groups, dtype=torch.float64)  # the last group has the largest hidden sum
    return Iteration(
        "layer1.0.conv1",
        t,
        importance,
        hidden,
        hidden if score is None else score,
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
    assert info.titles == ("importance", "hidden sum") and info.limits == (0, 4)
    assert list(info.order) == [0, 1, 2, 3, 4, 5]
    assert list(figures.score_info(started(6, 2), SECOND, "score").order) == [5, 4, 3, 2, 1, 0]
    assert list(figures.score_info(started(6, 2), SECOND, "importance").order) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="by 'size'"):
        figures.score_info(started(6, 2), SECOND, "size")


@pytest.mark.parametrize("by", ["number", "score"])
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


def test_a_selector_with_one_score_has_one_panel() -> None:
    norm = torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0], dtype=torch.float64)
    only = iteration(1, tuple(range(6)), (3, 4), converged=True, score=norm, importance=norm)
    info = figures.score_info(started(6, 2), only, "score", "l1")
    assert info.titles == ("L1 weight norm",) and info.limits == (5,)
    assert list(info.order) == [3, 4, 5, 0, 2, 1]
    assert set(info.states) == {GroupState.KEPT, GroupState.OUT}  # nothing is a mere candidate
    figure = figures.score_figure(info)
    assert sum(len(bar.x) for bar in figure.data) == 6
    greedy = figures.score_info(started(6, 2), iteration(1, (3,), (3,), score=norm), selector="gfs")
    assert greedy.titles == ("greedy gain",) and greedy.limits == (None,)


def test_blocks_figure_shows_residual_and_drift() -> None:
    block = started(6, 2).block
    pruned = [BlockPruned(block, 0, (4, 5), 3, 0.149, 0.2, 1.0)]
    bar, line = figures.blocks_figure(pruned).data
    assert bar.y[0] == pytest.approx(0.149) and line.y[0] == pytest.approx(0.2)


REPORT: dict[str, Any] = {
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
        "all 6 channels stay; the keep ratio asks for every one."
    )


def test_group_stories_follow_the_steps_of_the_algorithm() -> None:
    begun = started(6, 2)
    stays = stories.group_story(4, TRACE, 3, begun)
    assert (stays.kept, stays.headline) == (True, "Kept since iteration 2")
    assert stays.ranks == "Importance 5th, hidden sum 2nd of 6 channels."
    assert (
        "a candidate by its importance" in stays.reason and "2nd of the 4 channels compared" in stays.reason
    )
    goes = stories.group_story(2, TRACE, 3, begun)
    assert (goes.kept, goes.headline) == (False, "Dropped in iteration 2")
    assert "no candidate: its importance is the 3rd of 6" in goes.reason
    small = stories.group_story(0, TRACE, 1, begun)
    assert small.headline == "Not kept" and "only the 4th of the 4 channels compared" in small.reason


def test_a_selected_group_that_is_no_candidate_any_more() -> None:
    later = iteration(2, (0, 1), (2, 3), before=(2, 3))
    story = stories.group_story(3, [FIRST, later], 2, started(6, 2))
    assert story.headline == "Kept since iteration 1" and "no candidate, but selected before" in story.reason


def scored(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_selector_and_re_fit_has_words() -> None:
    titles = [selector_words(name).title for name in selectors.names()]
    assert len(set(titles)) == len(titles) and set(titles).isdisjoint(selectors.names())
    for name in selectors.names():
        words = selector_words(name)
        assert words.line.endswith(".") and words.score != "score" and len(words.line) <= 100, name
        assert set(figures.legend(name, 1)) <= set(GroupState)
        once = "once" in words.line
        assert once == (words.way is Way.RANKS), name
    assert "uses labels" in selector_words("taylor").line
    for name in RECONSTRUCTIONS:
        title, line = vocabulary.refit_words(name)
        assert title.startswith(name) and line.endswith(".")


def test_a_selector_without_words_goes_by_its_name_and_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine() -> None:
        """Keeps what I like.

        More about it.
        """

    monkeypatch.setitem(selectors.SELECTORS, "mine", mine)
    assert selector_words("mine")[:2] == ("mine", "Keeps what I like.")
    said = narrative.sentence(SECOND, FIRST, started(6, 2), selector="mine")
    assert said == "Iteration 2: 2 channels in, 2 out; residual 0.157 → 0.149."
    assert "by score it is the 2nd" in stories.group_story(4, TRACE, 2, started(6, 2), "mine").reason


def test_a_selector_that_ranks_says_so() -> None:
    norm = scored(3, 1, 2, 6, 5, 4)
    only = iteration(1, tuple(range(6)), (3, 4), relative=0.31, converged=True, score=norm, importance=norm)
    begun = started(6, 2, decides=True)
    assert narrative.sentence(only, None, begun, 2, "l2") == (
        "Iteration 1: 2 of 6 channels chosen by L2 weight norm; residual 0.310 of the block's output. "
        "It ranks the channels once, so this is all."
    )
    stays, goes = (stories.group_story(group, [only], 1, begun, "l2") for group in (4, 0))
    assert stays == (
        True,
        "Kept",
        "By L2 weight norm it is the 2nd of 6 channels; the first 2 stay.",
        "L2 weight norm 2nd of 6 channels.",
    )
    assert goes.headline == "Not kept" and "only the 4th of 6 channels" in goes.reason


GREEDY = [
    iteration(1, (3,), (3,), relative=0.8, score=scored(3, 1, 2, 9, 5, 4)),
    iteration(2, (4, 5), (3, 4, 5), (3,), relative=0.5, converged=True, score=scored(1, 1, 1, 9, 5, 4)),
]


def test_greedy_selection_reads_from_few_to_many() -> None:
    begun = started(6, 3)
    assert narrative.sentence(GREEDY[0], None, begun, 2, "gfs") == (
        "Iteration 1: 1 channel chosen; residual 0.800 of the block's output; 1 of 3 chosen so far."
    )
    assert narrative.sentence(GREEDY[1], GREEDY[0], begun, 2, "gfs") == (
        "Iteration 2: 2 channels more; residual 0.800 → 0.500; all 3 are chosen."
    )
    told = {
        (group, t): stories.group_story(group, GREEDY, t, begun, "gfs")
        for group, t in ((3, 2), (4, 2), (4, 1), (0, 2))
    }
    assert told[3, 2][:3] == (
        True,
        "Kept since iteration 1",
        "As the first channel, it lowered the residual more than any other.",
    )
    assert "Beside the 1 channel chosen before, it was one of the 2" in told[4, 2].reason
    assert "its turn comes in iteration 2" in told[4, 1].reason
    assert "until all 3 were chosen" in told[0, 2].reason and told[0, 2].headline == "Not kept"
    assert told[0, 2].ranks == "Greedy gain 4th of 6 channels."
    kept, added, out = GroupState.KEPT, GroupState.ADDED, GroupState.OUT
    assert list(figures.group_states(GREEDY[1], "gfs")) == [out, out, out, kept, added, added]


BACKWARD = [
    iteration(1, (0, 1), (2, 3, 4, 5), tuple(range(6)), relative=0.1, score=scored(1, 2, 3, 4, 5, 6)),
    iteration(2, (2,), (3, 4, 5), (2, 3, 4, 5), relative=0.2, converged=True, score=scored(1, 2, 3, 5, 6, 7)),
]


def test_backward_elimination_reads_from_many_to_few() -> None:
    begun = started(6, 3)
    assert narrative.sentence(BACKWARD[0], None, begun, 2, "obs") == (
        "Iteration 1: 2 channels removed; residual 0.100 of the block's output; 4 of 6 left, 3 will stay."
    )
    assert narrative.sentence(BACKWARD[1], BACKWARD[0], begun, 2, "obs") == (
        "Iteration 2: 1 channel removed; residual 0.100 → 0.200; the 3 left stay."
    )
    told = {
        (group, t): stories.group_story(group, BACKWARD, t, begun, "obs")
        for group, t in ((5, 2), (2, 1), (2, 2), (0, 2))
    }
    assert told[5, 2].headline == "Kept" and "another had a smaller removal cost" in told[5, 2].reason
    assert told[2, 1].kept and "it is removed in iteration 2" in told[2, 1].reason
    assert told[2, 2][:3] == (
        False,
        "Removed in iteration 2",
        "Of the 4 left, it had the smallest removal cost.",
    )
    assert told[0, 2].headline == "Removed in iteration 1"
    assert told[0, 2].reason == "Of the 6 left, it was one of the 2 with the smallest removal cost."
    kept, dropped, out = GroupState.KEPT, GroupState.DROPPED, GroupState.OUT
    assert list(figures.group_states(BACKWARD[0], "obs")) == [dropped, dropped, kept, kept, kept, kept]
    assert list(figures.group_states(BACKWARD[1], "obs")) == [out, out, dropped, kept, kept, kept]


def test_cosamp_may_stay_with_what_it_has() -> None:
    first = iteration(1, (0, 1, 2, 3), (2, 3), score=scored(0, 1, 2, 3, 0, 0))
    # Groups 4 and 5 weigh more in the fit, but a re-fit on them is no better, so the set stays.
    last = iteration(2, (4, 5), (2, 3), (2, 3), converged=True, score=scored(0, 0, 1, 2, 5, 6))
    begun = started(6, 2)
    for group, said in ((5, "it is the 1st of the 4"), (2, "it is the 4th of the 4")):
        story = stories.group_story(group, [first, last], 2, begun, "cosamp")
        assert said in story.reason and "fits no better than the last one" in story.reason


@pytest.mark.parametrize("name", ["ispasp", "ispasp-contribution", "cosamp"])
def test_where_every_group_is_a_candidate_one_iteration_decides(name: str) -> None:
    assert narrative.decided_at_once([(16, 8), (32, 16)], 2, name).startswith(
        "One iteration decides in every block: 2"
    )
    assert "in 1 of 2 blocks" in narrative.decided_at_once([(16, 8), (32, 8), (4, 4)], 2, name)
    assert narrative.decided_at_once([(16, 4), (4, 4)], 2, name) == ""
    assert (
        narrative.decided_at_once([(16, 8)], 2, "gfs") == narrative.decided_at_once([(16, 8)], 2, "l1") == ""
    )


def pruned(before: float | None, after: float | None, drift: float = 0.2, **more: object) -> BlockPruned:
    target = "none" if before is None else "asymmetric"
    return BlockPruned(
        started(6, 2).block,
        0,
        (4, 5),
        3,
        0.149,
        drift,
        1.0,
        target,
        before,
        after,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.412, 0.058, "Re-fit at the end, asymmetric: error 0.412 → 0.058 of its target, 86 % less."),
        (0.4, 0.0001, "Re-fit at the end, asymmetric: error 0.400 → 0.0001 of its target, over 99 % less."),
        (0.4, 0.4, "Re-fit at the end, asymmetric: error stays at 0.400 of its target."),
        (None, None, ""),
    ],
)
def test_the_re_fit_in_a_sentence(before: float | None, after: float | None, words: str) -> None:
    assert narrative.refit_sentence(pruned(before, after)) == words
    assert narrative.refit_sentence(None) == ""


def test_the_residual_figure_shows_the_re_fit_beside_the_iterations() -> None:
    info = figures.residual_info(TRACE, pruned(0.412, 0.058))
    assert info.refit == (0.412, 0.058) and figures.residual_info(TRACE, pruned(None, None)).refit is None
    line, refit = figures.residual_figure(info).data
    assert list(refit.text) == ["0.412", "0.058"] and min(refit.x) > max(line.x)
    assert list(figures.residual_figure(info).layout.xaxis.ticktext) == [
        "1",
        "2",
        "3",
        "before<br>re-fit",
        "after",
    ]


def test_of_many_iterations_only_the_ends_are_written_out() -> None:
    trace = [iteration(t, (0,), (0,), (0,), relative=1 / t) for t in range(1, 33)]
    figure = figures.residual_figure(figures.residual_info(trace))
    assert [note.text for note in figure.layout.annotations] == ["1.000", "0.0312"]
    assert len(figure.layout.xaxis.tickvals) == 7


def test_blocks_figure_shows_the_re_fit_and_takes_a_log_scale_where_it_must() -> None:
    one, other = pruned(0.4, 0.3), pruned(0.5, 0.001)
    info = figures.blocks_info([one])
    assert info.before == pytest.approx([0.4]) and info.after == pytest.approx([0.3]) and not info.log
    assert figures.blocks_info([one, other]).log
    figure = figures.blocks_figure([one, other])
    assert [trace.name for trace in figure.data if trace.name] == [
        "error before the re-fit", "error after the re-fit", "drift from the dense network",
    ]  # fmt: skip
    assert figure.layout.yaxis.type == "log"
    assert figures.blocks_info([pruned(None, None)]).before is None


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


DISTILLED = REPORT | {
    "distil": {
        "steps": 400, "objective_before": 0.31, "objective_after": 0.12, "seconds": 62.0, "accuracy_before": 0.709,
        "agreement_before": 0.75,
    },
}  # fmt: skip


def test_a_distilled_model_stands_beside_what_it_was_before() -> None:
    dense, before, after = narrative.result_rows(DISTILLED)
    assert [row["Model"] for row in (dense, before, after)] == ["dense", "pruned", "then distilled"]
    assert (before["Accuracy"], after["Accuracy"]) == ("70.9 %, −17.0 points", "84.1 %, −3.8 points")
    assert (before["Agreement"], after["Agreement"]) == ("75.0 %", "90.2 %")
    assert before["Parameters"] == after["Parameters"] and before["Latency"] == "as below"
    assert set(dense) == set(before) == set(after)
    assert (
        narrative.distil_sentence(DISTILLED)
        == "Distilled in 400 steps, 1 min 02 s: accuracy 70.9 % → 84.1 %."
    )
    unmeasured = {
        **DISTILLED,
        "accuracy_after": None,
        "distil": {**DISTILLED["distil"], "accuracy_before": None},
    }
    assert narrative.distil_sentence(unmeasured).endswith("objective 0.31 → 0.12.")
    assert narrative.distil_sentence(REPORT) == ""
    refitted = {**REPORT, "blocks": [{**REPORT["blocks"][0], "target": "symmetric"}]}
    assert narrative.model_stages(refitted) == ["dense", "pruned and re-fitted"]


def test_the_same_warning_of_several_blocks_is_said_once() -> None:
    blocks = [
        {**block, "kept": block["groups"], "notes": ["Few positions."]} for block in REPORT["blocks"][:2]
    ]
    assert narrative.remarks({**REPORT, "blocks": blocks}, 1.0) == ["a, b: Few positions."]


def test_rounding_down_to_a_whole_group_is_no_remark() -> None:
    blocks = [{"name": "a", "groups": 16, "kept": 6}]
    assert narrative.remarks({**REPORT, "blocks": blocks}, 0.4) == []


def test_what_was_shared_out_was_not_rounded() -> None:
    assert narrative.remarks(REPORT, 0.5, allocation="macs") == []


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
