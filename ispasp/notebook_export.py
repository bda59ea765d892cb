"""A run as a Jupyter notebook: the same run once more with the library, figures, and a check of the selected sets."""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ispasp.errors import RunError
from ispasp.narrative import plural
from ispasp.result import RunRecord, load_record
from ispasp.run_settings import RunSettings
from ispasp.tuning.request import TuneRequest, epochs_made, history

_WIDTH = 100  # of the code that is written, in characters

_IMPORTS = """
import ispasp
from ispasp import display, figures, opened, reports
from ispasp.calibration import digest, read
from ispasp.opened import open_data, open_model, prunable_blocks
from ispasp.run_settings import RunSettings
"""

_THREADS = """
import torch

torch.set_num_threads({threads})  # as in the run: the last digits of sums depend on it
"""

_OPEN = """
loaded = opened.open_model(settings{allow})
data = opened.open_data(settings, loaded{allow})

print(loaded.words)
print(*data.notes, sep="\\n")
"""

_SAME_DATA = """
# SHA-256 of the calibration inputs of the run
calibration_digest = {digest}
if digest(read(data.calibration)) != calibration_digest:
    print("The calibration data are not those of the run: the sets may come out different.")
"""

_VERSIONS = """
then = {versions}
for name, now in reports.versions().items():
    if now != then.get(name):
        print(f"{{name}} is {{now}} here, and was {{then.get(name)}} in the run.")
"""

_BLOCKS = """
blocks = [block.name for block in opened.prunable_blocks(loaded, settings.kinds)]
keep = {keep}
"""

_PRUNE = """
events = ispasp.iterate(
    loaded.model,
    data.calibration,
    keep,
    blocks=blocks,
{options}
    device=settings.device,
    evaluation=data.evaluation,
    source=settings.model,
)
for event in display.watched(events):
    if isinstance(event, ispasp.Finished):
        result = event.result
result
"""

_TUNING_IMPORTS = """
from pathlib import Path

from ispasp.deployment.opened_run import OpenedRun
from ispasp.tuning import figures as tuning_figures
from ispasp.tuning import schedule
from ispasp.tuning.data import measured_apart, open_training
from ispasp.tuning.records import EpochDone
from ispasp.tuning.request import TuneRequest
from ispasp.tuning.settings import TuneSettings
"""

_TUNE = """
training = open_training(settings, loaded, request{allow})
print(*training.notes, sep="\\n")

calibration, evaluation = read(data.calibration), read(data.evaluation, "evaluation")
run = OpenedRun(Path("run"), settings, loaded, result, calibration, evaluation)
run = measured_apart(run, training, request)
{made}for event in display.watched(schedule.steps(run, training.set, request{stop}{allow})):
    if isinstance(event, ispasp.Finished):
        result = event.result
{counted}result
"""

_COUNTED = """\
    if isinstance(event, EpochDone):
        epochs.append(event)
"""

_TUNED = """
tuning_figures.curves_figure(tuning_figures.report_info(result.report))
"""

_SAME_MEASURES = """
then = {measured}
for name, before in then.items():
    print(f"{{name}}: {{result.report[name]}} here, {{before}} in the run")
"""

_ITERATIONS = """
started = result.blocks_started[0]  # another number shows another block
done = result.blocks_pruned[started.index]
trace = [iteration for iteration in result.trace if iteration.block == started.block.name]
figures.map_figure(figures.map_info(started, trace, settings.selector))
"""

_CHECK = """
selected = {block.block.name: list(block.selected) for block in result.blocks_pruned}
different = [name for name in expected | selected if expected.get(name) != selected.get(name)]
assert not different, f"Other groups than in the run were selected in {', '.join(different)}."
print(f"The same groups were selected in every block ({len(selected)} of {len(expected)}).")
"""

_TAKE_AWAY = """\
## Save, export

To save the result in a new folder, which `ispasp.load` reads:

```python
result.save("my-run")
```

To write it as ONNX, checked against torch on the evaluation data:

```python
batch = read(data.evaluation)[0].first(2)
ispasp.export_onnx(result.model, batch.keywords or batch.inputs, "model.onnx", batches=data.evaluation)
```

To have the run in the app's list of runs, make it there:

```python
from ispasp import runs, store

*_, saved = display.watched(runs.execute(settings, store.default_folder(){allow}))
{tune}```
"""

_TUNE_THERE = """\
from ispasp.tuning import runs as tuning_runs

*_, saved = display.watched(tuning_runs.execute(saved.path, request, store.default_folder(){allow}))
"""


def of_run(path: str | Path) -> bytes:
    """The notebook that repeats the saved run in the folder ``path``.

    Raises:
        RunError: the run is missing or damaged, or was made from a model that only Python code knows.
    """
    record = load_record(path)
    return notebook(RunSettings.of(record), record)


def notebook(settings: RunSettings, record: RunRecord) -> bytes:
    """A notebook (nbformat 4.5, JSON, UTF-8) that repeats a run and ends with the same selected sets.

    What came with the run stands in it as Python literals alone, so that no name or path can be code.

    Args:
        settings: what the run was made with (``RunSettings.of``).
        record: the run.
    """
    import nbformat  # takes a quarter of a second, which the app need not spend at its start

    made = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, (kind, source) in enumerate(_cells(settings, record)):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        made.cells.append(new(source.strip(), id=f"cell-{number}"))
    nbformat.validate(made)
    text: str = nbformat.writes(made)
    return text.encode()


def _cells(settings: RunSettings, record: RunRecord) -> Iterator[tuple[str, str]]:
    tunings = history(record.settings)
    sources = (settings.model, str(settings.data_source()), *(request.train for request in tunings))
    python = any(source.startswith("python:") for source in sources)
    allow = ", allow_code=True" if python else ""
    trains = " and fine-tunes it" if tunings else ""
    yield (
        "markdown",
        f"# A run of i-SpaSP, repeated\n\n`{_harmless(settings.model)}`, keep ratio {float(settings.keep):g}. This "
        f"notebook prunes the model once more{trains} with the library, exactly as the run did, and checks at the end "
        "that the same groups were selected in every block.\n\n"
        "It needs `ispasp` where Python finds it: `pip install --editable .` in its repository.",
    )
    yield "code", _IMPORTS + (_TUNING_IMPORTS if tunings else "")
    yield "markdown", "## Settings\n\nEverything that decides what the run gives." + _about_paths(settings)
    yield "code", _call("settings = RunSettings", dataclasses.asdict(settings))
    if isinstance(versions := record.settings.get("versions"), Mapping):
        yield "code", _VERSIONS.format(versions=_literal(dict(versions)))
    threads = record.settings.get("threads")
    if type(threads) is int and threads > 0:
        yield "code", _THREADS.format(threads=threads)
    yield (
        "markdown",
        "## Model and data\n\nThe dense model with its weights; calibration data, which pruning reads, and "
        "evaluation data, on which accuracy and agreement are measured. No example is in both."
        + (
            "\n\n**The next cell runs the Python file that the settings name.** Read that file first."
            if python
            else ""
        ),
    )
    yield "code", _OPEN.format(allow=allow)
    if isinstance(known := record.settings.get("calibration_digest"), str):
        yield "code", _SAME_DATA.format(digest=_literal(known))
    yield (
        "markdown",
        "## Prune\n\nBlock after block in network order; each sees the inputs that the already pruned network "
        "gives it. `ispasp.prune` with the same arguments does the same at once.",
    )
    keep = (
        "{name: settings.keep_by_block.get(name, settings.keep) for name in blocks}"
        if settings.keep_by_block
        else "settings.keep"
    )
    yield "code", _BLOCKS.format(keep=keep)
    options = [f.name for f in dataclasses.fields(settings.prune_settings())]
    yield "code", _PRUNE.format(options="\n".join(f"    {name}=settings.{name}," for name in options))
    yield from _tuning_cells(tunings, record, allow)
    yield "markdown", "## Figures\n\nWhat is left of the dense model, and what every block lost."
    yield "code", "figures.comparison_figure(result.report)"
    yield "code", "figures.blocks_figure(result.blocks_pruned)"
    yield "markdown", "One block: its groups, the residual, and what decided, iteration by iteration."
    yield "code", _ITERATIONS
    yield "code", "figures.residual_figure(figures.residual_info(trace, done))"
    yield "code", "figures.score_figure(figures.score_info(started, trace[-1], selector=settings.selector))"
    yield (
        "markdown",
        "## The same selected sets\n\nThese groups were kept in the run. On another device or with other "
        "versions, numbers can round differently, and groups of nearly equal score can change places.",
    )
    yield "code", _sets({block.block.name: block.selected for block in record.blocks_pruned})
    yield "code", _CHECK
    # Of several fine-tunings the last alone would not be that run.
    there = _TUNE_THERE if len(tunings) == 1 else ""
    take_away = _TAKE_AWAY if len(tunings) < 2 else _TAKE_AWAY.partition("To have the run in the app")[0]
    yield "markdown", take_away.replace("{tune}", there).replace("{allow}", allow)


def _tuning_cells(tunings: Sequence[TuneRequest], record: RunRecord, allow: str) -> Iterator[tuple[str, str]]:
    """The fine-tunings, in their order, each from what the one before it has left."""
    for number, (request, made) in enumerate(zip(tunings, epochs_made(record.settings), strict=True)):
        begins = {
            "pruned": "From the weights so far.",
            "random": "From random weights of the same shape, the control.",
        }[request.start]
        if request.by_block:
            begins = (
                "From the dense model again, as in the paper: each block is pruned, to as many groups as before, and "
                "what is there is trained before the next one comes."
            )
        source = f"`{_harmless(request.train)}`" if request.train else "the run's own source of data"
        yield (
            "markdown",
            f"## {'Fine-tune again' if number else 'Fine-tune'}\n\n{begins} The training examples come from {source}; "
            "none of them is among those that it is measured on, and the "
            f"{request.settings.held_out:.0%} of them that choose the best epoch are never trained on.",
        )
        plain = {
            f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name != "settings"
        }
        yield "code", _call("tune = TuneSettings", dataclasses.asdict(request.settings))
        yield (
            "code",
            _call("request = TuneRequest", plain).replace("TuneRequest(\n", "TuneRequest(\n    tune,\n", 1),
        )
        if made is not None:
            yield (
                "markdown",
                f"It ended early in the run, after {plural(made, 'epoch')}, and so it does here.",
            )
        yield (
            "code",
            _TUNE.format(
                allow=allow,
                made="" if made is None else "epochs = []\n",
                stop="" if made is None else f", stop=lambda: len(epochs) >= {made}",
                counted="" if made is None else _COUNTED,
            ),
        )
        yield "code", _TUNED
    if tunings:
        measured = {name: record.report[name] for name in ("accuracy_after", "agreement")}
        yield "code", _SAME_MEASURES.format(measured=_literal(measured))


def _about_paths(settings: RunSettings) -> str:
    """A word on files, where the run needs some of its own."""
    data, model = settings.data_source(), settings.model_source()
    own = data.kind not in ("sample", "noise") or model.kind in ("huggingface", "python")
    if not own and model.weights in ("", "random"):
        return ""
    return " Relative paths start where the notebook's kernel does; make them those of your machine where they differ."


def _harmless(text: str) -> str:
    """Words for running text: what could end the code span or the line is left out."""
    return re.sub(r"[^\w.:/@ -]", "?", text)[:80]


def _literal(value: Any) -> str:
    """A Python literal of plain values.

    Raises:
        RunError: something else is among them.
    """
    if value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value)):
        return repr(value)
    if type(value) in (list, tuple):
        items = ", ".join(map(_literal, value))
        return f"[{items}]" if type(value) is list else f"({items}{',' if len(value) == 1 else ''})"
    if type(value) is dict:
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    raise RunError(f"The run holds a {type(value).__name__} among its settings, which no notebook can state.")


def _call(name: str, values: Mapping[str, Any]) -> str:
    """A call with an argument per line."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            inner = "".join(f"        {_literal(k)}: {_literal(v)},\n" for k, v in value.items())
            lines.append(f"    {key}={{\n{inner}    }},\n")
        else:
            lines.append(f"    {key}={_literal(value)},\n")
    return f"{name}(\n{''.join(lines)})"


def _sets(sets: Mapping[str, tuple[int, ...]]) -> str:
    """The selected groups of every block as a dict of lists."""
    lines = []
    for name, groups in sets.items():
        body = textwrap.fill(
            ", ".join(map(_literal, groups)), _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8
        )
        lines.append(f"    {_literal(name)}: [\n{body},\n    ],\n")
    return f"expected = {{\n{''.join(lines)}}}"
