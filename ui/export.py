"""Take the result away: ONNX with parity, latency dense against pruned, downloads. A job of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from ispasp import figures, notebook_export, store
from ispasp.deployment import exporting
from ispasp.deployment.bench_figures import Verdict, verdict
from ispasp.errors import ISpaSPError
from ispasp.jobs import Job, State, registry
from ispasp.narrative import duration
from ui import models, style
from ui.background import check_idle, of_run
from ui.runs_actions import DEPLOY, FINETUNE
from ui.words import HELP, escaped


def _begin(path: Path) -> None:
    allow = models.allow_code()
    try:
        check_idle(path)
        # Latency is measured on the CPU: in its slot, so that no other job of this server runs beside it.
        registry.submit(
            f"Export {path.name}",
            lambda: exporting.export_run(path, allow_code=allow),
            "cpu",
            subject=of_run("export", path).subjects[0],
        )
    except ISpaSPError as problem:
        st.session_state.refused = str(problem)


def report_of(path: Path) -> dict[str, Any] | None:
    """What the export of a run found; None before it."""
    return store.export_report(path)


def draw(path: Path) -> None:
    """The section under the result.

    Args:
        path: the saved run's folder.
    """
    st.subheader("Take it away: export", anchor="export")
    job = registry.about(of_run("export", path).subjects[0])
    report = store.export_report(path)
    if job is not None and not job.state.ended:
        _running(job)
        return
    if job is not None and job.state is State.FAILED:
        st.error(f"The export failed. {escaped(job.snapshot().error)}")
    if report is not None:
        _report(path, report)
        return
    if job is not None and job.state is State.CANCELLED:
        st.caption("The export was stopped; nothing of it was kept.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            "Export to ONNX", key="export_button", type="primary", help=HELP["onnx"], on_click=_begin,
            args=(path,),
        )  # fmt: skip
        _download_saved(path)
        _download_notebook(path)
        _more(path)
        st.caption(
            "Writes the dense and the pruned model as ONNX, compares both with torch on the test examples, and "
            "measures their latency in onnxruntime. About half a minute, longer for large models.",
            width=560,
        )


def _running(job: Job) -> None:
    @st.fragment(run_every=0.5)
    def live() -> None:
        view = job.snapshot()
        if view.state.ended:
            st.rerun()
        left = f" · about {duration(view.seconds_left)} left" if view.seconds_left is not None else ""
        waiting = "Waiting for the device; it starts by itself" if view.state is State.QUEUED else ""
        st.progress(view.done, text=f"**Exporting:** {waiting or view.doing or 'starting'}{left}")

    live()
    st.button("Stop the export", key="stop_export", on_click=job.cancel, help=HELP["stop_export"])


def _download_saved(path: Path) -> None:
    st.download_button(
        "Download saved model",
        data=lambda: store.archive(path),
        file_name=f"{path.name}.zip",
        mime="application/zip",
        on_click="ignore",
        key="download_saved",
        help="The run as a zip: weights (safetensors), settings, report and every iteration. "
        "ispasp.load reads it after unpacking.",
    )


def _download_notebook(path: Path) -> None:
    st.download_button(
        "Open as notebook",
        data=lambda: notebook_export.of_run(path),
        file_name=f"{path.name}.ipynb",
        mime="application/x-ipynb+json",
        on_click="ignore",
        key="download_notebook",
        help="A Jupyter notebook that repeats exactly this run with the library, shows its figures, and checks "
        "that the same groups are selected.",
    )


def _more(path: Path) -> None:
    run = {"run": path.name}
    st.page_link(DEPLOY, label="More in Deploy", query_params=run, help=HELP["more_in_deploy"])
    st.page_link(FINETUNE, label="Fine-tune", query_params=run, help=HELP["finetune"])


def _report(path: Path, report: dict[str, Any]) -> None:
    latency, pruned, dense = report["latency"], report["onnx"], report["dense_onnx"]
    left, right = st.columns([1, 1.25], gap="medium")
    with left:
        st.markdown(
            f"**Latency**, batch of {latency['batch']}, {_threads(latency['threads'])}", help=HELP["latency"]
        )
        st.plotly_chart(
            figures.latency_figure(latency, style.dark()),
            key="latency_plot",
            config={"displayModeBar": False},
            alt="Latency of the dense and the pruned model",
        )
        st.markdown(_verdict(latency))
        if any(latency[name]["p95_ms"] > 2 * latency[name]["median_ms"] for name in ("dense", "pruned")):
            st.caption(
                "⚠️ The slowest batches took more than twice the median: other programs disturbed the "
                "measurement. Close them and press Export again."
            )
    with right:
        st.markdown("**Files and parity with torch**", help=HELP["parity"])
        st.dataframe(
            _table(dense, pruned, latency), hide_index=True, alt="Files, parity and latency", height="content"
        )
        with st.container(horizontal=True):
            file = path / pruned["path"]
            st.download_button(
                "Download ONNX",
                data=file.read_bytes,
                file_name=f"{path.name}.onnx",
                mime="application/octet-stream",
                type="primary",
                on_click="ignore",
                key="download_onnx",
                help=HELP["onnx"],
            )
            _download_saved(path)
            _download_notebook(path)
            st.button(
                "Export again", key="export_again", on_click=_begin, args=(path,), help=HELP["export_again"]
            )
            _more(path)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _verdict(latency: dict[str, Any]) -> str:
    """The ratio with its interval, in words that promise no more than was measured."""
    interval = f"{latency['ratio_low']:.2f} to {latency['ratio_high']:.2f}"
    said = {
        Verdict.FASTER: f"**{latency['ratio']:.2f} times as fast** as the dense model",
        Verdict.SLOWER: f"**Slower** than the dense model: {latency['ratio']:.2f} times as fast",
        Verdict.SAME: f"**No measurable difference**: {latency['ratio']:.2f} times as fast",
    }[verdict(latency["ratio_low"], latency["ratio_high"])]
    return f"{said} (95 % interval {interval}, {latency['pairs']:,} pairs of batches in turns)."


def _table(dense: dict[str, Any], pruned: dict[str, Any], latency: dict[str, Any]) -> pd.DataFrame:
    def row(name: str, file: dict[str, Any], time: dict[str, Any]) -> dict[str, str]:
        agreement = file["top1_agreement"]
        return {
            "Model": name,
            "File": f"{file['bytes'] / 1e6:.2f} MB",
            "Opset": str(file["opset"]),
            "Max. absolute difference": f"{file['max_abs_diff']:.1e}",
            "Max. relative difference": f"{file['max_rel_diff']:.1e}",
            "Same answer": "–" if agreement is None else f"{100 * agreement:.1f} % of {file['examples']:,}",
            "Median": f"{time['median_ms']:.3g} ms",
            "95th percentile": f"{time['p95_ms']:.3g} ms",
        }

    rows = [row("dense", dense, latency["dense"]), row("pruned", pruned, latency["pruned"])]
    # A column per model: the names of the quantities are too long to stand side by side.
    return pd.DataFrame(
        [{"Quantity": name, **{r["Model"]: r[name] for r in rows}} for name in list(rows[0])[1:]]
    )
