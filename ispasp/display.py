"""How records and results show themselves in a notebook: small HTML tables, and a progress bar over events.

No scripts, no colours of the text's own: tables take those of the notebook, light or dark. Everything that
came from outside is escaped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import singledispatch
from html import escape
from typing import Any, TypeVar

from ispasp import datasets, narrative
from ispasp.errors import ISpaSPError
from ispasp.looks import LOOKS, GroupState
from ispasp.records import (
    Block,
    BlockPruned,
    Blocks,
    BlockStarted,
    Distilled,
    Finished,
    Iteration,
    Progress,
    Started,
)
from ispasp.result import RunRecord
from ispasp.tuning.memory import CheckpointMissed
from ispasp.tuning.records import EpochDone
from ispasp.vocabulary import example_word

SHOWN = 24
"""Groups of a set, and rows of a table of iterations, that are written out; the rest is counted."""

Event = TypeVar("Event")

_CELL = (
    "text-align:left;vertical-align:top;white-space:nowrap;padding:2px 12px 2px 0;"
    "border-bottom:1px solid rgba(128,128,128,.3)"
)
_LAST_CELL = _CELL.replace("nowrap", "normal")  # what may be long stands last
_KEPT = LOOKS[GroupState.KEPT].light  # stands out from a light and from a dark ground


def watched(events: Iterable[Event]) -> Iterator[Event]:
    """Pass ``events`` on unchanged under a progress bar: per cent done, and what is being done.

    It is fed by ``Progress`` and ``Iteration`` records, so it fits every generator of this library. In a
    notebook with ipywidgets the bar is a widget, elsewhere it is text on standard error. Leaving the loop
    early ends the work as well; what it has written down on its way stays.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets are missing and that this is experimental
        from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def refresh(self, *_: Any, **__: Any) -> Any:
            # When drawing fails, tqdm's own keeps the lock, and bars of other threads (torch has some) wait for ever.
            with self.get_lock():
                return super().refresh(nolock=True)

    form = "{percentage:3.0f}% |{bar}| {elapsed}<{remaining} {desc}"
    steps = iter(events)
    try:
        with Bar(total=1.0, bar_format=form, miniters=0) as bar:
            for event in steps:
                if isinstance(event, Progress):
                    bar.n = max(bar.n, min(1.0, event.done))
                    bar.set_description_str(event.doing, refresh=False)
                elif isinstance(event, Iteration):
                    left = narrative.residual(event.relative_residual)
                    text = f"{event.block}, iteration {event.t}, residual {left}"
                    bar.set_description_str(text, refresh=False)
                elif isinstance(event, EpochDone):
                    bar.set_description_str(narrative.epoch_sentence(event), refresh=False)
                bar.update(0)  # draws at most ten times a second
                yield event
    finally:
        if close := getattr(steps, "close", None):
            close()


@singledispatch
def html(shown: object) -> str:
    """A record as HTML; what has no form of its own by its ``repr``."""
    return f"<code>{escape(repr(shown))}</code>"


@html.register
def run_html(run: RunRecord) -> str:
    """Dense against pruned, every block, and what a person should know about the outcome."""
    settings, report = run.settings, run.report
    rows = narrative.result_rows(report, example=_example(settings))
    columns = [name for name in rows[-1] if name not in ("Latency", "File size")]  # known after an export
    keep = settings.get("keep")
    told = [f"<b>{escape(_source(settings))}</b>"]
    if isinstance(keep, (int, float)):
        told.append(f"keep {keep:g}")
    told += [
        f"{name} {escape(str(settings[name]))}" for name in ("selector", "reconstruct") if name in settings
    ]
    told += [escape(words)] if (words := narrative.tuned_words(settings)) else []
    return _parts(
        f"<div>{', '.join(told)}</div>",
        _table(columns, [[escape(row.get(name, "–")) for name in columns] for row in rows]),
        blocks_pruned_html(run.blocks_pruned),
        *(f"<div>{escape(line)}</div>" for line in remark_lines(run)),
    )


def remark_lines(run: RunRecord) -> list[str]:
    """What a person should know about the outcome: the distillation, the fine-tuning, ``narrative.remarks``, and the
    run's notes."""
    settings, report, keep = run.settings, run.report, run.settings.get("keep")
    told = narrative.remarks(
        report,
        keep if isinstance(keep, (int, float)) else 1.0,
        keep if isinstance(keep, Mapping) else settings.get("keep_by_block"),
        str(settings.get("allocation", "uniform")),
    )
    trained = filter(None, (narrative.distil_sentence(report), narrative.tuned_sentence(report)))
    return [*trained, *told, *map(str, settings.get("notes", ()))]


def blocks_pruned_html(blocks: Sequence[BlockPruned]) -> str:
    """A table of what every block kept and lost."""
    refitted = any(block.error_after is not None for block in blocks)
    names = [
        "Block",
        "Kept",
        "",
        "Iterations",
        "Residual",
        *(["Re-fit", "Error"] if refitted else []),
        "Drift",
    ]
    rows = []
    for done in blocks:
        block, kept = done.block, len(done.selected)
        error = "–"
        if done.error_before is not None and done.error_after is not None:
            error = f"{narrative.residual(done.error_before)} → {narrative.residual(done.error_after)}"
        rows.append(
            [
                f"<code>{escape(block.name)}</code>",
                f"{kept:,} of {escape(narrative.plural(block.groups, block.kind))}",
                _bar(kept / block.groups),
                str(done.iterations),
                narrative.residual(done.relative_residual),
                *([escape(done.target), error] if refitted else []),
                narrative.residual(done.drift),
            ]
        )
    return _table(names, rows)


@html.register
def blocks_html(blocks: Blocks) -> str:
    """A table of what could be pruned, and why the rest could not."""
    prunable = sum(block.prunable for block in blocks)
    return _parts(
        f"<div>{prunable:,} of {narrative.plural(len(blocks), 'block')} can be pruned</div>", _plan(blocks)
    )


def _plan(blocks: Sequence[Block]) -> str:
    rows = [
        [
            f"<code>{escape(block.name)}</code>",
            escape(narrative.plural(block.groups, block.kind)),
            f"<code>{escape(', '.join(block.consumers))}</code>" if block.prunable else "–",
            "yes" if block.prunable else f"no: {escape(block.reason)}",
        ]
        for block in blocks
    ]
    return _table(["Block", "Groups", "Read by", "Prunable"], rows)


def iterations_html(
    trace: Sequence[Iteration], started: BlockStarted, selector: str = "ispasp", factor: float | None = None
) -> str:
    """What the iterations of one block did, a sentence each; of many the first and the last.

    Args:
        trace: the block's iterations, in order.
        started: the block's start.
        selector: how the groups were chosen.
        factor: c of Algorithm 1, to show why every group was a candidate.
    """
    previous: list[Iteration | None] = [None, *trace]
    said = [
        narrative.sentence(iteration, before, started, factor, selector)
        for iteration, before in zip(trace, previous, strict=False)
    ]
    if len(said) > SHOWN:
        half = SHOWN // 2
        said = [*said[:half], f"… {len(said) - 2 * half:,} more iterations", *said[-half:]]
    return _parts(
        f"<div><code>{escape(started.block.name)}</code></div>", *(f"<div>{escape(s)}</div>" for s in said)
    )


@html.register
def iteration_html(iteration: Iteration) -> str:
    """The iteration as its sentence, and its sets in short."""
    groups = len(iteration.importance)
    block = Block(iteration.block, groups, kind="group")
    # It knows neither its block's kind nor the iteration before it.
    alone = BlockStarted(block, 0, 1, len(iteration.selected), False, iteration.importance)
    said = narrative.sentence(iteration, None if iteration.t == 1 else iteration, alone)
    said = said.replace("residual stays at", "residual")
    sets = [
        ("selected", iteration.selected),
        ("added", iteration.added),
        ("dropped", iteration.dropped),
        ("candidates", iteration.candidates),
    ]
    return _parts(
        f"<div><code>{escape(iteration.block)}</code>: {escape(said)}</div>",
        _table(["Set", "Size", "Groups"], [[name, f"{len(s):,}", in_short(s)] for name, s in sets]),
    )


@html.register
def block_html(block: Block) -> str:
    """One block as a table of one row, and every module that becomes narrower with it."""
    cuts = ", ".join(f"<code>{escape(cut.module)}</code> ({escape(cut.role)})" for cut in block.cuts)
    return _parts(_plan([block]), f"<div>Cut with it: {cuts}</div>" if block.prunable else "")


@html.register
def started_html(event: Started) -> str:
    """The plan: what every block will keep."""
    rows = [
        [
            f"<code>{escape(block.name)}</code>",
            f"{kept:,} of {escape(narrative.plural(block.groups, block.kind))}",
        ]
        for block, kept in zip(event.blocks, event.keep_groups, strict=True)
    ]
    return _table(["Block", "Will keep"], rows)


@html.register
def block_started_html(event: BlockStarted) -> str:
    """Which block begins, and how much it will keep."""
    block = event.block
    decides = " Every group is a candidate, so one iteration decides." if event.one_iteration_decides else ""
    return (
        f"<div>Block {event.index + 1} of {event.total}, <code>{escape(block.name)}</code>: {event.keep_groups:,} of "
        f"{escape(narrative.plural(block.groups, block.kind))} will stay.{decides}</div>"
    )


@html.register
def block_pruned_html(event: BlockPruned) -> str:
    """What the block kept and lost, with the set in short."""
    return _parts(
        blocks_pruned_html([event]),
        f"<div>Kept: {in_short(event.selected)}</div>",
        *(f"<div>{escape(line)}</div>" for line in (narrative.refit_sentence(event), *event.notes) if line),
    )


@html.register
def distilled_html(event: Distilled) -> str:
    """What distillation did to its objective."""
    return (
        f"<div>Distilled in {narrative.plural(event.steps, 'step')}: objective {event.objective_before:.3g} → "
        f"{event.objective_after:.3g}</div>"
    )


@html.register
def epoch_done_html(event: EpochDone) -> str:
    """What an epoch of fine-tuning came to."""
    return f"<div>{escape(narrative.epoch_sentence(event))}</div>"


@html.register
def checkpoint_missed_html(event: CheckpointMissed) -> str:
    """That what is done could not be written down."""
    return f"<div>{escape(event.problem)}</div>"


@html.register
def finished_html(event: Finished) -> str:
    """The result."""
    return run_html(event.result)


def in_short(groups: Sequence[int]) -> str:
    """``"0–3, 7, 9"``: sorted indices with neighbours drawn together, the first of them; ``"none"`` without any."""
    runs: list[list[int]] = []
    for group in groups:
        if runs and group == runs[-1][-1] + 1:
            runs[-1][1:] = [group]
        else:
            runs.append([group])
    words = ["–".join(str(end) for end in run) for run in runs[:SHOWN]]
    return ", ".join(words) + (", …" if len(runs) > SHOWN else "") if words else "none"


def _source(settings: Mapping[str, Any]) -> str:
    return str(settings.get("model") or settings.get("source") or "a model from Python")


def _example(settings: Mapping[str, Any]) -> str:
    """What one example is called, as far as the settings say where the data come from."""
    from ispasp.run_settings import RunSettings  # which imports this library's results

    try:
        if settings.get("data"):
            return example_word(datasets.parse(str(settings["data"])))
        return example_word(RunSettings(_source(settings)).data_source())
    except ISpaSPError:
        return "example"


def _bar(share: float) -> str:
    """The kept fraction as a bar."""
    return (
        '<span style="display:inline-block;width:64px;height:9px;background:rgba(128,128,128,.25)">'
        f'<span style="display:block;width:{64 * share:.0f}px;height:9px;background:{_KEPT}"></span></span>'
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    styles = [_CELL] * (len(names) - 1) + [_LAST_CELL]

    def line(tag: str, cells: Iterable[str]) -> str:
        styled = zip(styles, cells, strict=True)
        return "<tr>" + "".join(f'<{tag} style="{style}">{cell}</{tag}>' for style, cell in styled) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    table = '<table style="border-collapse:collapse;margin:6px 0">'
    return f"{table}<thead>{line('th', map(escape, names))}</thead><tbody>{body}</tbody></table>"


def _parts(*parts: str) -> str:
    return f"<div>{''.join(parts)}</div>"
