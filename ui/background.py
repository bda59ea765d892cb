"""Jobs that a page starts and follows: the id in the address and in the session, and how the job goes.

The address survives a refresh, the session survives a change of page; another browser sees the newest such job
that is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from ispasp.errors import ISpaSPError, SettingError
from ispasp.jobs import Job, Snapshot, State, Work, registry
from ispasp.narrative import duration
from ispasp.tuning.records import Began
from ui import library
from ui.runs_actions import COMPARE, DEPLOY, FINETUNE, PAGES
from ui.words import HELP, escaped

SWEEP, BUDGET, SENSITIVITY = "sweep", "budget", "sensitivity"
EXPERIMENT, ROWS, DIGITS = "theory experiment", "rows of blocks", "two-layer networks"
"""The subjects of the jobs."""


def nothing(snapshot: Snapshot) -> None:
    """Nothing to add."""


class Follower(NamedTuple):
    """What a page follows.

    Attributes:
        subjects: of the jobs it may start.
        page: where they are watched.
        query: the name that the job's id has in the address.
        stop: what Stop does, on hover.
        run: id of the run that the jobs are about, which the address names as well; empty for jobs about none.
        ends: what Stop is called.
        finish: what "Stop and keep the best" does, on hover; empty for jobs that have nothing to keep on their way.
    """

    subjects: tuple[str, ...]
    page: Path
    query: str
    stop: str
    run: str = ""
    ends: str = "Stop"
    finish: str = ""

    def address(self, job: Job) -> dict[str, str]:
        """The query of the page's address that shows this job."""
        return {self.query: job.id} | ({"run": self.run} if self.run else {})

    def job(self) -> Job | None:
        """The job that this session follows, else the newest one under way."""
        id = st.query_params.get(self.query) or st.session_state.get(f"seen_{self.query}")
        job = registry.get(id) if id else None
        if job is None or job.subject not in self.subjects:
            going = [one for one in registry.jobs() if one.subject in self.subjects and not one.state.ended]
            job = going[-1] if going else None
        self.follow(job)
        return job

    def follow(self, job: Job | None) -> None:
        """Follow this job from now on, or none."""
        if job is None:
            st.session_state.pop(f"seen_{self.query}", None)
            st.query_params.pop(self.query, None)
            return
        st.session_state[f"seen_{self.query}"] = job.id
        if st.query_params.get(self.query) != job.id:
            st.query_params[self.query] = job.id

    def submit(
        self,
        title: str,
        work: Work,
        device: str,
        subject: str,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Start a job on a device by its name in the settings, and follow it; a refusal is told by ``watch``.

        The rest is as ``Registry.submit`` takes it.
        """
        try:
            self.follow(registry.submit(title, work, library.slot(device), subject=subject, finish=finish))
        except ISpaSPError as problem:
            self.refuse(problem)

    def refuse(self, problem: ISpaSPError) -> None:
        """Have ``watch`` tell once that something could not be done."""
        st.session_state[f"refused_{self.query}"] = str(problem)

    def watch(
        self,
        job: Job | None,
        ended: Callable[[Snapshot], None] = nothing,
        details: Callable[[Snapshot], None] = nothing,
        line: Callable[[Snapshot], str] | None = None,
    ) -> None:
        """How the job goes: a bar and its buttons, looked at every second; the page is drawn anew when it ends.

        A paused job is looked at, too: another tab may have it go on.

        Args:
            ended: draws, beside Close, what there is to say or to do once it has ended.
            details: draws, below, what is known at every look.
            line: says how it goes; ``status`` unless given.
        """
        if refused := st.session_state.pop(f"refused_{self.query}", None):
            st.error(escaped(refused))
        if job is None:
            return
        state, live, said = job.state, job.snapshot().live, line or status

        def draw() -> None:
            snapshot = job.snapshot()
            if (snapshot.state, snapshot.live) != (state, live):
                st.rerun()
            with st.container(border=True, key=f"status_{self.query}"):
                if snapshot.error:
                    st.markdown(said(snapshot))
                    st.error(escaped(snapshot.error))
                else:
                    st.progress(snapshot.done, text=said(snapshot))
                with st.container(horizontal=True, vertical_alignment="center"):
                    self._buttons(job, snapshot)  # first: Close is what a second click on Stop may hit
                    if snapshot.state.ended:
                        ended(snapshot)
                details(snapshot)

        if not state.ended:
            st.fragment(draw, run_every=1.0)()
        else:  # Close changes the rest of the page, too: a button in a fragment draws no more than that anew
            draw()

    def _buttons(self, job: Job, snapshot: Snapshot) -> None:
        if snapshot.state.ended:
            st.button("Close", key=f"close_{self.query}", on_click=self.follow, args=(None,))
            return
        if snapshot.state is State.PAUSED:
            st.button("Go on", key=f"go_on_{self.query}", on_click=job.run, disabled=snapshot.stopping)
        else:
            st.button(
                "Pause", key=f"pause_{self.query}", on_click=job.pause, help=HELP["pause"],
                disabled=snapshot.stopping or snapshot.finishing,
            )  # fmt: skip
        if self.finish:
            st.button(
                "Stop and keep the best", key=f"finish_{self.query}", on_click=job.finish, help=self.finish,
                disabled=snapshot.stopping or snapshot.finishing
                or all(isinstance(event, Began) for event in snapshot.events),
            )  # fmt: skip
        st.button(
            self.ends, key=f"stop_{self.query}", on_click=job.cancel, help=self.stop,
            disabled=snapshot.stopping,
        )  # fmt: skip


SWEEPS = Follower(
    (SWEEP,),
    COMPARE,
    "sweeping",
    "End this sweep within one iteration. Runs that are finished stay, and the sweep can be resumed.",
)
BUDGETS = Follower(
    (BUDGET, SENSITIVITY),
    PAGES / "budget.py",
    "measuring",
    "End this within one step. A run that is finished already stays.",
)
THEORY = PAGES / "theory.py"
EXPERIMENTS = Follower((EXPERIMENT,), THEORY, "experimenting", "End the experiment. Nothing of it is kept.")
ROW_LOOKS = Follower((ROWS,), THEORY, "looking", "End this within one step. Nothing of it is kept.")
DIGIT_RUNS = Follower((DIGITS,), THEORY, "comparing", "End this within one step. Nothing of it is kept.")


OPERATIONS = {
    "export": ("exporting", "End the export after the step under way. Nothing of it is kept; the run stays."),
    "bench": ("timing", "End the measurement. The lines that are finished stay."),
    "profile": ("profiling", "End the profile. Nothing of it is kept; an earlier one stays."),
}
"""What the Deploy page does to a run: the query that names its job, and what Stop does."""


def of_run(operation: str, path: Path) -> Follower:
    """Who follows one operation on the run in the folder ``path``: ``"export"``, ``"bench"`` or ``"profile"``."""
    query, stop = OPERATIONS[operation]
    return Follower((f"{operation}:{path}",), DEPLOY, query, stop, path.name)


TUNE = "tune"


def tuning_of(path: Path) -> Follower:
    """Who follows the fine-tuning of the run in the folder ``path``."""
    return Follower(
        (f"{TUNE}:{path}",),
        FINETUNE,
        "tuning",
        "End the fine-tuning. Nothing of it is kept; the run itself stays as it is.",
        path.name,
        ends="Discard",
        finish="End it after the step under way, and save the best weights so far as a run. Blocks that are still to "
        "be pruned are pruned without training.",
    )


def under_way(path: Path) -> Job | None:
    """The job that does something to the run in this folder at the moment, whoever started it."""
    subjects = {of_run(operation, path).subjects[0] for operation in OPERATIONS}
    return next((job for job in registry.jobs() if job.subject in subjects and not job.state.ended), None)


def check_idle(path: Path) -> None:
    """Raises SettingError where something is done to the run already: a page drawn before that does not know."""
    if going := under_way(path):
        raise SettingError(
            f"{going.snapshot().title} is under way: wait until it ends, or stop it on Deploy."
        )


def begin(operation: str, path: Path, title: str, work: Work) -> None:
    """Start an operation on a run, in the CPU's slot, so that no other job of this server runs beside it."""
    one = of_run(operation, path)
    try:
        check_idle(path)
    except ISpaSPError as problem:
        one.refuse(problem)
    else:
        one.submit(title, work, "cpu", one.subjects[0])


def follower(subject: str) -> Follower | None:
    """Who follows jobs of this subject; None where no page of its own does."""
    operation, _, path = subject.partition(":")
    if operation in OPERATIONS:
        return of_run(operation, Path(path))
    if operation == TUNE:
        return tuning_of(Path(path))
    return next(
        (one for one in (SWEEPS, BUDGETS, EXPERIMENTS, ROW_LOOKS, DIGIT_RUNS) if subject in one.subjects),
        None,
    )


def status(snapshot: Snapshot) -> str:
    """``"**Title**: what it does · about 5 s left"``."""
    title = f"**{escaped(snapshot.title)}**"
    if snapshot.state is State.QUEUED:
        return f"{title}: waiting for the device; it starts by itself"
    if snapshot.state is State.RUNNING:
        left = "" if snapshot.seconds_left is None else f" · about {duration(snapshot.seconds_left)} left"
        doing = "ending" if snapshot.stopping else snapshot.doing or "starting"
        if snapshot.finishing and not snapshot.stopping:
            doing, left = f"finishing, {doing}", ""
        return f"{title}: {escaped(doing)}{left}"
    if snapshot.state is State.FINISHED:
        return f"{title}: finished in {duration(snapshot.seconds)}"
    return f"{title}: {snapshot.state.value}"
