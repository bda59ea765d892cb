"""What is said of runs, groups, selectors and results: the words, literally."""

from __future__ import annotations

import pytest
import torch

from ispasp import figures, narrative, selectors, stories, vocabulary
from ispasp.figures import GroupState
from ispasp.settings import RECONSTRUCTIONS
from ispasp.vocabulary import Way, selector_words
from tests.small_records import FIRST, REPORT, SECOND, THIRD, TRACE, iteration, pruned, started


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


def test_where_every_group_is_a_candidate_the_story_says_that_all_were_compared() -> None:
    only = iteration(1, tuple(range(6)), (5,), converged=True)
    begun = started(6, 1, decides=True, kind="head")
    stays, goes = (stories.group_story(group, [only], 1, begun) for group in (5, 3))
    assert (
        stays.reason
        == "Every head was compared; by hidden sum it is the 1st of 6 heads; only the first stays."
    )
    assert goes.reason == (
        "Every head was compared; by hidden sum it is only the 3rd of 6 heads; only the first stays."
    )


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


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.152, 0.058, "Re-fit at the end, asymmetric: error 0.152 → 0.058 of its target, 62 % less."),
        (0.15, 0.0001, "Re-fit at the end, asymmetric: error 0.150 → 0.0001 of its target, over 99 % less."),
        (0.15, 0.15, "Re-fit at the end, asymmetric: error stays at 0.150 of its target."),
        (
            0.412,
            0.058,
            "Re-fit at the end, asymmetric: error 0.412 → 0.058 of its target, 86 % less. "
            "What is above the residual comes from the blocks before.",
        ),
        (None, None, ""),
    ],
)
def test_the_re_fit_in_a_sentence(before: float | None, after: float | None, words: str) -> None:
    assert narrative.refit_sentence(pruned(before, after)) == words
    assert narrative.refit_sentence(None) == ""


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


def test_a_ratio_that_moved_by_less_than_a_tenth_is_no_remark() -> None:
    """A hundredth is much for a small ratio and nothing for a large one."""
    slightly = [{"name": "a", "groups": 1000, "kept": 508}]
    assert narrative.remarks({**REPORT, "blocks": slightly}, 0.5) == []
    (said,) = narrative.remarks({**REPORT, "blocks": [{"name": "a", "groups": 1000, "kept": 24}]}, 0.02)
    assert "a keeps 24 of 1,000" in said


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
    assert narrative.quantity(4_800, beside=813_000) == "4.8 k"  # not 0.0048 M


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.42, "0.4 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s")]
)
def test_duration(seconds: float, words: str) -> None:
    assert narrative.duration(seconds) == words


def test_significant() -> None:
    values = (0.0123456, 0.643, 10.0, 99.94, 99.96, 1222.4)
    assert [narrative.significant(value) for value in values] == [
        "0.0123",
        "0.643",
        "10",
        "99.9",
        "100",
        "1,222",
    ]


def test_ordinal() -> None:
    assert [narrative.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102, 113)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "102nd", "113th",
    ]  # fmt: skip
