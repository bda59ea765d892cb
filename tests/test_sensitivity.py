"""Sensitivities: what a curve holds, on disk, as a picture and as a sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ispasp
from ispasp import budget_tables, evaluate, opened, sensitivity_figures, sensitivity_run
from ispasp.calibration import read
from ispasp.errors import CalibrationError, SettingError
from ispasp.records import Block, Progress
from ispasp.run_settings import RunSettings
from ispasp.sensitivity import Curve
from ispasp.sensitivity_run import SensitivityDone
from tests.small_budgets import small_settings


def curves_in(settings: RunSettings, folder: Path, **options: object) -> tuple[list[Curve], list[Progress]]:
    *steps, done = sensitivity_run.execute(settings, folder, allow_code=True, **options)
    assert isinstance(done, SensitivityDone) and done.path.is_file()
    return done.curves, steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


@pytest.fixture(scope="module")
def curves(folder: Path) -> list[Curve]:
    return curves_in(small_settings(folder), folder)[0]


def test_a_curve_holds_what_pruning_that_block_alone_gives(folder: Path, curves: list[Curve]) -> None:
    settings = small_settings(folder)
    loaded = opened.open_model(settings, allow_code=True)
    data = opened.open_data(settings, loaded, allow_code=True)
    batches = read(data.calibration)
    dense = torch.cat(list(evaluate.predictions(loaded.model, batches)))
    assert [curve.block.groups for curve in curves] == [16, 24, 32]
    for curve in curves:
        assert curve.kept == tuple(range(8, curve.block.groups + 1, 8))
        assert curve.error_after is not None and curve.agreement is not None
        assert (curve.residual[-1], curve.error_after[-1], curve.agreement[-1]) == (0, 0, 1)
        for i, kept in enumerate(curve.kept[:-1]):
            keep = {curve.block.name: kept / curve.block.groups}
            result = ispasp.prune(loaded.model, data.calibration, keep, reconstruct="symmetric", device="cpu")
            (event,) = result.blocks_pruned
            pruned = torch.cat(list(evaluate.predictions(result.model, batches)))
            assert curve.residual[i] == pytest.approx(event.relative_residual, rel=1e-4)
            assert curve.error_after[i] == pytest.approx(event.error_after, rel=1e-3)
            assert curve.agreement[i] == pytest.approx((pruned == dense).float().mean().item(), abs=0.01)


def test_without_a_refit_there_is_no_error_after_it(folder: Path) -> None:
    found, _ = curves_in(small_settings(folder, reconstruct="none"), folder, fractions=(0.5,))
    assert [curve.error_after for curve in found] == [None] * 3
    assert [curve.kept for curve in found] == [(8, 16), (16, 24), (16, 32)]


def test_curves_survive_on_disk_and_are_not_measured_twice(folder: Path, curves: list[Curve]) -> None:
    settings = small_settings(folder)
    assert sensitivity_run.load(settings, folder) == curves
    same = dataclasses.replace(settings, keep=0.3, distil=5, reconstruct="symmetric")
    again, steps = curves_in(same, folder)
    assert again == curves and not any("sensitive" in step.doing for step in steps)
    other = dataclasses.replace(settings, multiple=4)
    assert sensitivity_run.load(other, folder) is None


def test_curves_of_other_weights_or_a_damaged_file_are_measured_again(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    first, _ = curves_in(settings, tmp_path, fractions=(0.5,))
    file = tmp_path / "small_budget.py"
    file.write_text(file.read_text().replace("manual_seed(3)", "manual_seed(4)"))
    second, steps = curves_in(settings, tmp_path, fractions=(0.5,))
    assert second != first and any("sensitive" in step.doing for step in steps)
    path = sensitivity_run.path_of(settings, tmp_path, (0.5,))
    plain = json.loads(path.read_text())
    plain["curves"][0]["divergence"].pop()
    for text in ("{", "[]", "[" * 100_000, json.dumps(plain), json.dumps(plain | {"format": 99})):
        path.write_text(text)
        assert sensitivity_run.load(settings, tmp_path, (0.5,)) is None
    third, _ = curves_in(settings, tmp_path, fractions=(0.5,))
    assert third == second
    plain = json.loads(path.read_text())
    del plain["content"]
    path.write_text(json.dumps(plain))
    fourth, steps = curves_in(settings, tmp_path, fractions=(0.5,))
    assert fourth == second and any("sensitive" in step.doing for step in steps)


@pytest.mark.parametrize(
    "change",
    [
        {"kept": []},
        {"kept": [], "divergence": [], "residual": [], "error_after": None, "agreement": None},
        *({"divergence": [value, 0.0]} for value in ("x", None, True, -1.0, float("nan"), 10**400)),
        *({"kept": value} for value in ([16, 16], [24, 16], [0, 16], ["8", 16], [8.0, 16])),
        {"agreement": "ab"},
        {"residual": None},
        {"block": 5},
    ],
)
def test_a_curve_that_no_page_could_show_counts_as_not_measured(
    folder: Path, curves: list[Curve], tmp_path: Path, change: dict[str, object]
) -> None:
    settings = small_settings(folder)
    path = sensitivity_run.path_of(settings, tmp_path, (0.5,))
    first = dataclasses.asdict(
        dataclasses.replace(
            curves[0],
            kept=(8, 16),
            divergence=(0.1, 0.0),
            residual=(0.1, 0.0),
            error_after=(0.1, 0.0),
            agreement=(0.9, 1.0),
        )
    )
    path.parent.mkdir()
    for values, count in ((first, 1), (first | change, 0)):
        path.write_text(json.dumps({"format": 1, "content": "", "curves": [values]}))
        assert len(sensitivity_run.load(settings, tmp_path, (0.5,)) or []) == count


def test_measuring_can_be_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    settings = small_settings(tmp_path)
    steps = sensitivity_run.execute(settings, tmp_path / "runs", allow_code=True)
    assert any(isinstance(step, Progress) and "sensitive" in step.doing for step in steps)
    steps.close()
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_measured_is_said(folder: Path) -> None:
    with pytest.raises(SettingError, match="no prunable heads"):
        curves_in(small_settings(folder, kinds=("head",)), folder)
    with pytest.raises(SettingError, match="below 1"):
        curves_in(small_settings(folder), folder, fractions=(0.5, 1.0))
    with pytest.raises(CalibrationError, match="does not change"):
        curves_in(small_settings(folder), folder, fractions=(0.99,))  # rounded up to all


def curve(name: str, loss: float, agreement: tuple[float, ...] | None) -> Curve:
    kept, divergence = (8, 16, 32), (4 * loss, loss, 0.0)
    return Curve(Block(name, 32), kept, divergence, (0.6, 0.3, 0.0), (0.2, 0.1, 0.0), agreement)


def test_the_heat_map_shows_the_measured_count_next_to_a_fraction() -> None:
    made = [curve("a", 0.1, (0.5, 0.8, 1.0)), curve("b", 0.01, (0.9, 0.97, 1.0))]
    info = sensitivity_figures.heat_info(made, fractions=(0.25, 0.4, 0.5))
    assert info.quantity == "agreement" and info.names == ("a", "b")
    np.testing.assert_array_equal(info.kept, [[8, 16, 16]] * 2)
    np.testing.assert_allclose(info.values, [[0.5, 0.8, 0.8], [0.9, 0.97, 0.97]])
    for dark in (False, True):
        heat = sensitivity_figures.heat_figure(info, dark).data[0]
        np.testing.assert_allclose(heat.z, info.values)
        assert heat.colorscale[-1][1] == {False: "#ffffff", True: "#10161d"}[dark]  # nothing lost: the ground
    assert sensitivity_figures.repeats(info)
    residual = sensitivity_figures.heat_info([made[0], curve("c", 1, None)])
    assert residual.quantity == "residual" and residual.values.max() == np.float32(0.6)
    assert sensitivity_figures.heat_figure(residual).data[0].colorscale[0][1] == "#ffffff"


def test_neighbours_of_one_count_are_one_measurement_in_the_heat_map() -> None:
    made = [curve("a", 0.1, (0.5, 0.8, 1.0)), curve("b", 0.01, (0.9, 0.97, 1.0))]
    info = sensitivity_figures.heat_info(made, fractions=(0.125, 0.2, 0.25, 0.5))
    np.testing.assert_array_equal(info.kept, [[8, 8, 8, 16]] * 2)
    figure = sensitivity_figures.heat_figure(info)
    assert np.array(figure.data[0].text).tolist() == [
        ["", "50 %, 8 of 32", "", "80 %"],
        ["", "90 %, 8 of 32", "", "97 %"],
    ]
    assert [(line.x0, line.x1, line.y0, line.y1) for line in figure.layout.shapes] == [
        (2.5, 2.5, -0.5, 0.5),
        (2.5, 2.5, 0.5, 1.5),
    ]
    assert "of %{customdata[1]} kept" in figure.data[0].hovertemplate
    alone = sensitivity_figures.heat_info(made, fractions=(0.25, 0.5))
    assert not sensitivity_figures.repeats(alone)
    assert list(sensitivity_figures.heat_figure(alone).data[0].text[0]) == ["50 %", "80 %"]


def test_the_advice_names_what_to_spare_and_what_can_give() -> None:
    made = [
        curve("a", 0.1, (0.5, 0.8, 1.0)),
        curve("b", 0.01, (0.9, 0.97, 1.0)),
        curve("c", 0.02, (0.8, 0.9, 1.0)),
    ]
    assert sensitivity_figures.advice(made) == (
        "Keep most of a: with 16 of 32 channels 80.0 % of the answers stay the same; b can give most: with 8 of 32 "
        "channels 90.0 % of the answers stay the same."
    )
    over = ", of 64 calibration examples"
    assert sensitivity_figures.advice(made, 64).startswith(f"Keep most of a: with 16 of 32 channels 80.0 % of the "
        f"answers stay the same{over}; b can give most")  # fmt: skip
    assert sensitivity_figures.advice(made[:1], 64).endswith(f"stay the same{over}.")
    table = budget_tables.sensitivity_table(made)
    assert table.splitlines()[2].split() == ["b", *3 * ["90.0%"], *3 * ["97.0%"], "100.0%"]
    assert table.endswith(sensitivity_figures.advice(made))
    alike = sensitivity_figures.advice([made[0], curve("d", 0.1, (0.5, 0.8, 1.0)), made[2]])
    # with 8 it would lose as much as what is kept most of
    assert alike == (
        "Keep most of a and d: with 16 of 32 channels of a, 80.0 % of the answers stay the same; c can give most: with "
        "16 of 32 channels 90.0 % of the answers stay the same."
    )
    assert sensitivity_figures.advice(made[:1]).startswith("a is the only block: with 16 of 32")
    assert "about as sensitive" in sensitivity_figures.advice([made[0], curve("d", 0.1, None)])
