"""The second section of the Deploy page: how fast the exported files are, dense against pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from ispasp.deployment import bench, providers
from ispasp.deployment.bench import BenchSettings
from ispasp.deployment.bench_figures import Verdict, ratios_figure, ratios_info, verdict
from ispasp.errors import ISpaSPError, listing
from ispasp.jobs import Job
from ispasp.narrative import duration, plural
from ispasp.store import EXPORT
from ui import models, style
from ui.background import begin, of_run
from ui.deploy_records import Exported
from ui.deploy_words import HELP, PRECISIONS, PROVIDERS, Standing, heading, standing
from ui.words import escaped

Row = Mapping[str, Any]

_SHOWN = 12  # lines of the table; more scroll inside it
_COLUMNS = {
    "Measured": st.column_config.TextColumn(width=205),
    "Times as fast": st.column_config.TextColumn(help=HELP["ratio"]),
    "Verdict": st.column_config.TextColumn(help=HELP["ratio"]),
    "Median, ms": st.column_config.TextColumn(help=HELP["median"]),
    "95th, ms": st.column_config.TextColumn(help=HELP["p95"]),
    "99th, ms": st.column_config.TextColumn(help=HELP["p99"]),
    "Examples/s": st.column_config.TextColumn(help=HELP["throughput"]),
    "Cold start, ms": st.column_config.TextColumn(help=HELP["cold"]),
    "Memory, MB": st.column_config.TextColumn(help=HELP["memory"]),
}
_DISTURBED = 2  # 95th percentile over median from which something else must have run beside


def draw(path: Path, exported: Exported | None, job: Job | None, busy: bool) -> None:
    """Draw the section; arguments as of ``deploy_files.draw``."""
    report = bench.bench_report(path)
    damaged = report is None and (path / EXPORT / bench.FILE).is_file()
    heading(
        "2. Latency",
        "latency",
        Standing.DAMAGED if damaged else standing(job, report is not None),
        HELP["ratio"],
    )
    if exported is None:
        st.caption("Export first: the files are what is timed.")
        return
    _form(path, exported, busy, bool(report))
    of_run("bench", path).watch(job)
    if damaged:
        st.error("What was measured cannot be read: the file is damaged. Measure again.")
    if report is not None:
        _results(report, exported)


# -- what to measure ------------------------------------------------------------------------------------


def _form(path: Path, exported: Exported, busy: bool, again: bool) -> None:
    ready = [one for one in PRECISIONS if one in exported.precisions]
    here = list(providers.installed())
    with st.container(border=True, key="deploy_bench_form"):
        first = st.columns([1, 1, 1, 2.2, 1.6], vertical_alignment="bottom")
        batches = first[0].text_input(
            "Batch sizes", "1", key="deploy_batches", persist_state="session", help=HELP["batches"]
        )
        threads = first[1].text_input(
            "Threads", "1", key="deploy_threads", persist_state="session", help=HELP["threads"]
        )
        seconds = first[2].number_input(
            "Seconds each", 0.1, float(bench.MOST_SECONDS), 4.0, step=1.0, format="%g", key="deploy_seconds",
            persist_state="session", help=HELP["seconds"],
        )  # fmt: skip
        precisions = first[3].pills(
            "Precisions", ready, selection_mode="multi", default=ready, format_func=PRECISIONS.__getitem__,
            key=f"deploy_timed_{'_'.join(ready)}", persist_state="session", help=HELP["timed"],
        )  # fmt: skip
        where = first[4].pills(
            "Run by", here, selection_mode="multi", default=["cpu"] if "cpu" in here else here[:1],
            format_func=PROVIDERS.__getitem__, key="deploy_providers", persist_state="session",
            help=HELP["providers"],
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            eager = st.toggle("torch eager", key="deploy_eager", persist_state="session", help=HELP["eager"])
            compiled = st.toggle(
                "torch.compile", key="deploy_compile", persist_state="session", help=HELP["compile"]
            )
            settings, problem = _settings(batches, threads, precisions, where, seconds, eager, compiled)
            st.button(
                "Measure again" if again else "Measure", key="deploy_measure",
                type="secondary" if again else "primary", disabled=busy or settings is None, on_click=_begin,
                args=(path, settings), help=HELP["measure"],
            )  # fmt: skip
            st.caption(f"⚠️ {escaped(problem)}" if settings is None else _announced(settings), width="stretch")


def _settings(
    batches: str,
    threads: str,
    precisions: Sequence[str],
    where: Sequence[str],
    seconds: float | None,
    eager: bool,
    compiled: bool,
) -> tuple[BenchSettings | None, str]:
    """What the form amounts to, or why it amounts to nothing."""
    if not precisions or not where:
        return None, f"Choose at least one {'precision' if not precisions else 'provider'}."
    try:
        return BenchSettings(
            _numbers(batches),
            _numbers(threads),
            tuple(precisions),
            tuple(where),
            seconds or 0.0,
            eager,
            compiled,
        ), ""
    except ValueError:
        return None, "Batch sizes and threads are whole numbers separated by commas, such as 1, 8."
    except ISpaSPError as problem:
        return None, str(problem)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part.strip())


def _announced(settings: BenchSettings) -> str:
    count = len(settings.rows())
    return f"{plural(count, 'line')}, about {duration(count * settings.seconds)} of timed calls, and the opening."


def _begin(path: Path, settings: BenchSettings) -> None:
    allow = models.allow_code()
    begin(
        "bench",
        path,
        f"Latency of {path.name}",
        lambda: bench.bench_run(path, settings, allow_code=allow),
    )


# -- what came of it ------------------------------------------------------------------------------------


def _results(report: Mapping[str, Any], exported: Exported) -> None:
    rows = sorted(report["rows"], key=_place)
    timed = [row for row in rows if not row["problem"]]
    if timed:
        _verdict(timed)
        labels = [_label(row) for row in rows]
        info = ratios_info(labels, rows)
        st.plotly_chart(
            ratios_figure(info, style.dark()),
            key="deploy_ratios",
            config={"displaylogo": False, "toImageButtonOptions": {"filename": "ispasp-latency", "scale": 2}},
            alt="; ".join(
                f"{label}: {ratio:.2f} times as fast, {said.value}"
                for label, ratio, said in zip(info.labels, info.ratio, info.verdicts, strict=True)
            ),
        )
        st.dataframe(
            pd.DataFrame([_cells(row) for row in timed], columns=list(_COLUMNS)),
            hide_index=True,
            height="content" if len(timed) <= _SHOWN else 38 + 35 * _SHOWN,
            column_config=_COLUMNS,
            placeholder="–",
            alt="Latency of the dense and the pruned model in every setting",
        )
        st.caption(f"Times, rates and memory are dense → pruned. {escaped(_machine(report['machine']))}")
    for row in rows:
        if row["problem"]:
            st.error(f"**{_label(row)}** could not be measured. {escaped(row['problem'])}")
    if any(
        row[side]["p95_ms"] > _DISTURBED * row[side]["median_ms"]
        for row in timed
        for side in ("dense", "pruned")
    ):
        st.caption(
            "⚠️ Somewhere the slowest calls took more than twice the median: other programs disturbed the measurement. "
            "Close them and measure again."
        )
    used = {row["precision"] for row in timed if not row["provider"].startswith("torch")}
    wrong = sorted(
        {
            PRECISIONS[one.made.precision]
            for one in exported.files
            if not one.passed and one.made.precision in used
        }
    )
    if wrong:
        st.caption(
            f"⚠️ {listing(wrong)} failed the check above: how fast such a file is says nothing about its answers."
        )
    for note in report["notes"]:
        st.caption(escaped(note))


def _place(row: Row) -> tuple[int, bool, str, int, int]:
    """Where a line stands: FP32 on the CPU with the smallest batch first, torch last."""
    precisions = list(PRECISIONS)
    order = precisions.index(row["precision"]) if row["precision"] in precisions else len(precisions)
    if row["provider"].startswith("torch"):
        order = len(precisions) + 1
    return order, row["provider"] != "cpu", row["provider"], row["batch"], row["threads"]


def _machine(machine: Mapping[str, Any]) -> str:
    """``"Measured on CPU (2 cores), onnxruntime 1.32.0, torch 2.15.0."``, as far as it is known."""
    versions = machine.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    parts = [
        *([str(machine["processor"])] if machine.get("processor") else []),
        *(f"{name} {versions[name]}" for name in ("onnxruntime", "torch") if name in versions),
    ]
    return f"Measured on {', '.join(parts)}." if parts else ""


def _verdict(timed: Sequence[Row]) -> None:
    """The first line in a sentence, and how many of all are faster."""
    first = timed[0]
    said = verdict(first["ratio_low"], first["ratio_high"])
    interval = f"95 % interval {first['ratio_low']:.2f} to {first['ratio_high']:.2f}"
    mark = {
        Verdict.FASTER: f":green-badge[{first['ratio']:.2f} × as fast]",
        Verdict.SAME: ":gray-badge[no measurable difference]",
        Verdict.SLOWER: f":orange-badge[slower: {first['ratio']:.2f} × as fast]",
    }[said]
    counts = [verdict(row["ratio_low"], row["ratio_high"]) for row in timed]
    more = "" if set(counts) == {Verdict.FASTER} else " Section 3 says where the time goes."
    all_of = ""
    if len(timed) > 1:
        each = [f"{counts.count(one)} {one.value}" for one in Verdict if one in counts]
        all_of = f" Of {len(timed)} lines: {', '.join(each)}."
    st.markdown(f"{mark} {_label(first)}: {interval}, {first['pairs']:,} pairs of calls.{all_of}{more}")


def _label(row: Row) -> str:
    """``"FP32, batch 1, 1 thread"``; what runs it is said where it is not onnxruntime on the CPU."""
    what = PRECISIONS.get(row["precision"], row["precision"])
    provider = PROVIDERS.get(row["provider"], row["provider"])
    if row["provider"].startswith("torch"):
        what = provider
    elif row["provider"] != "cpu":
        what = f"{what} on {provider}"
    return f"{what}, batch {row['batch']}, {plural(row['threads'], 'thread')}"


def _cells(row: Row) -> dict[str, str | None]:
    def pair(values: Mapping[str, float] | None, scale: float = 1.0) -> str | None:
        return None if values is None else f"{scale * values['dense']:.3g} → {scale * values['pruned']:.3g}"

    def timing(name: str) -> str | None:
        return pair({side: row[side][name] for side in ("dense", "pruned")})

    speed = {side: row[side]["examples_per_second"] for side in ("dense", "pruned")}
    return {
        "Measured": _label(row),
        "Times as fast": f"{row['ratio']:.2f} × [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]",
        "Verdict": verdict(row["ratio_low"], row["ratio_high"]).value,
        "Median, ms": timing("median_ms"),
        "95th, ms": timing("p95_ms"),
        "99th, ms": timing("p99_ms"),
        "Examples/s": f"{speed['dense']:,.0f} → {speed['pruned']:,.0f}",
        "Cold start, ms": pair(row["cold_start_ms"]),
        "Memory, MB": pair(row["memory_bytes"], 1e-6),
    }
