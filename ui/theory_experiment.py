"""The Theory page's laboratory: the form, and what an experiment found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from ispasp import theory, theory_run
from ispasp.errors import ISpaSPError
from ispasp.narrative import percent, plural
from ispasp.series import signed
from ispasp.theory import EXPONENTS, Decay, Experiment, Findings
from ispasp.theory_figures import (
    convergence,
    convergence_figure,
    decay_figure,
    factor_figure,
    factor_info,
    network_figure,
    network_info,
)
from ui import style, theory_found
from ui.background import EXPERIMENT, EXPERIMENTS
from ui.words import escaped

_CHOICES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
_MOST = 4  # exponents that colours tell apart
_HELP = {
    "p": "How fast the rows fall: the i-th largest has the norm i to the power of −1/p. Small p: a few rows hold "
    "nearly all. Up to four values.",
    "hidden": "d, the number of hidden rows (neurons).",
    "outputs": "Outputs of the next layer. Many: it changes the lengths of all sparse inputs by nearly one factor, "
    "which is the condition of CoSaMP's theorem. With fewer than four times the rows kept, that cannot hold.",
    "trials": "How many networks are drawn at random; they are the same for every p.",
    "factor": "c: in each iteration, c times as many rows as will be kept are candidates. The paper uses 2.",
    "seed": "Of all that is drawn. The same seed gives the same result.",
    "run": "Draws the networks, prunes each to every size with Algorithm 1, then compares candidate factors and trains "
    "three small networks on digits. A few seconds with the values that the page starts with.",
    "size": "How many rows are kept in the networks whose iterations are shown.",
    "near": "What is left when all rows but one are kept.",
}
_PLOT = {"displaylogo": False}


def draw(folder: Path) -> None:
    """The form, the job, and the newest findings that answer the form; else the last ones of this session."""
    with st.container(key="section_laboratory"):
        st.subheader("The laboratory", anchor=False)
    st.markdown(
        "Hidden rows with exactly the norms $i^{-1/p}$ and random (Gaussian) weights behind them, after the paper's "
        "synthetic experiment. Algorithm 1 prunes them; a straight line through the residuals gives the slope."
    )
    job = EXPERIMENTS.job()
    going = job is not None and not job.state.ended
    with st.container(border=True, key="theory_form"):
        experiment, problem = _form()
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Run the experiment", key="theory_run", type="primary", disabled=experiment is None or going,
                on_click=_start, args=(experiment, folder), help=_HELP["run"],
            )  # fmt: skip
            if problem:
                st.caption(f"⚠️ {escaped(problem)}", width="stretch")
    if (found := theory_found.newest(_KIND, job, experiment, folder)) is not None:
        _results(found)
    elif not going:
        st.caption(
            "Nothing was run with these values yet. Press Run: the figures appear here, with the theorem's slopes."
        )


def _form() -> tuple[Experiment | None, str]:
    """The widgets, the experiment that they say, and why there is none."""
    usual = Experiment()
    columns = st.columns([2.4, 1, 1, 1, 1, 1], vertical_alignment="bottom")
    chosen = columns[0].multiselect(
        "Compressibility p", _CHOICES, default=EXPONENTS, key="theory_p", bind="query-params", max_selections=_MOST,
        persist_state="session", help=_HELP["p"],
    )  # fmt: skip
    hidden, outputs, trials = (
        place.number_input(
            title, least, most, value, step, key=f"theory_{name}", bind="query-params", persist_state="session",
            help=_HELP[name],
        )
        for place, (name, title, value, least, most, step) in zip(
            columns[1:4],
            (
                ("hidden", "Hidden rows", usual.hidden, 20, theory.MOST_HIDDEN, 50),
                ("outputs", "Outputs", usual.outputs, 1, theory.MOST_OUTPUTS, 10),
                ("trials", "Networks", usual.trials, 1, theory.MOST_TRIALS, 5),
            ),
            strict=True,
        )
    )  # fmt: skip
    factor = columns[4].number_input(
        "Candidates ×", 1.0, 10.0, usual.candidate_factor, 0.5, format="%g", key="theory_factor", bind="query-params",
        persist_state="session", help=_HELP["factor"],
    )  # fmt: skip
    seed = columns[5].number_input(
        "Seed", 0, 2**31 - 1, usual.seed, key="theory_seed", bind="query-params", persist_state="session",
        help=_HELP["seed"],
    )  # fmt: skip
    try:
        return Experiment(
            hidden=hidden, outputs=outputs, exponents=tuple(chosen), trials=trials, candidate_factor=factor, seed=seed
        ), ""  # fmt: skip
    except ISpaSPError as error:
        return None, str(error)


def _start(experiment: Experiment, folder: Path) -> None:
    EXPERIMENTS.submit(
        f"Experiment with {_named(experiment)}",
        lambda: theory_run.execute(experiment, folder),
        "cpu",
        EXPERIMENT,
    )


def _named(experiment: Experiment) -> str:
    """``"20 networks of 100 rows"``."""
    return f"{plural(experiment.trials, 'network')} of {experiment.hidden} rows"


_KIND = theory_found.Kind(EXPERIMENTS, theory_run.path_of, theory_run.load, _named)


# -- what was found -------------------------------------------------------------------------------------


def _results(findings: Findings) -> None:
    found = theory.decays(findings)
    st.markdown(escaped(_slopes_sentence(findings, found)))
    picture, numbers = st.columns([2, 1], gap="large", vertical_alignment="center")
    with picture:
        st.plotly_chart(
            decay_figure(found, findings.experiment.fitted, style.dark()), key="theory_decay", config=_PLOT
        )
    with numbers:
        _table(found)
        fitted = findings.experiment.fitted
        st.caption(
            f"The slope is taken from {fitted[0]} to {fitted[-1]} rows kept; ± is its standard deviation between "
            "networks, and the band spans all of them. Towards the right the curves fall faster than the rate, because "
            "the rows come to an end; at few rows and small p a little slower, because rows come one at a time."
        )
    left, right = st.columns(2, gap="large")
    with left:
        _convergence(findings)
    with right:
        _factors(findings)
    _networks(findings)


def _slopes_sentence(findings: Findings, found: list[Decay]) -> str:
    """Whether the order and the slopes are the theorem's."""
    said = f"Over {_named(findings.experiment)}: "
    if len(found) > 1:
        ordered = [decay.slope for decay in found] == sorted(decay.slope for decay in found)
        like = "as" if ordered else "but not everywhere as"
        said += f"the smaller p, the faster the residual falls, {like} the theorem says. "
    far = max(abs(decay.slope - decay.rate) for decay in found)
    return f"{said}The fitted slopes are within {far:.2f} of the theorem's."


def _table(found: list[Decay]) -> None:
    frame = pd.DataFrame(
        [
            {
                "p": f"{decay.exponent:g}",
                "Fitted slope": f"{signed(decay.slope)} ± {decay.spread:.2f}",
                "Theorem": signed(decay.rate),
                f"‖V‖², {decay.sizes[-1]:,} kept": f"{decay.residuals[-1]:.0e}",
            }
            for decay in found
        ]
    )
    st.dataframe(
        frame, hide_index=True, alt="Fitted slopes beside the theorem's",
        column_config={frame.columns[-1]: st.column_config.TextColumn(help=_HELP["near"])},
    )  # fmt: skip


def _convergence(findings: Findings) -> None:
    sizes = findings.experiment.fitted
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", height=58,
                      border=False):  # fmt: skip
        st.markdown("**From iteration to iteration**", width="content")
        size = st.selectbox(
            "Rows kept", sizes, index=len(sizes) // 3, key=f"theory_size_{findings.experiment.hidden}",
            format_func=lambda s: f"{s} rows kept", label_visibility="collapsed", width=150, help=_HELP["size"],
        )  # fmt: skip
    info = convergence(findings, size)
    st.plotly_chart(convergence_figure(info, style.dark()), key="theory_iterations", config=_PLOT)
    steps = sorted(set(info.arrived))
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    st.caption(
        f"It arrives after {span} iteration{'' if steps[-1] == 1 else 's'}, at a floor that the rows left out set. The "
        "dotted line is what CoSaMP's theorem promises at the least, down to the floor and where its condition holds: "
        f"the error halves, its square quarters. {_condition(findings.experiment, size)}"
    )


def _condition(experiment: Experiment, size: int) -> str:
    """Whether that condition can hold."""
    there = f"there are {experiment.outputs:,} outputs"
    if experiment.outputs < (least := experiment.outputs_needed(size)):
        return f"It cannot hold here: {size} rows kept would need at least {least:,} outputs, and {there}."
    return f"It can hold here: {size} rows kept need at least {least:,} outputs, and {there}."


def _factors(findings: Findings) -> None:
    exponents = findings.experiment.exponents
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", height=58,
                      border=False):  # fmt: skip
        st.markdown("**What the candidate factor does**", width="content")
        exponent = st.selectbox(
            "p", exponents, index=len(exponents) - 1, key=f"theory_factor_p_{len(exponents)}",
            format_func=lambda p: f"p = {p:g}", label_visibility="collapsed", width=110,
        )  # fmt: skip
    info = factor_info(findings, exponent)
    st.plotly_chart(factor_figure(info, style.dark()), key="theory_factors", config=_PLOT)
    few, many = info.recovered[0].min(), info.recovered[-1].min()
    st.caption(
        f"At the worst size, {percent(few)} of the s largest rows are kept with c = 1 and {percent(many)} with c = "
        f"{info.factors[-1]:g}. Where c × s reaches all rows, one iteration decides."
    )


def _networks(findings: Findings) -> None:
    random, trained = network_info(findings)
    st.markdown("**The same algorithm where nobody arranged the rows**")
    picture, words = st.columns([2, 1], gap="large", vertical_alignment="center")
    with picture:
        st.plotly_chart(network_figure((random, trained), style.dark()), key="theory_networks", config=_PLOT)
    with words:
        fitted = findings.experiment.fitted
        st.markdown(
            f"{plural(findings.experiment.trained, 'two-layer network')} of {findings.experiment.hidden} neurons, with "
            f"random weights and after training on 512 MNIST digits ({percent(trained.accuracy)} of the test digits "
            "right); on the left the rows of the first, elsewhere means."
        )
        st.markdown(
            "Were their rows compressible, the sorted norms would lie on a straight line. The best one has "
            f"p = {random.exponent:.1f} (R² {random.goodness:.2f}) with random weights and p = {trained.exponent:.1f} "
            f"(R² {trained.goodness:.2f}) after training; from p = 2 on the theorem promises no decay."
        )
        st.markdown(
            f"From {fitted[0]} to {fitted[-1]} rows kept, the residual falls with the slope {signed(random.slope)} "
            f"with random weights and {signed(trained.slope)} after training."
        )
