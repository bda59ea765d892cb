"""Long work outside the page: a thread per job, one worker slot per device, controls between any two events.

A job drives a generator of events. Every job has its own daemon thread from its first event to its last,
because torch keeps the gradient mode and the default device per thread: a generator that entered
``torch.no_grad()`` must be resumed where it was entered.

One slot per device name: a running job holds its device's slot, the others wait in the order they asked.
A paused job gives its slot up and asks again (at the end of the queue) when it goes on, so nobody waits for
a person who went to lunch; it keeps its memory, which is why a registry holds a bounded number of open jobs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import Any

from ispasp.errors import ISpaSPError, SettingError
from ispasp.job_states import Snapshot, State
from ispasp.records import Iteration, Progress
from ispasp.unfinished import Discarded

__all__ = ["Job", "Registry", "Snapshot", "State", "Work", "registry"]

log = logging.getLogger(__name__)

Work = Callable[[], Iterator[Any]]


class _Wish(Enum):
    """What the person at the controls last asked for."""

    RUN = 1
    STEP = 2
    PAUSE = 3
    CANCEL = 4


class Job:
    """One piece of work and its controls. Made by :meth:`Registry.submit`; all methods are thread-safe.

    The lock is the registry's own: states and places in the queue change together.
    """

    def __init__(
        self,
        registry: Registry,
        title: str,
        work: Work,
        device: str,
        subject: str,
        paused: bool,
        finish: Callable[[], None] | None,
    ) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.title = title
        self.device = device
        self.subject = subject
        self.submitted = time.time()
        self.started: float | None = None
        self.finished: float | None = None
        self.state = State.PAUSED if paused else State.QUEUED
        self.error = ""
        self._failure: type[BaseException] | None = None
        self._registry = registry
        self._changed = registry._changed
        self._work: Work | None = work
        self._finish = finish
        self._finishing = False
        self._wish = _Wish.PAUSE if paused else _Wish.RUN
        self._version = 0
        self._events: list[Any] = []
        self._frozen: tuple[Any, ...] = ()
        self._progress = Progress(0.0, "")
        self._busy = 0.0
        self._since: float | None = None
        self._pace_from: tuple[float, float] | None = None
        self._thread = threading.Thread(target=self._drive, name=f"job-{self.id}", daemon=True)

    # -- controls ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Go on to the end."""
        self._ask(_Wish.RUN)

    def step(self) -> None:
        """Go on to the next ``Iteration`` event, or to the end where none follows, then pause."""
        self._ask(_Wish.STEP)

    def pause(self) -> None:
        """Stand still after the event under way and give the device to the next job."""
        self._ask(_Wish.PAUSE)

    def cancel(self) -> None:
        """End after the event under way: ``Discarded`` is thrown into the generator, and ``finally`` blocks run."""
        self._ask(_Wish.CANCEL)

    def finish(self) -> None:
        """Have the work come to its end with what it has, where it can; a paused job goes on for that."""
        with self._changed:
            if self._finish is None or self.state.ended or self._wish is _Wish.CANCEL:
                return
            if not self._finishing:
                self._finishing = True
                self._finish()
            self._ask(_Wish.RUN)

    def wait(self, *states: State, timeout: float = 60.0) -> bool:
        """Block until the job is in one of ``states`` (any ended state by default); False on timeout."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.state in states if states else self.state.ended, timeout=timeout
            )

    def snapshot(self) -> Snapshot:
        """A frozen view; the event tuple is shared between calls while no event is added."""
        with self._changed:
            if len(self._frozen) != len(self._events):
                self._frozen = tuple(self._events)
            seconds = self._seconds()
            done = self._progress.done
            return Snapshot(
                id=self.id,
                title=self.title,
                device=self.device,
                subject=self.subject,
                state=self.state,
                version=self._version,
                events=self._frozen,
                stopping=self._stopping(),
                finishing=self._finishing and not self.state.ended,
                ahead=self._registry._ahead(self),
                done=done,
                doing=self._progress.doing,
                seconds_left=None if self.state.ended else self._seconds_left(seconds, done),
                seconds=seconds,
                error=self.error,
                failure=self._failure,
                submitted=self.submitted,
                started=self.started,
                finished=self.finished,
            )

    # -- the worker -------------------------------------------------------------------------------------

    def _ask(self, wish: _Wish) -> None:
        with self._changed:
            if self.state.ended or self._wish is _Wish.CANCEL:
                return
            self._wish = wish
            if self.state is State.PAUSED and wish in (_Wish.RUN, _Wish.STEP):
                # Said here and not by the worker, so that a page that looks at once sees the click's effect.
                self._registry._enqueue(self)
                self._set(State.QUEUED)
            self._touch()

    def _stopping(self) -> bool:
        if self.state.ended:
            return False
        return self._wish is _Wish.CANCEL or (self.state is State.RUNNING and self._wish is _Wish.PAUSE)

    def _seconds(self) -> float:
        return self._busy + (time.monotonic() - self._since if self._since is not None else 0.0)

    def _seconds_left(self, seconds: float, done: float) -> float | None:
        """From the pace since the first progress: what came before (reading, tracing) is not repeated."""
        if self._pace_from is None or done - self._pace_from[1] < 0.03:
            return None
        return (seconds - self._pace_from[0]) * (1 - done) / (done - self._pace_from[1])

    def _touch(self) -> None:
        """Count a change and wake everyone who waits. Call with the lock held."""
        self._version += 1
        self._changed.notify_all()

    def _set(self, state: State) -> None:
        """Change the state and the clock of working time. Call with the lock held."""
        if state is self.state:
            return
        if self._since is not None:
            self._busy += time.monotonic() - self._since
            self._since = None
        if state is State.RUNNING:
            self._since = time.monotonic()
            self.started = self.started or time.time()
        if state.ended:
            self.finished = time.time()
        self.state = state
        self._touch()

    def _admitted(self) -> bool:
        """Wait until the job may take its next event; False when it was cancelled."""
        with self._changed:
            while True:
                if self._wish is _Wish.CANCEL:
                    return False
                if self._wish is _Wish.PAUSE:
                    self._registry._leave(self)
                    self._set(State.PAUSED)
                elif self._registry._take(self):
                    self._set(State.RUNNING)
                    return True
                else:
                    self._set(State.QUEUED)
                self._changed.wait()

    def _note(self, event: Any) -> None:
        with self._changed:
            if isinstance(event, Progress):
                # Only the newest matters; thousands of old ones would only cost memory.
                self._progress = Progress(min(max(event.done, self._progress.done), 1.0), event.doing)
                if self._pace_from is None and event.done > 0:
                    self._pace_from = (self._seconds(), event.done)
            else:
                self._events.append(event)
                if isinstance(event, Iteration) and self._wish is _Wish.STEP:
                    self._wish = _Wish.PAUSE
            self._touch()

    def _drive(self) -> None:
        state, error = State.FINISHED, ""
        failure: type[BaseException] | None = None
        events: Iterator[Any] | None = None
        try:
            while True:
                if not self._admitted():
                    state = State.CANCELLED
                    break
                if events is None:
                    assert self._work is not None
                    events = self._work()
                try:
                    event = next(events)
                except StopIteration:
                    break
                self._note(event)
                del event  # the list owns it; a local name would outlive the job's retention
        except ISpaSPError as problem:
            state, error, failure = State.FAILED, str(problem), type(problem)
        except BaseException as problem:  # even SystemExit must not leave the device taken
            log.exception("job %s (%s) failed", self.id, self.title)
            state, error, failure = State.FAILED, _unexpected(problem), type(problem)
        try:
            if state is State.CANCELLED and isinstance(events, Generator):
                with contextlib.suppress(Discarded, StopIteration):
                    events.throw(Discarded())
                    events.close()
        except Exception:
            log.exception("job %s (%s) failed while it was being closed", self.id, self.title)
        with self._changed:
            self._work = self._finish = None
            self._registry._leave(self)
            self.error, self._failure = error, failure
            if state is State.FINISHED:
                self._progress = Progress(1.0, self._progress.doing)
            self._set(state)


def _unexpected(problem: BaseException) -> str:
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return "The device ran out of memory: use fewer samples, or another device, and run again."
    return (
        f"Something unexpected went wrong ({type(problem).__name__}); the details are in the server's log. "
        "Run again, and report it with that log if it happens twice."
    )


class Registry:
    """All jobs of this process, their queues and slots.

    Args:
        retain: ended jobs that are remembered; the oldest is forgotten first.
        most_open: jobs that may be queued, running or paused at once.
    """

    def __init__(self, retain: int = 12, most_open: int = 16) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, Job] = {}
        self._holder: dict[str, Job] = {}
        self._queue: dict[str, list[Job]] = {}
        self._retain = retain
        self._most_open = most_open

    def submit(
        self,
        title: str,
        work: Work,
        device: str,
        paused: bool = False,
        subject: str = "",
        finish: Callable[[], None] | None = None,
    ) -> Job:
        """Start ``work`` (called in the job's own thread) as soon as ``device`` is free.

        Args:
            title: what a person reads in the list of jobs.
            work: makes the generator of events.
            device: name of the slot; jobs with equal names run one after the other.
            paused: begin standing still; ``step`` or ``run`` sets it going.
            subject: what the job is about, such as the run it exports, for :meth:`about`.
            finish: sets what the work looks at to come to its end early, with what it has; for :meth:`Job.finish`.

        Raises:
            SettingError: too many jobs are open.
        """
        with self._changed:
            if sum(not job.state.ended for job in self._jobs.values()) >= self._most_open:
                raise SettingError(
                    f"{self._most_open} jobs are open, which is the most this server keeps: "
                    "stop one of them on the Runs page, then start again."
                )
            job = Job(self, title, work, device, subject, paused, finish)
            self._jobs[job.id] = job
            if not paused:
                self._enqueue(job)
            ended = [old for old in self._jobs.values() if old.state.ended]
            for old in ended[: max(len(ended) - self._retain, 0)]:
                del self._jobs[old.id]
        job._thread.start()
        return job

    def get(self, id: str) -> Job | None:
        """The job with this id; None when it is unknown or forgotten."""
        with self._changed:
            return self._jobs.get(id)

    def jobs(self) -> list[Job]:
        """All remembered jobs, oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def about(self, subject: str) -> Job | None:
        """The newest job submitted with this subject; None when there is none."""
        return next((job for job in reversed(self.jobs()) if job.subject == subject), None)

    # -- slots; the lock is held by the caller ----------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        queue = self._queue.setdefault(job.device, [])
        if job not in queue and self._holder.get(job.device) is not job:
            queue.append(job)

    def _take(self, job: Job) -> bool:
        """Give the slot to the job if it is free and the job is first in its queue."""
        if self._holder.get(job.device) is job:
            return True
        self._enqueue(job)
        if job.device in self._holder or self._queue[job.device][0] is not job:
            return False
        self._queue[job.device].pop(0)
        self._holder[job.device] = job
        return True

    def _leave(self, job: Job) -> None:
        """Give up the slot or the place in the queue."""
        if self._holder.get(job.device) is job:
            del self._holder[job.device]
        queue = self._queue.get(job.device, [])
        if job in queue:
            queue.remove(job)
        for waiting in queue:  # fewer are ahead of them now
            waiting._touch()
        self._changed.notify_all()

    def _ahead(self, job: Job) -> int:
        queue = self._queue.get(job.device, [])
        return queue.index(job) + (job.device in self._holder) if job in queue else 0


registry = Registry()
"""The one of this process. A module-level name, so that it outlives every page run and browser session."""
