"""What became of every layer: its sums are the run's report, its shapes those of the modules."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ispasp import prune, runs
from ispasp.calibration import read
from ispasp.deployment import diff_figures, model_diff, opened_run
from ispasp.deployment.model_diff import LayerDiff
from ispasp.errors import RunError, SettingError
from ispasp.run_settings import RunSettings


class Tied(nn.Module):
    """A parameter of its own, a module used twice, tied weights, a norm, and attention that is not pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(6))
        self.unused = nn.Linear(2, 2)
        self.wide = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.narrow = nn.Linear(16, 6)
        self.twice = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.twice.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrow(self.norm(self.wide(x + self.shift)).relu())
        return self.head(self.tied(self.twice(self.twice(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """``nn.MultiheadAttention`` computes its output projection itself; what takes its place calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]


def diff_of(model: nn.Module, example: torch.Tensor) -> list[LayerDiff]:
    """Prune half of a model and compare, the sums with the report."""
    model.eval()
    result = prune(model, [example], keep=0.5, multiple=1, device="cpu")
    blocks = [event.block for event in result.blocks_pruned]
    diffs = model_diff.model_diff(model, result.model, read([example])[0], blocks)
    assert model_diff.totals(diffs)._asdict() == {
        f"{what}_{when}": result.report[f"{what}_{when}"]
        for what in ("macs", "params")
        for when in ("before", "after")
    }
    return diffs


def test_shared_and_tied_layers_count_once_and_in_the_order_they_run() -> None:
    diffs = diff_of(Tied(), torch.randn(8, 6))
    assert [d.layer for d in diffs] == [
        "(model)", "unused", "wide", "norm", "narrow", "twice", "tied", "head",
    ]  # fmt: skip
    of = {d.layer: d for d in diffs}
    assert of["wide"] == LayerDiff("wide", "wide", "Linear", "producer", (16, 6), (8, 6), 96, 48, 112, 56)
    assert of["norm"] == LayerDiff("norm", "wide", "BatchNorm1d", "rider", (16,), (8,), 0, 0, 32, 16)
    assert of["narrow"].role == "consumer" and of["narrow"].pruned_shape == (6, 8)
    assert (of["twice"].macs_dense, of["twice"].params_dense) == (2 * 36, 42)
    assert (of["tied"].macs_dense, of["tied"].params_dense) == (36, 6)  # its weight is that of the other
    assert (of["unused"].macs_dense, of["unused"].params_dense, of["unused"].block) == (0, 6, None)
    assert of["(model)"].dense_shape == (6,) and of["(model)"].role == "other"
    assert {d.layer for d in diffs if d.changed} == {"wide", "norm", "narrow"}


def test_attention_that_is_replaced_is_compared_as_a_whole() -> None:
    diffs = diff_of(Transformer(), torch.randn(4, 5, 16))
    attention, projection = (d for d in diffs if "self_attn" in d.layer)
    assert attention.kind == "MultiheadAttention" and attention.role == "producer"
    assert (attention.dense_shape, attention.pruned_shape) == ((48, 16), (24, 16))
    # Three projections of 5 tokens and the output projection; scores and sums of the values, which torch 2.9 does not
    # count on a CPU.
    assert attention.macs_dense - 5 * 48 * 16 - 5 * 16 * 16 in (2 * 5 * 5 * 16, 0)
    assert 2 * attention.macs_pruned == attention.macs_dense
    assert (projection.role, projection.block) == ("consumer", attention.layer)
    assert (projection.macs_dense, projection.macs_pruned) == (0, 0)
    assert (projection.params_dense, projection.params_pruned) == (16 * 16 + 16, 16 * 8 + 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> opened_run.OpenedRun:
    folder = tmp_path_factory.mktemp("runs")
    settings = RunSettings("cifar10_resnet20", samples=32, evaluation=32, device="cpu", reconstruct="none")
    list(runs.execute(settings, folder, folder / "resnet"))
    opening = opened_run.open_run(folder / "resnet")
    while True:
        try:
            next(opening)
        except StopIteration as opened:
            return opened.value  # type: ignore[no-any-return]


def test_a_saved_run_is_compared_as_its_report_says_and_read_back(run: opened_run.OpenedRun) -> None:
    diffs = model_diff.of_run(run)
    assert model_diff.of_saved(run.path) == diffs
    report = run.result.report
    sums = model_diff.totals(diffs)
    assert sums == (
        report["macs_before"], report["macs_after"], report["params_before"], report["params_after"],
    )  # fmt: skip
    for diff in diffs:
        before, after = (m.get_submodule(diff.layer).weight for m in (run.dense.model, run.result.model))
        assert (diff.dense_shape, diff.pruned_shape) == (before.shape, after.shape)
    for block in report["blocks"]:
        (made,) = (d for d in diffs if d.block == block["name"] and d.role == "producer")
        assert (made.dense_shape[0], made.pruned_shape[0]) == (block["groups"], block["kept"])
    assert model_diff.read_diff(run.path) is None
    model_diff.write_diff(run.path / "export", diffs)
    assert model_diff.read_diff(run.path) == diffs


def test_rows_end_with_the_sum_and_have_the_latency_where_it_is_known(run: opened_run.OpenedRun) -> None:
    diffs = model_diff.of_run(run)
    rows = model_diff.as_rows(diffs)
    assert [row["Layer"] for row in rows] == [*(d.layer for d in diffs), "all"]
    assert rows[-1]["MACs before"] == sum(row["MACs before"] for row in rows[:-1])
    assert "Share of latency" not in rows[0]
    rows = model_diff.as_rows(diffs, {diffs[0].layer: 0.25})
    assert [row["Share of latency"] for row in rows[:2]] == ["25.0 %", "–"]
    assert rows[0]["Weight before"] == "16 × 3 × 3 × 3"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 2, "layers": []}',
        '{"format": 1, "layers": [{"layer": "a"}]}',
        '{"format": 1, "layers": 3}',
    ],
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/diff.json").write_text(content)
    with pytest.raises(RunError, match=r"diff\.json cannot be read .*: export the run again"):
        model_diff.read_diff(tmp_path)


def test_a_file_with_foreign_values_is_refused(tmp_path: Path) -> None:
    good = LayerDiff("a", None, "Linear", "other", (2, 3), (2, 3), 6, 6, 8, 8)
    for wrong in ({"macs_dense": -1}, {"layer": 3}, {"dense_shape": ["x"]}, {"params_pruned": 1.5}):
        layer = dataclasses.asdict(good) | wrong
        (tmp_path / "export").mkdir(exist_ok=True)
        (tmp_path / "export/diff.json").write_text(json.dumps({"format": 1, "layers": [layer]}))
        with pytest.raises(RunError, match=r"diff\.json"):
            model_diff.read_diff(tmp_path)


def many(layers: int) -> list[LayerDiff]:
    """Convolutions of which every other one was pruned, a norm behind each."""
    made = []
    for number in range(layers):
        after = (32, 16, 3, 3) if number % 2 else (64, 16, 3, 3)
        made.append(
            LayerDiff(
                f"layer.{number}", None, "Conv2d", "other", (64, 16, 3, 3), after,
                1000 + number, 500 if number % 2 else 1000 + number, 90, 80,
            )
        )  # fmt: skip
        made.append(LayerDiff(f"norm.{number}", None, "BatchNorm2d", "other", (64,), (64,), 0, 0, 128, 128))
    return made


@pytest.mark.parametrize("layers", [1, 20, 100])
def test_figure_has_a_bar_per_layer_whatever_their_number(layers: int) -> None:
    diffs = many(layers)
    info = diff_figures.diff_info(diffs)
    assert info.names == tuple(f"layer.{i}" for i in range(layers))  # norms have no multiply-adds
    assert np.array_equal(info.dense, 1000 + np.arange(layers))
    assert (diff_figures.diff_info(diffs, "width").pruned == np.where(np.arange(layers) % 2, 32, 64)).all()
    assert list(diff_figures.diff_info(diffs, "params").dense) == [90] * layers
    figure = diff_figures.diff_figure(diffs)
    assert 10 <= (figure.layout.height - 90) / layers <= 24
    assert list(figure.layout.yaxis.ticktext) == list(info.names) and figure.layout.yaxis.range[0] > 0
    outline = figure.data[-1]
    assert outline.name == "dense model" and outline.marker.color == "rgba(0,0,0,0)"
    assert sum(len(trace.x) for trace in figure.data[:-1]) == layers
    light, dark = (diff_figures.diff_figure(diffs, dark=dark).data[0].marker.color for dark in (False, True))
    assert light != dark


def test_figure_shows_long_names_by_their_end_and_no_markup() -> None:
    names = [f"model.{'deep.' * 20}block{i}.<a href='http://x'>" for i in range(2)]
    diffs = [dataclasses.replace(many(1)[0], layer=name) for name in names]
    info = diff_figures.diff_info(diffs)
    assert "<" not in "".join(info.names) and all(name.startswith("…") for name in info.names)
    assert info.names[0] != info.names[1] and "<a" not in "".join(info.told)
    assert diff_figures.diff_figure([]).data[0].x.size == 0
    with pytest.raises(SettingError, match="macs, params and width"):
        diff_figures.diff_info(diffs, "height")
