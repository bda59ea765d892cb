"""The paper's synthetic experiment: the residual against the rows kept, for rows compressible with exponent p.

    python benchmarks/synthetic.py                          # d_hid 100 and 200, p 0.3 to 0.9, 20 networks each
    python benchmarks/synthetic.py --hidden 400 --trials 50 --outputs 50
    python benchmarks/synthetic.py --out synthetic.json     # the residual of every network at every size as well

Wolfe & Kyrillidis (2022), figure of the synthetic experiment. It prints the slope of log ||V||_F^2 against log s, from
5 % to half of the rows kept, the theorem's 1 - 2/p, and the residual near full size. Seconds on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, from anywhere

from ispasp import theory
from ispasp.theory import Experiment, Findings


def main(arguments: list[str] | None = None) -> None:
    defaults = Experiment()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", nargs="+", type=int, default=[100, 200], help="%(default)s")
    parser.add_argument(
        "--exponents", nargs="+", type=float, default=list(defaults.exponents), help="%(default)s"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[], help="rows kept (spread from 5 %% to all but one)"
    )
    for name in ("outputs", "samples", "trials", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help="%(default)s")
    parser.add_argument(
        "--candidate-factor", type=float, default=defaults.candidate_factor, help="%(default)s"
    )
    parser.add_argument("--out", type=Path, help="write every network's residuals as JSON")
    options = parser.parse_args(arguments)
    found = [made(options, hidden) for hidden in options.hidden]
    print(
        f"{options.trials} networks each, {options.outputs} outputs, {options.samples} samples, seed {options.seed}.\n"
    )
    print(table(found))
    if options.out:
        text = json.dumps([dataclasses.asdict(findings) for findings in found])
        options.out.write_text(text + "\n")


def made(options: argparse.Namespace, hidden: int) -> Findings:
    """The experiment at one width, without candidate factors and trained networks."""
    experiment = Experiment(
        hidden=hidden,
        outputs=options.outputs,
        samples=options.samples,
        exponents=tuple(options.exponents),
        sizes=tuple(options.sizes),
        trials=options.trials,
        candidate_factor=options.candidate_factor,
        seed=options.seed,
    )
    return theory.find(experiment, whole=False)


def table(found: list[Findings]) -> str:
    """Slopes beside the theorem's, as Markdown."""
    lines = [
        "| d_hid | p | slope (mean ± deviation) | theorem 1 - 2/p | residual, fewest rows | residual, most rows |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for findings in found:
        for decay in theory.decays(findings):
            ends = [f"{decay.residuals[at]:.1e} (s = {decay.sizes[at]})" for at in (0, -1)]
            lines.append(
                f"| {findings.experiment.hidden} | {decay.exponent:g} | {decay.slope:.2f} ± {decay.spread:.2f} | "
                f"{decay.rate:.2f} | {' | '.join(ends)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
