"""The form of the Budget page: which model, how it is pruned, what it may cost and lose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import streamlit as st

from ispasp import selectors
from ispasp.budget import Budget
from ispasp.errors import ISpaSPError
from ispasp.narrative import quantity
from ispasp.run_settings import RunSettings
from ispasp.settings import RECONSTRUCTIONS
from ispasp.vocabulary import refit_words, selector_words
from ui import bases, models
from ui.words import HELP, escaped, source_words

ALONE = "Accuracy alone"
KINDS = {"MACs": "macs", "Parameters": "params", "Speed": "speedup", ALONE: ""}
UNITS = {"% of dense": 0.0, "k": 1e3, "M": 1e6, "G": 1e9}
"""What one of them is; a share is no fixed number."""
_SHARE = "% of dense"
_VARIED = ("model", "keep", "keep_by_block", "allocation", "selector", "reconstruct", "samples", "device")
_HELP = {
    "kind": "What the pruned model may cost: multiply-accumulate operations for one example (MACs), trained numbers "
    "(parameters), or time in onnxruntime at batch 1 on this machine (speed). Accuracy alone: the fewest MACs that "
    "lose no more than you allow.",
    "most": "Of the dense model's, or as a number of your own: k are thousands, M millions, G thousand millions.",
    "fast": "How many times faster than the dense model, at batch 1 on this machine. Every layer is timed once at "
    "every width, then whole models are, until one is fast enough.",
    "loss": "Percentage points of accuracy that pruning may cost, measured on the test examples; it needs labels. "
    "Empty: any loss. Where it contradicts the cost, the result says what each would need.",
}


@dataclass(frozen=True)
class Asked:
    """What the form says.

    Attributes:
        settings: None where they cannot be used.
        budgets: what to meet; empty where that cannot be tried.
        problem: why not; empty where it can.
        words: the same for people.
    """

    settings: RunSettings | None
    budgets: tuple[Budget, ...]
    problem: str
    words: str


def draw() -> Asked:
    """The widgets, and what they amount to."""
    known = bases.bases()
    _begin(known)
    first = st.columns([1.6, 1.8, 1.5, 1], vertical_alignment="bottom")
    name = first[0].selectbox(
        "Model", list(known), key="budget_model", bind="query-params", persist_state="session",
        on_change=_other_model, help=bases.HELP,
    )  # fmt: skip
    base = known[name]
    selector = first[1].selectbox(
        "Selector", selectors.names(), key="budget_selector", bind="query-params", persist_state="session",
        format_func=lambda one: selector_words(one).title, help=HELP["selector"],
    )  # fmt: skip
    refit = first[2].selectbox(
        "Re-fit", RECONSTRUCTIONS, key="budget_refit", bind="query-params", persist_state="session",
        format_func=lambda one: refit_words(one)[0], help=HELP["reconstruct"],
    )  # fmt: skip
    samples = first[3].number_input(
        "Samples", 1, step=1, key="budget_samples", bind="query-params", persist_state="session",
        help=HELP["samples"],
    )  # fmt: skip
    costs = _costs(base)
    budgets, problem = _budgets(base, costs)
    settings = None
    try:
        settings = dataclasses.replace(
            base, selector=selector, reconstruct=refit, samples=samples, keep_by_block={}, allocation="uniform"
        )  # fmt: skip
    except ISpaSPError as error:
        problem = str(error)
    return Asked(settings, () if problem else budgets, problem, _words(base, budgets, costs))


def _begin(known: dict[str, RunSettings]) -> None:
    """Give the widgets their first values: of the model last looked at on Explore, where the address has none."""
    state = st.session_state
    last = bases.last(known)
    name = state.get("budget_model") or st.query_params.get("budget_model", last)
    if name not in known:
        name = last
        state.budget_model = name
    base = known[name]
    for key, value in (
        ("budget_model", name),
        ("budget_selector", base.selector),
        ("budget_refit", base.reconstruct),
        ("budget_samples", base.samples),
    ):
        if key not in state and key not in st.query_params:
            state[key] = value


def _other_model() -> None:
    """The number of examples belongs to the model."""
    st.session_state.budget_samples = bases.bases()[st.session_state.budget_model].samples


def _costs(base: RunSettings) -> dict[str, float]:
    """What the dense model costs; empty where it cannot be said at once."""
    source = base.model_source()
    if not models.at_once(source):
        return {}
    try:
        parameters, macs = models.costs(source)
    except ISpaSPError:
        return {}  # the job will say why
    return {"macs": float(macs), "params": float(parameters)}


def _budgets(base: RunSettings, costs: dict[str, float]) -> tuple[tuple[Budget, ...], str]:
    """The second row of widgets: what is to be met, and why it cannot be tried."""
    with st.container(horizontal=True, vertical_alignment="bottom", key="budget_limits"):
        title = st.segmented_control(
            "The pruned model is held to", list(KINDS), default="MACs", required=True, key="budget_kind",
            bind="query-params", persist_state="session", width="content", help=_HELP["kind"],
        ) or "MACs"  # fmt: skip
        kind = KINDS[title]
        given = _cost(base, title, costs)
        points = st.number_input(
            "Lose at most (points)", 0.0, value=None, step=0.5, format="%g", key="budget_loss", width=200,
            bind="query-params", persist_state="session",
            placeholder="any loss" if kind else "such as 2", help=_HELP["loss"],
        )  # fmt: skip
    if points is not None:
        given.append(("loss", points, False))
    if not given:
        return (), "Give how many points of accuracy the pruned model may lose."
    try:
        return tuple(Budget(kind, float(limit), share) for kind, limit, share in given), ""
    except ISpaSPError as error:
        return (), str(error)


def _cost(base: RunSettings, title: str, costs: dict[str, float]) -> list[tuple[str, float, bool]]:
    """The number beside the choice of cost: kind, limit and whether it is a share."""
    kind = KINDS[title]
    if not kind:
        return []
    if kind == "speedup":
        times = st.number_input(
            "Times faster, at least", 0.0, value=2.0, step=0.1, format="%g", key="budget_speed", width=200,
            bind="query-params", persist_state="session", help=_HELP["fast"],
        )  # fmt: skip
        return [(kind, times, False)]
    key = f"budget_unit_{kind}"
    unit = st.session_state.get(key, st.query_params.get(key))
    size = UNITS.get(unit or _SHARE, 0.0)
    usual = 0.5 * costs.get(kind, 0.0) / size if size else 50.0
    most = st.number_input(
        "At most", 0.0, value=float(f"{usual:.3g}"), step=_step(usual), format="%g", width=150,
        key=f"budget_{kind}_{unit}_{base.model}" if size else f"budget_{kind}", bind="query-params",
        persist_state="session", help=_HELP["most"],
    )  # fmt: skip
    st.selectbox(
        "Unit", list(UNITS), key=key, bind="query-params", persist_state="session",
        label_visibility="hidden", width=130,
    )  # fmt: skip
    return [(kind, round(most * size) if size else most / 100, not size)]


def _step(usual: float) -> float:
    """A tenth of what is usual, as a round number."""
    return float(f"{max(usual, 1e-6) / 10:.0e}")


def _words(base: RunSettings, budgets: tuple[Budget, ...], costs: dict[str, float]) -> str:
    """``"At most 50 % of the MACs of mnist_mlp: 49 k of 98 k."``, and what of the settings is not as usual."""
    model = escaped(source_words(base.model))
    said = [f"{described(budgets)}, {model}"] if budgets else []
    if budgets and (dense := costs.get(budgets[0].kind)):
        most = budgets[0].most(dense)
        said = [f"{said[0]}: {quantity(most, dense)} of {quantity(dense)}"]
    if any(budget.kind == "speedup" for budget in budgets):
        said.append("Times are measured, so leave the machine to it meanwhile")
    if as_set := bases.as_set(base, _VARIED):
        said.append(as_set)
    return "".join(f"{sentence}. " for sentence in said)


def described(budgets: tuple[Budget, ...]) -> str:
    """``"At most 50 % of the MACs, lose at most 2 points of accuracy"``."""
    text = ", ".join(budget.words for budget in budgets)
    return text[:1].upper() + text[1:]
