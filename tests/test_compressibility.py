"""Power laws of rows, and what is said of a real model's blocks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ispasp import cli, compressibility, data, theory_commands, zoo
from ispasp.compressibility import BlockRows, CompressibilityDone, fit, theorem_rate, verdict
from ispasp.compressibility_figures import promise_figure, promise_info, rows_figure
from ispasp.errors import SettingError
from ispasp.run_settings import RunSettings
from tests import oracle

SETTINGS = RunSettings("mnist_mlp", samples=64, device="cpu")


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressibilityDone, Path]:
    folder = tmp_path_factory.mktemp("runs")
    *_, done = compressibility.execute(SETTINGS, folder, (0.1, 0.5))
    assert isinstance(done, CompressibilityDone)
    return done, folder


@pytest.mark.parametrize("exponent", [0.3, 0.9, 1.7, 4.0])
def test_a_power_law_is_found_again(exponent: float) -> None:
    norms = 7 * np.arange(1, 301) ** (-1 / exponent)
    law = fit(np.random.default_rng(0).permutation(norms))
    assert law is not None and law.fits
    assert law.exponent == pytest.approx(exponent) and law.scale == pytest.approx(1)
    assert law.goodness == pytest.approx(1) and (law.ranks[0], law.ranks[-1]) == (1, 300 - law.dead)
    energies = np.arange(1, law.rows + 1) ** (-2 / exponent)
    assert law.tail(30) == pytest.approx(energies[30:].sum() / energies.sum())
    assert law.rate == (None if exponent >= 2 else pytest.approx(theorem_rate(exponent)))


def test_rows_that_follow_none_are_told_apart() -> None:
    geometric = fit(0.5 ** np.arange(30))
    assert geometric is not None and not geometric.fits
    alike = fit(np.ones(20))
    assert alike is not None and alike.exponent == math.inf and alike.rate is None
    assert alike.tail(5) == pytest.approx(0.75)
    dead = fit([*(1 / np.arange(1, 21)), 0, 0, 0])
    assert dead is not None and (dead.rows, dead.dead) == (20, 3) and dead.exponent == pytest.approx(1)
    assert fit([]) is None and fit(np.zeros(50)) is None and fit([3, 2, 1]) is None


def test_verdicts() -> None:
    def block(norms: np.ndarray) -> BlockRows:
        return BlockRows("b", "neuron", len(norms), fit(norms), (), None, (), ())

    ranks = np.arange(1, 101, dtype=np.float64)
    assert verdict(block(ranks**-2)) == "decays as s^-3.00"
    assert verdict(block(ranks ** (-1 / 3))) == "rows too alike (p ≥ 2): no decay promised"
    assert verdict(block(0.5 ** np.arange(30))).startswith("no power law (R² 0.")
    assert verdict(block(np.ones(4))) == "fewer than 8 rows are alive"


def test_a_models_rows_are_those_of_its_hidden_layer(looked: tuple[CompressibilityDone, Path]) -> None:
    (block,) = looked[0].blocks
    network = zoo.load("mnist_mlp")
    images = torch.cat([b[0] for b in data.sample_batches("mnist_mlp", "calibration", 64)])  # type: ignore[index]
    with torch.no_grad():
        hidden, consumer = network.relu(network.fc1(images.flatten(1))), network.fc2  # type: ignore[operator]
    norms = np.sort(torch.linalg.vector_norm(hidden.double(), dim=0).numpy())[::-1]
    assert (block.block, block.groups, block.kept) == ("fc1", 1024, (104, 512))
    assert block.law is not None
    assert block.law.norms == pytest.approx(norms[np.array(block.law.ranks) - 1] / norms[0], rel=1e-5)
    assert block.left_out == pytest.approx(
        [(norms[k:] ** 2).sum() / (norms**2).sum() for k in block.kept], rel=1e-5
    )
    for kept, residual in zip(block.kept, block.residual, strict=True):
        expected = oracle.algorithm_one(hidden, consumer, kept)[-1].relative_residual
        assert residual == pytest.approx(expected, rel=1e-3)
    assert not block.law.fits


def test_what_was_found_is_kept(looked: tuple[CompressibilityDone, Path]) -> None:
    done, folder = looked
    assert compressibility.load(SETTINGS, folder, (0.5, 0.1)) == done.blocks
    assert compressibility.load(SETTINGS, folder) is None  # other kept fractions
    plain = json.loads(done.path.read_text())
    (block,) = plain["blocks"]
    law = block["law"]
    changed = (
        {"residual": [1.0]},
        {"groups": 10**400},
        {"kept": [10**400, 10**401]},
        {"kept": [512, 104]},
        {"groups": 1023},
        {"law": {**law, "ranks": [0, *law["ranks"][1:]]}},
        {"law": {**law, "ranks": [10**400 + rank for rank in law["ranks"]]}},
        {"law": {**law, "dead": -1, "rows": 1025}},
    )
    broken = [json.dumps({**plain, "blocks": [{**block, **change}]}) for change in changed]
    for text in (*broken, json.dumps({**plain, "format": 0}), "[]", ""):
        other = compressibility.path_of(SETTINGS, folder / "other", (0.1, 0.5))
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text(text)
        assert compressibility.load(SETTINGS, folder / "other", (0.1, 0.5)) is None


def test_figures_and_table_hold_it(looked: tuple[CompressibilityDone, Path]) -> None:
    blocks = looked[0].blocks
    info = promise_info(blocks, 0.1)
    assert (info.names, info.counts) == (("fc1",), ("104 of 1,024",))
    assert info.measured[0] == pytest.approx(blocks[0].residual[0])
    assert len(promise_figure(info).data) == 3 and len(rows_figure(blocks[0], dark=True).data) == 2
    text = theory_commands.rows_table(blocks)
    assert "no power law (R2 0." in text and "512: " in text


def test_nothing_is_kept_where_all_stays() -> None:
    with pytest.raises(SettingError, match="keep is 1"):
        list(compressibility.execute(SETTINGS, Path("nowhere"), (1.0,)))


def test_the_command_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ISPASP_RUNS", str(tmp_path))
    assert cli.main(["theory", "mnist_mlp", "--samples", "32", "--device", "cpu", "--json"]) == 0
    (block,) = json.loads(capsys.readouterr().out)
    assert block["block"] == "fc1" and block["kept"] == [256, 512, 768]
    assert cli.main(["theory", "--hidden", "40", "--trials", "1", "--json"]) == 0
    assert [decay["exponent"] for decay in json.loads(capsys.readouterr().out)] == [0.3, 0.5, 0.7, 0.9]
    assert cli.main(["theory", "--hidden", "3"]) == 2
    assert "hidden is 3; give a whole number from 20" in capsys.readouterr().err
