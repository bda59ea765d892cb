"""Records as HTML tables and the progress bar."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import ispasp
from ispasp import display
from ispasp.records import Block, BlockStarted, Distilled, Event, Progress, Started
from ispasp.result import PruneResult
from tests import small_records
from tests.small_records import FIRST, SECOND, THIRD, TRACE

NASTY = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """Rows of cells and the words of a page; refuses tags that are not closed in order."""

    def __init__(self, shown: object) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(shown._repr_html_())  # type: ignore[attr-defined]
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        assert tag in {"div", "b", "code", "span", "table", "thead", "tbody", "tr", "th", "td"}, tag
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def result() -> PruneResult:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    data = [(torch.randn(40, 6), torch.randint(0, 3, (40,)))]
    options = {"multiple": 1, "reconstruct": "asymmetric", "device": "cpu", "evaluation": data}
    return ispasp.prune(model, data, 0.25, **options)


def test_a_result_is_dense_against_pruned_and_every_block(result: PruneResult) -> None:
    page = Page(result)
    head, dense, pruned = page.rows[:3]
    assert head == ["Model", "Parameters", "MACs per example", "Accuracy", "Agreement"]
    report = result.report
    assert dense[:2] == ["dense", str(report["params_before"])]
    assert pruned[0] == "pruned and re-fitted" and pruned[1].startswith(f"{report['params_after']}, −")
    assert pruned[4] == f"{100 * report['agreement']:.1f} %"
    blocks = page.rows[4:]
    assert [row[:2] for row in blocks] == [["0", "4 of 16 neurons"], ["2", "3 of 12 neurons"]]
    assert [row[5] for row in blocks] == ["asymmetric", "asymmetric"]
    assert "keep 0.25" in page.words and "a model from Python" in page.words
    assert repr(result).startswith("PruneResult(settings=")
    assert Page(ispasp.Finished(result)).rows == page.rows
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(ispasp.result.RunRecord)}
    assert Page(ispasp.result.RunRecord(**fields)).rows == page.rows


def test_what_a_run_was_told_and_warned_of_is_told(result: PruneResult) -> None:
    settings = {
        **result.settings, "model": "mnist_mlp", "keep_by_block": {"0": 0.9}, "notes": ["Two files were skipped."],
    }  # fmt: skip
    page = Page(dataclasses.replace(result, settings=settings))
    assert "Two files were skipped." in page.words and "0 keeps 4 of 16 (0.25 instead of 0.90)" in page.words
    assert "mnist_mlp" in page.words and "MACs per image" in page.rows[0]


def test_an_iteration_is_its_sentence_and_its_sets() -> None:
    page = Page(FIRST)
    assert "Iteration 1: 2 of 6 groups chosen; residual 0.157 of the block's output." in page.words
    assert page.rows[1:] == [
        ["selected", "2", "2–3"], ["added", "2", "2–3"], ["dropped", "0", "none"], ["candidates", "4", "0–3"],
    ]  # fmt: skip
    assert "Iteration 2: 2 groups in, 2 out; residual 0.149." in Page(SECOND).words
    assert "Iteration 3: no group changed; residual 0.149; converged." in Page(THIRD).words
    assert repr(FIRST).startswith("Iteration(block='layer1.0.conv1', t=1")


def test_all_iterations_of_a_block() -> None:
    said = display.iterations_html(TRACE, small_records.started(6, 2))
    assert "Iteration 2: 2 channels in, 2 out; residual 0.157 → 0.149." in said
    many = [dataclasses.replace(SECOND, t=t) for t in range(1, 101)]
    said = display.iterations_html(many, small_records.started(6, 2), "obs")
    assert "76 more iterations" in said and "Iteration 100:" in said and "Iteration 50:" not in said


def test_blocks_are_a_list_that_shows_itself() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    found = ispasp.find_blocks(model, torch.zeros(2, 4))
    assert found == list(found) and isinstance(found, list)
    page = Page(found)
    assert page.rows[1] == ["0", "6 neurons", "2", "yes"]
    assert page.rows[2][:3] == ["2", "2 neurons", "–"] and page.rows[2][3].startswith("no: ")
    assert "1 of 2 blocks can be pruned" in page.words
    assert "0 (producer), 2 (consumer)" in Page(found[0]).words


def test_the_other_events() -> None:
    started = small_records.started(6, 2, decides=True)
    assert "Block 1 of 1, layer1.0.conv1: 2 of 6 channels will stay. Every group" in Page(started).words
    assert Page(Started((started.block,), (2,))).rows[1] == ["layer1.0.conv1", "2 of 6 channels"]
    done = Page(small_records.pruned(0.4, 0.1))
    assert done.rows[1][1:] == ["2 of 6 channels", "", "3", "0.149", "asymmetric", "0.400 → 0.100", "0.200"]
    assert "Kept: 4–5" in done.words and "75 % less" in done.words
    assert "Re-fit" not in Page(small_records.pruned(None, None)).words
    assert "10 steps: objective 2 → 1" in Page(Distilled(10, 2.0, 1.0, 0.1)).words


def test_words_from_outside_are_no_html(result: PruneResult) -> None:
    block = Block(NASTY, 6, prunable=False, reason=NASTY, kind=NASTY)
    shown: list[object] = [
        block,
        Started((block,), (2,)),
        BlockStarted(block, 0, 1, 2, False, torch.zeros(1)),
        dataclasses.replace(small_records.pruned(0.4, 0.1, notes=(NASTY,)), block=block, target=NASTY),
        dataclasses.replace(FIRST, block=NASTY),
        dataclasses.replace(
            result, settings={**result.settings, "model": NASTY, "selector": "ispasp", "notes": [NASTY]}
        ),
    ]
    for one in shown:
        assert NASTY in Page(one).words


@pytest.mark.parametrize(
    ("groups", "said"),
    [((), "none"), ((5,), "5"), ((0, 1, 2, 4, 6, 7), "0–2, 4, 6–7"), (tuple(range(0, 60, 2)), ", 46, …")],
)
def test_sets_in_short(groups: tuple[int, ...], said: str) -> None:
    assert display.in_short(groups).endswith(said)


def test_the_bar_passes_events_on_and_says_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = [Progress(0.25, "tracing the model"), FIRST, Progress(1.0, "finished")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(display.watched(events)) == events
    said = capsys.readouterr().err
    assert "100%" in said and "finished" in said


def test_leaving_the_loop_ends_the_work() -> None:
    ended = []

    def work() -> Iterator[Event]:
        try:
            while True:
                yield Progress(0.5, "working")
        finally:
            ended.append(True)

    bar = display.watched(work())
    next(bar)
    bar.close()  # type: ignore[attr-defined]
    assert ended
