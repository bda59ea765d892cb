"""The Theory page: what the paper proves, the laboratory for it, and what is left of it on real networks."""

from __future__ import annotations

import streamlit as st

from ispasp import store
from ui import theory_digits, theory_experiment, theory_model

_CLAIM = (
    "A pruned layer leaves something out: the **residual** $V$, the dense output minus the pruned one; "
    r"$\|V\|_F^2$ is the sum of its squares over all calibration examples. Take the hidden rows, one per neuron: what "
    "it gives over these examples. Sort them by size. If the $i$-th is about $i^{-1/p}$ times the largest, a few rows "
    "hold nearly everything, and the theorem says how fast the residual shrinks with the number $s$ of rows that "
    "Algorithm 1 keeps."
)
_READING = (
    "On log scales that is a straight line of slope $1-2/p$: the smaller $p$, the steeper. At $p=0.3$, twice the rows "
    r"leave a fiftieth of $\|V\|_F^2$; at $p=0.9$ less than half. From $p=2$ on, the rate is no decay."
)
_ASSUMES = (
    "**The rows are compressible**, all of them, with one $p$. CoSaMP, from which the algorithm descends, is about "
    "small $p$, 1 or so at most; the paper's experiment takes 0.3 to 0.9.",
    "**The next layer nearly keeps lengths** of whatever few rows it is given, but for one factor (the restricted "
    "isometry property of CoSaMP's theorem, for four times the rows kept). Random weights do where outputs are several "
    "times that many. The experiment's usual 20 outputs are too few; the rate shows all the same, as the rows' sums "
    "alone rank them nearly rightly.",
    "**Activations are never negative** (ReLU), so that a row's sum says how large it is.",
    "**Iterations.** Under such conditions CoSaMP's error at least halves from one iteration to the next, down to a "
    "floor that the small rows set. CoSaMP also re-fits its coefficients each time, which Algorithm 1 leaves out.",
)
_LIMITS = (
    "It is a rate, not a number: the theorem bounds the residual from above up to a constant, which is not looked at "
    "here.",
    "The networks of the experiment are made so that they fit. Below you see that trained ones mostly do not.",
    "Rows in such clear order are found by simpler selections, too: keeping the largest hidden sums, without any "
    "iteration, gives the same slopes.",
    "The residual is that of one layer on the data it was chosen with. It is neither the accuracy of the network nor "
    "the error on new data.",
    "Real rows are finite in number: near full size the residual falls faster than any rate, so the slope is taken "
    "from 5 % to half of the rows.",
)
_SOURCES = (
    "Sources: C. Wolfe and A. Kyrillidis, *i-SpaSP: Structured Neural Pruning via Sparse Signal Recovery*, L4DC 2022 "
    "([arXiv 2112.04905](https://arxiv.org/abs/2112.04905)), for the rate and the experiment. Its proof was not at "
    "hand when this was written: the assumptions are those of CoSaMP's theorem, carried over to rows, and the paper's "
    "own list, with its constants, is to be read there. D. Needell and J. Tropp, *CoSaMP: Iterative signal recovery "
    "from incomplete and inaccurate samples*, Applied and Computational Harmonic Analysis 26, 2009, for compressible "
    "signals, restricted isometry and the halving."
)


def draw() -> None:
    """Draw the page."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="title"):
        st.title("Theory", anchor=False, width="content")
        st.caption(
            "Why keeping few rows can be enough: what the paper proves, networks on which it can be watched, and what "
            "is left of it on yours.",
            width="content",
        )
    folder = store.default_folder()
    _theorem()
    theory_experiment.draw(folder)
    theory_model.draw(folder)
    theory_digits.draw(folder)


def _theorem() -> None:
    with st.container(border=True, key="theorem"):
        words, formula = st.columns([1.7, 1], gap="large", vertical_alignment="center")
        words.markdown(f"**What the theorem says.** {_CLAIM}")
        words.markdown(_READING)
        with formula:
            st.latex(r"\|V\|_F \;\sim\; s^{\,\frac12-\frac1p}")
            st.latex(r"\|V\|_F^2 \;\sim\; s^{\,1-\frac2p}")
        with st.expander("What it assumes, and what this page does not show"):
            assumed, left = st.columns(2, gap="large")
            assumed.markdown("**It assumes**\n\n" + "\n".join(f"- {one}" for one in _ASSUMES))
            left.markdown("**Not shown here**\n\n" + "\n".join(f"- {one}" for one in _LIMITS))
            st.caption(_SOURCES)
