"""The Theory page's part on MNIST: two-layer networks, i-SpaSP against greedy forward selection and others."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ispasp import two_layer_run
from ispasp.errors import ISpaSPError
from ispasp.jobs import Snapshot
from ispasp.narrative import plural
from ispasp.two_layer_figures import accuracy_figure, accuracy_info, outcome, time_figure, time_info
from ispasp.two_layer_records import TwoLayerExperiment, TwoLayerFindings, TwoLayerPoint
from ui import style, theory_found
from ui.background import DIGIT_RUNS, DIGITS
from ui.words import escaped

_SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000)
_FIRST = (100, 500, 2000)  # a minute or so together
_SECONDS = 1.0  # of evaluated greedy selection, each time
_REFITS = {"none": "as it was", "symmetric": "re-fitted"}
_TUNED = {False: "not fine-tuned", True: "fine-tuned"}
_HELP = {
    "sizes": "Hidden neurons of the networks. 10,000 take minutes and 2.4 GB.",
    "networks": "Networks of every size, each from other random weights; whiskers span them.",
    "tuning": "Epochs on the training digits after pruning; 0 leaves fine-tuning out.",
    "run": "Trains the networks, prunes each with five selectors at four kept fractions, re-fits and fine-tunes them. "
    "About a minute with the values that the page starts with.",
    "layer": "Whether the weights behind the kept neurons stay as they were, or are re-fitted by least squares.",
    "evaluated": "As published, greedy forward selection tries every neuron by a forward pass in every step. Where "
    "that would take too long, some of it is timed and the exact number of evaluations gives the total.",
}
_PLOT = {"displaylogo": False}


def draw(folder: Path) -> None:
    """The form, the job, and what was found; else the last findings of this session."""
    with st.container(key="section_digits"):
        st.subheader("Two-layer networks on MNIST", anchor=False)
    st.markdown(
        "The paper's smallest real networks: 784 pixels, hidden neurons, 10 digits. i-SpaSP against greedy forward "
        "selection, which has a theorem too but evaluates every neuron in every step, and against simple rankings."
    )
    job = DIGIT_RUNS.job()
    going = job is not None and not job.state.ended
    with st.container(border=True, key="digits_form"):
        experiment, problem = _form()
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Run on digits", key="digits_run", disabled=experiment is None or going, on_click=_start,
                args=(experiment, folder), help=_HELP["run"],
            )  # fmt: skip
            if problem:
                st.caption(f"⚠️ {escaped(problem)}", width="stretch")
    if (found := theory_found.newest(_KIND, job, experiment, folder, _so_far)) is not None:
        _results(found)
    elif not going:
        st.caption("These networks were not tried yet. Press Run: accuracy and time appear here.")


def _form() -> tuple[TwoLayerExperiment | None, str]:
    """The widgets, the experiment that they say, and why there is none."""
    columns = st.columns([3, 1, 1.3], vertical_alignment="bottom")
    sizes = columns[0].multiselect(
        "Hidden neurons", _SIZES, default=_FIRST, key="digits_sizes", bind="query-params", persist_state="session",
        format_func=lambda size: f"{size:,}", help=_HELP["sizes"],
    )  # fmt: skip
    networks = columns[1].number_input(
        "Networks each", 1, 5, 1, key="digits_networks", bind="query-params", persist_state="session",
        help=_HELP["networks"],
    )  # fmt: skip
    tuning = columns[2].number_input(
        "Fine-tuning epochs", 0, 10, 2, key="digits_tuning", bind="query-params", persist_state="session",
        help=_HELP["tuning"],
    )  # fmt: skip
    try:
        return TwoLayerExperiment(
            sizes=tuple(sorted(sizes)),
            seeds=tuple(range(networks)),
            tuning_epochs=tuning,
            evaluated_seconds=_SECONDS,
        ), ""  # fmt: skip
    except ISpaSPError as error:
        return None, str(error) if sizes else "Choose at least one number of hidden neurons."


def _start(experiment: TwoLayerExperiment, folder: Path) -> None:
    DIGIT_RUNS.submit(
        f"Digits with {_named(experiment)}", lambda: two_layer_run.execute(experiment, folder), "cpu", DIGITS
    )


def _named(experiment: TwoLayerExperiment) -> str:
    """``"3 networks of 100 to 2,000 neurons"``."""
    sizes = f"{experiment.sizes[0]:,}"
    if len(experiment.sizes) > 1:
        sizes += f" to {experiment.sizes[-1]:,}"
    return f"{plural(len(experiment.sizes) * len(experiment.seeds), 'network')} of {sizes} neurons"


def _so_far(snapshot: Snapshot) -> None:
    """What is found while it goes on."""
    points = [event for event in snapshot.events if isinstance(event, TwoLayerPoint)]
    if points and not snapshot.state.ended:
        last = points[-1]
        st.caption(
            f"{plural(len(points), 'pruned network')} measured; the last: {last.kept:,} of {last.neurons:,} neurons by "
            f"{last.selector}, {100 * last.accuracy:.1f} % of the test digits right."
        )


_KIND = theory_found.Kind(DIGIT_RUNS, two_layer_run.path_of, two_layer_run.load, _named)


def _results(findings: TwoLayerFindings) -> None:
    experiment = findings.experiment
    with st.container(horizontal=True, vertical_alignment="bottom", key="digits_show"):
        neurons = st.selectbox(
            "Network", experiment.sizes, index=len(experiment.sizes) - 1, width=170,
            key=f"digits_size_{len(experiment.sizes)}_{experiment.sizes[-1]}",
            format_func=lambda size: f"{size:,} neurons",
        )  # fmt: skip
        keep = st.selectbox(
            "Kept fraction", experiment.keeps, index=len(experiment.keeps) - 1, key="digits_keep",
            format_func=lambda value: f"keep {value:g}", width=140,
        )  # fmt: skip
        refit = st.segmented_control(
            "Output layer", experiment.reconstruct, default="none", required=True, key="digits_refit",
            format_func=_REFITS.__getitem__, width="content", help=_HELP["layer"],
        ) or "none"  # fmt: skip
        tuned = bool(experiment.tuning_epochs) and st.segmented_control(
            "Afterwards", list(_TUNED), default=False, required=True, key="digits_tuned",
            format_func=_TUNED.__getitem__, width="content",
        )  # fmt: skip
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**What is left of the accuracy**")
        info = accuracy_info(findings.networks, findings.points, neurons, refit, bool(tuned))
        st.plotly_chart(accuracy_figure(info, style.dark()), key="digits_accuracy", config=_PLOT)
    with right:
        st.markdown(f"**What choosing costs, keep {keep:g}**", help=_HELP["evaluated"])
        times = time_info(findings.points, findings.evaluated, keep)
        st.plotly_chart(time_figure(times, style.dark()), key="digits_time", config=_PLOT)
    told = outcome(findings.networks, findings.points, findings.evaluated, neurons, keep)
    st.markdown("\n".join(f"- {escaped(sentence)}" for sentence in told))
    samples = min(experiment.samples, findings.training_digits)
    st.caption(
        f"{findings.training_digits:,} training digits, {samples:,} of them to calibrate with, "
        f"{findings.test_digits:,} test digits: so few that differences below some "
        f"{2 * findings.standard_error:.1f} points may be chance. Seconds are processor seconds from the stored hidden "
        "rows to the chosen set, without re-fit and fine-tuning."
    )
