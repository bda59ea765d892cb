"""What the experiment with two-layer networks found is kept whole, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path

from ispasp import two_layer_run
from ispasp.two_layer_records import TwoLayerExperiment
from ispasp.two_layer_run import TwoLayerDone

TINY = TwoLayerExperiment(
    sizes=(20,), keeps=(0.4,), selectors=("ispasp", "gfs"), samples=64, epochs=1, tuning_epochs=0
)


def test_findings_are_kept_whole(tmp_path: Path) -> None:
    *_, done = two_layer_run.execute(TINY, tmp_path)
    assert isinstance(done, TwoLayerDone) and done.path.parent == tmp_path / ".theory"
    assert two_layer_run.load(TINY, tmp_path) == done.findings and len(done.findings.points) == 4
    assert two_layer_run.load(TwoLayerExperiment(), tmp_path) is None
    plain = json.loads(done.path.read_text())
    for broken in (
        {**plain, "networks": []},
        {**plain, "points": []},
        {**plain, "points": plain["points"][1:]},
        {**plain, "evaluated": []},
        {**plain, "evaluated": [{**plain["evaluated"][0], "evaluations": 0, "timed": 0}]},
        {**plain, "networks": [{**plain["networks"][0], "accuracy": 2.0}]},
        {**plain, "points": [{**point, "kept": 10**400} for point in plain["points"]]},
        {**plain, "format": 0},
        {**plain, "points": [{**plain["points"][0], "accuracy": "high"}]},
        {**plain, "experiment": {**plain["experiment"], "sizes": [0]}},
        [],
    ):
        done.path.write_text(json.dumps(broken))
        assert two_layer_run.load(TINY, tmp_path) is None
