"""The benchmarks run, continue where they stopped, and compare what they say they compare."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import sample_models
from benchmarks import parity, quality, selection_cost
from benchmarks.quality_report import figure_of, markdown
from ispasp import selectors
from ispasp.algorithm import SelectorSettings

SHIPPED = Path(sample_models.__file__).parent / "data" / "cifar10.zip"
TINY = ["--models", "mnist_mlp", "--keeps", "0.1", "--samples", "64", "--selectors", "ispasp", "l1"]


def quality_rows(out: Path, *more: str) -> list[dict[str, Any]]:
    """Run the benchmark on little, writing to ``out``; its rows."""
    assert quality.main([*TINY, "--reconstruct", "none", "asymmetric", "--out", str(out), *more]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quality") / "results.json"
    quality_rows(out, "--seeds", "0")
    return out


def test_rows_hold_what_was_asked_and_what_came_out(measured: Path) -> None:
    rows = json.loads(measured.read_text())
    asked = [(row["selector"], row["reconstruct"]) for row in rows]
    assert asked == [("ispasp", "none"), ("l1", "none"), ("ispasp", "asymmetric"), ("l1", "asymmetric")]
    for row in rows:
        assert (row["samples"], row["images"], row["test_images"], row["kept"]) == (
            64,
            "shipped",
            1000,
            [102],
        )
        assert 0.1 < row["accuracy"] <= row["accuracy_dense"] and row["relative_residual"] > 0
        refitted = row["reconstruct"] == "asymmetric"
        assert row["error_after"] < row["error_before"] if refitted else row["error_after"] is None


def test_a_run_continues_without_measuring_again(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    rows = json.loads(measured.read_text())
    quality.write(out, rows[:3])
    counted: list[dict[str, Any]] = []
    measure = quality.Bench.measure

    def count(bench: quality.Bench, key: dict[str, Any]) -> dict[str, Any]:
        counted.append(key)
        return measure(bench, key)

    monkeypatch.setattr(quality.Bench, "measure", count)
    again = quality_rows(out, "--seeds", "0")
    assert [(key["selector"], key["reconstruct"]) for key in counted] == [("l1", "asymmetric")]
    assert again[:3] == rows[:3]
    assert again[3]["accuracy"] == rows[3]["accuracy"]


def test_a_seed_draws_other_images() -> None:
    options = quality.parser().parse_args(TINY)
    bench = quality.Bench("mnist_mlp", options)
    first, second = (torch.cat([images for images, _ in bench.calibration(seed)]) for seed in (0, 1))
    assert len(first) == len(second) == 64
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat([images for images, _ in bench.calibration(0)]))


def test_images_of_a_zip_are_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(SHIPPED) as shipped, zipfile.ZipFile(path, "w") as archive:
        for name in shipped.namelist()[:20] + shipped.namelist()[-10:]:
            part, label, file = name.split("/")
            split = {"calibration": "train", "test": "test"}[part]
            archive.writestr(f"cifar10/{split}/{label}/{file}", shipped.read(name))
    options = quality.parser().parse_args(["--images", str(path), "--samples", "16"])
    bench = quality.Bench("cifar10_resnet20", options)
    assert (bench.source, len(bench.pool), bench.samples, bench.test_images) == ("training", 20, 16, 10)
    assert sum(len(images) for images, _ in bench.calibration(1)) == 16


def test_the_tables_print_mean_and_spread(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = json.loads(measured.read_text())
    other = [row | {"seed": 1, "accuracy": row["accuracy"] + 0.1} for row in first[:1]]
    table = markdown(first + other, full=False)
    low = 100 * first[0]["accuracy"]
    assert f"| 0.1 | ispasp | {low + 5:.1f} ({low:.1f}-{low + 10:.1f}) |" in table
    assert f"| 0.1 | l1 | {100 * first[1]['accuracy']:.1f}, 1 of 2 seeds |" in table
    assert quality.main(["--table", str(measured), "--full"]) == 0
    assert "| 0.1 | ispasp | asymmetric |" in capsys.readouterr().out


def test_the_figure_has_a_line_per_selector_and_bars_over_seeds(measured: Path) -> None:
    rows = json.loads(measured.read_text())
    accuracy = rows[0]["accuracy"]
    figure = figure_of([*rows, rows[0] | {"seed": 1, "accuracy": accuracy + 0.1}])
    assert [line.name for line in figure.data if line.showlegend] == ["ispasp", "l1"]
    line = figure.data[0]
    assert (line.x, line.y[0]) == ((0.1,), pytest.approx(accuracy + 0.05))
    assert (line.error_y.array[0], line.error_y.arrayminus[0]) == pytest.approx((0.05, 0.05))
    with pytest.raises(SystemExit, match="differ in images or multiple"):
        figure_of([*rows, rows[0] | {"samples": 32}])


@torch.no_grad()
def test_evaluated_greedy_selection_is_gfs() -> None:
    layer = selection_cost.two_layers(30, examples=50, seed=1)
    order, evaluations, _ = selection_cost.evaluated(layer, kept=12)
    assert evaluations == selection_cost.evaluations_needed(30, 12)
    last = list(selectors.get("gfs")(layer.statistics(), 12, SelectorSettings()))[-1]
    assert sorted(order) == list(last.selected)


def test_selection_cost_extrapolates_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        selection_cost.main(["--sizes", "300", "--check", "20", "--examples", "64", "--seconds", "0.05"]) == 0
    )
    table = capsys.readouterr().out
    assert "| all 132 |" in table
    assert "of 28,860 |" in table and "extrapolated from" in table
    assert "chose the same neurons of 20." in table


def test_parity_has_a_row_for_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--models", "mnist_mlp", "nothing", "--precisions", "fp32", "int8-dynamic", "--examples", "64"]
    assert parity.main(given) == 1
    *rows, refused = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| mnist_mlp", side, precision]
        for precision in ("fp32", "int8-dynamic")
        for side in ("dense", "pruned")
    ]
    assert all(row.endswith("% | passed |") and row.count("|") == 10 for row in rows)
    assert refused.startswith("| nothing | ") and "nothing" in refused.removeprefix("| nothing | ")
