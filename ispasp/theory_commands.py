"""What the command ``theory`` of ``ispasp.cli`` does with its options."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ispasp import compressibility, store, theory_run
from ispasp import theory as laboratory
from ispasp.compressibility import BlockRows, CompressibilityDone
from ispasp.run_settings import RunSettings
from ispasp.terminal import table, value_of, watch
from ispasp.theory import Decay, Experiment
from ispasp.theory_run import TheoryDone


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "model", nargs="?", default="", help="as of prune; without one, the synthetic experiment is made"
    )
    for name, usual, what in (
        ("weights", "", "as of prune"),
        ("data", "", "as of prune"),
        ("samples", "512", "calibration examples (%(default)s)"),
        ("device", "auto", "auto, cpu, cuda, cuda:1, mps (%(default)s)"),
        ("hidden", str(Experiment.hidden), "hidden rows of the synthetic networks (%(default)s)"),
        ("trials", str(Experiment.trials), "how many of them are drawn (%(default)s)"),
    ):
        parser.add_argument(f"--{name}", default=usual, help=what)


def theory(options: argparse.Namespace) -> None:
    """With a model, how compressible its blocks' rows are; without, the synthetic experiment."""
    folder = store.default_folder()
    if options.model:
        settings = RunSettings(
            options.model,
            weights=options.weights,
            data=options.data,
            samples=value_of("samples", options.samples, int),
            device=options.device,
        )
        *_, done = watch(compressibility.execute(settings, folder, allow_code=True))
        assert isinstance(done, CompressibilityDone)
        print(
            json.dumps([dataclasses.asdict(b) for b in done.blocks])
            if options.json
            else rows_table(done.blocks)
        )
        return
    experiment = Experiment(
        hidden=value_of("hidden", options.hidden, int), trials=value_of("trials", options.trials, int)
    )
    *_, made = watch(theory_run.execute(experiment, folder))
    assert isinstance(made, TheoryDone)
    found = laboratory.decays(made.findings)
    print(json.dumps([dataclasses.asdict(decay) for decay in found]) if options.json else decay_table(found))


def decay_table(found: list[Decay]) -> str:
    """The slopes of the synthetic experiment beside the theorem's."""
    head = ("p", "slope", "deviation", "theorem", "residual near full size")
    lines = [
        (f"{d.exponent:g}", f"{d.slope:.2f}", f"{d.spread:.2f}", f"{d.rate:.2f}", f"{d.residuals[-1]:.1e}")
        for d in found
    ]
    return table(head, lines)


def rows_table(blocks: list[BlockRows]) -> str:
    """One line per block: its power law, what the theorem makes of it, and what was measured."""
    keeps = max((block.kept for block in blocks), key=len, default=())
    head = ("block", "rows", "p", "R2", "the theorem", *(["kept: by the law, measured"] * len(keeps)))
    lines = []
    for block in blocks:
        law = block.law
        cells = [
            f"{kept}: {'-' if block.promised is None else f'{block.promised[at]:.2g}'}, {block.residual[at]:.2g}"
            for at, kept in enumerate(block.kept)
        ]
        cells += [""] * (len(keeps) - len(cells))
        fitted = ("-", "-") if law is None else (f"{law.exponent:.2f}", f"{law.goodness:.2f}")
        said = compressibility.verdict(block).replace("≥", ">=").replace("²", "2")
        lines.append((block.block, str(block.groups), *fitted, said, *cells))
    return table(head, lines)
