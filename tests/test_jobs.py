"""Jobs drive real threads and real generators here; waits are on states, never on time alone."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ispasp.errors import ModelError, SettingError
from ispasp.jobs import Job, Registry, State
from ispasp.records import Iteration, Progress


def iteration(t: int, block: str = "a") -> Iteration:
    zeros = torch.zeros(2, dtype=torch.float64)
    return Iteration(block, t, zeros, zeros, zeros, (0, 1), (0,), (0,), (), 1.0, 0.5, False, 0.0)


def count(upto: int, closed: list[str] | None = None, gate: threading.Event | None = None) -> Iterator[Any]:
    """An iteration followed by a word and a progress report, ``upto`` times."""
    try:
        for t in range(1, upto + 1):
            if gate is not None:
                assert gate.wait(30)
            yield iteration(t)
            yield f"after {t}"
            yield Progress(t / upto, f"{t} of {upto}")
    finally:
        if closed is not None:
            closed.append("closed")


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry(retain=3, most_open=5)
    yield made
    for job in made.jobs():
        job.cancel()
    assert all(job.wait(timeout=10) for job in made.jobs())


def iterations(job: Job) -> list[int]:
    return [event.t for event in job.snapshot().events if isinstance(event, Iteration)]


def test_a_job_runs_to_its_end_and_keeps_every_event_but_progress(registry: Registry) -> None:
    job = registry.submit("count", lambda: count(3), "cpu")
    assert job.wait(State.FINISHED)
    view = job.snapshot()
    assert [e.t if isinstance(e, Iteration) else e for e in view.events] == [
        1,
        "after 1",
        2,
        "after 2",
        3,
        "after 3",
    ]
    assert (view.done, view.doing, view.error, view.seconds_left) == (1.0, "3 of 3", "", None)
    assert view.started is not None and view.finished is not None
    assert view.submitted <= view.started <= view.finished


def test_step_goes_to_the_next_iteration_and_stands_still(registry: Registry) -> None:
    job = registry.submit("count", lambda: count(3), "cpu", paused=True)
    assert job.state is State.PAUSED and iterations(job) == []
    for expected in ([1], [1, 2], [1, 2, 3]):
        job.step()
        assert job.wait(State.PAUSED)
        assert iterations(job) == expected
        assert isinstance(job.snapshot().events[-1], Iteration)
    job.step()  # no iteration follows: the step goes to the end
    assert job.wait(State.FINISHED)


def test_a_step_is_visible_at_once(registry: Registry) -> None:
    gate = threading.Event()
    job = registry.submit("count", lambda: count(2, gate=gate), "cpu", paused=True)
    job.step()
    assert job.state in (State.QUEUED, State.RUNNING)
    gate.set()
    assert job.wait(State.PAUSED)


def test_pause_then_run(registry: Registry) -> None:
    gate = threading.Event()
    job = registry.submit("count", lambda: count(5, gate=gate), "cpu")
    assert job.wait(State.RUNNING)
    job.pause()
    assert job.snapshot().stopping
    gate.set()
    assert job.wait(State.PAUSED)
    seen = iterations(job)
    assert len(seen) <= 1 and not job.snapshot().stopping
    job.run()
    assert job.wait(State.FINISHED)
    assert iterations(job) == [1, 2, 3, 4, 5]


def test_cancel_takes_effect_before_the_next_event_and_closes_the_generator(registry: Registry) -> None:
    gate, closed = threading.Event(), []
    job = registry.submit("count", lambda: count(1_000_000, closed, gate), "cpu")
    assert job.wait(State.RUNNING)
    job.cancel()
    gate.set()
    assert job.wait(State.CANCELLED, timeout=5)
    assert closed == ["closed"]
    assert len(iterations(job)) <= 1
    job.run()  # the controls of an ended job do nothing
    assert job.state is State.CANCELLED


def test_work_that_goes_on_when_it_is_cancelled_is_closed(registry: Registry) -> None:
    said: list[str] = []

    def work() -> Iterator[Any]:
        try:
            try:
                yield from count(2)
            except BaseException:
                yield "not now"
        except GeneratorExit:
            said.append("closed")
            raise

    job = registry.submit("stubborn", work, "cpu", paused=True)
    job.step()
    assert job.wait(State.PAUSED)
    job.cancel()
    assert job.wait(State.CANCELLED) and said == ["closed"]


def test_a_paused_job_that_is_cancelled_is_live_until_it_has_ended(registry: Registry) -> None:
    closing = threading.Event()

    def work() -> Iterator[Any]:
        try:
            yield from count(2)
        finally:
            assert closing.wait(30)

    job = registry.submit("slow to close", work, "cpu", paused=True)
    job.step()
    assert job.wait(State.PAUSED) and not job.snapshot().live
    job.cancel()
    view = job.snapshot()
    assert view.state is State.PAUSED and view.stopping and view.live
    closing.set()
    assert job.wait(State.CANCELLED)
    view = job.snapshot()
    assert not view.stopping and not view.live


@pytest.mark.parametrize("paused", [True, False])
def test_a_job_that_never_began_can_be_cancelled(registry: Registry, paused: bool) -> None:
    gate = threading.Event()
    first = registry.submit("first", lambda: count(1, gate=gate), "cpu")
    second = registry.submit("second", lambda: count(1), "cpu", paused=paused)
    second.cancel()
    assert second.wait(State.CANCELLED, timeout=5)
    assert second.snapshot().events == ()
    gate.set()
    assert first.wait(State.FINISHED)


def count_until(stopped: threading.Event, gate: threading.Event) -> Iterator[Any]:
    """Progress until it is told to come to its end, which it says."""
    done = 0
    while not stopped.is_set():
        assert gate.wait(30)
        done += 1
        yield Progress(min(0.9, done / 1000), "counting")
    assert gate.wait(30)
    yield f"finished early after {done}"


@pytest.mark.parametrize("paused", [False, True])
def test_finish_brings_the_work_to_its_end_with_what_it_has(registry: Registry, paused: bool) -> None:
    stopped, gate = threading.Event(), threading.Event()
    job = registry.submit("count", lambda: count_until(stopped, gate), "cpu", finish=stopped.set)
    assert job.wait(State.RUNNING) and not job.snapshot().finishing
    if paused:
        job.pause()
        gate.set()
        assert job.wait(State.PAUSED)
        gate.clear()
    job.finish()
    assert job.wait(State.RUNNING) and stopped.is_set()
    view = job.snapshot()
    assert view.finishing and not view.stopping and view.state.live
    gate.set()
    assert job.wait(State.FINISHED)
    view = job.snapshot()
    assert len(view.events) == 1 and view.events[0].startswith("finished early")
    assert not view.finishing and view.done == 1.0


def test_a_job_that_is_finishing_can_still_be_cancelled_and_then_not_finish(registry: Registry) -> None:
    stopped, gate = threading.Event(), threading.Event()
    told: list[str] = []
    job = registry.submit("count", lambda: count_until(stopped, gate), "cpu", finish=lambda: told.append("x"))
    assert job.wait(State.RUNNING)
    job.finish()
    job.finish()  # it is told once
    job.cancel()
    job.finish()
    gate.set()
    assert job.wait(State.CANCELLED) and told == ["x"] and job.snapshot().events == ()


def test_finish_does_nothing_where_the_work_has_no_such_end(registry: Registry) -> None:
    job = registry.submit("count", lambda: count(2), "cpu", paused=True)
    version = job.snapshot().version
    job.finish()
    assert job.snapshot().version == version and job.state is State.PAUSED and not job.snapshot().finishing


def test_one_slot_per_device_in_order_of_submission(registry: Registry) -> None:
    gate = threading.Event()
    first = registry.submit("first", lambda: count(1, gate=gate), "cpu")
    assert first.wait(State.RUNNING)
    second = registry.submit("second", lambda: count(1), "cpu")
    third = registry.submit("third", lambda: count(1), "cpu")
    elsewhere = registry.submit("elsewhere", lambda: count(1), "cuda:0")
    assert elsewhere.wait(State.FINISHED)
    assert [job.snapshot().ahead for job in (first, second, third)] == [0, 1, 2]
    assert second.state is third.state is State.QUEUED
    gate.set()
    assert third.wait(State.FINISHED)
    done = [job.snapshot().finished or 0.0 for job in (first, second, third)]
    assert done == sorted(done)


def test_a_paused_job_gives_its_slot_up_and_queues_again(registry: Registry) -> None:
    gate = threading.Event()
    first = registry.submit("first", lambda: count(3), "cpu", paused=True)
    first.step()
    assert first.wait(State.PAUSED)
    second = registry.submit("second", lambda: count(1, gate=gate), "cpu")
    assert second.wait(State.RUNNING)
    first.run()
    assert first.state is State.QUEUED and first.snapshot().ahead == 1
    gate.set()
    assert first.wait(State.FINISHED) and second.state is State.FINISHED


def test_the_whole_generator_stays_in_one_thread(registry: Registry) -> None:
    seen: set[int] = set()

    def work() -> Iterator[Any]:
        try:
            with torch.no_grad():
                for t in (1, 2, 3):
                    seen.add(threading.get_ident())
                    assert not torch.is_grad_enabled()
                    yield iteration(t)
        finally:
            seen.add(threading.get_ident())

    job = registry.submit("grad", work, "cpu", paused=True)
    job.step()
    assert job.wait(State.PAUSED)
    assert torch.is_grad_enabled()
    job.cancel()
    assert job.wait(State.CANCELLED)
    assert len(seen) == 1 and threading.get_ident() not in seen


def test_an_expected_error_fails_with_its_sentence(registry: Registry) -> None:
    def work() -> Iterator[Any]:
        yield iteration(1)
        raise ModelError("Model 'x' is unknown: choose a or b.")

    job = registry.submit("bad", work, "cpu")
    assert job.wait(State.FAILED)
    assert job.snapshot().error == "Model 'x' is unknown: choose a or b."
    assert iterations(job) == [1]


def test_an_unexpected_error_is_logged_and_not_shown(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> Iterator[Any]:
        raise ValueError("secret detail")
        yield

    with caplog.at_level(logging.ERROR, logger="ispasp.jobs"):
        job = registry.submit("bad", work, "cpu")
        assert job.wait(State.FAILED)
    assert "secret detail" not in job.snapshot().error
    assert "ValueError" in job.snapshot().error and "log" in job.snapshot().error
    assert "secret detail" in caplog.text and "Traceback" in caplog.text


def test_a_failed_job_frees_its_device(registry: Registry) -> None:
    def work() -> Iterator[Any]:
        raise ModelError("no")
        yield

    registry.submit("bad", work, "cpu").wait()
    assert registry.submit("good", lambda: count(1), "cpu").wait(State.FINISHED)


def test_ended_jobs_are_forgotten_oldest_first_and_freed(registry: Registry) -> None:
    class Heavy:
        pass

    heavy = Heavy()
    alive = weakref.ref(heavy)
    box = [heavy]
    first = registry.submit("first", lambda: iter([box.pop()]), "cpu")
    del heavy
    assert first.wait(State.FINISHED)
    ids = [first.id]
    for number in range(4):
        job = registry.submit(str(number), lambda: count(1), "cpu")
        assert job.wait(State.FINISHED)
        ids.append(job.id)
    assert [job.id for job in registry.jobs()] == ids[-4:]  # three retained and the newest one
    assert registry.get(first.id) is None
    del first
    gc.collect()
    assert alive() is None


def test_too_many_open_jobs_are_refused_in_words(registry: Registry) -> None:
    for number in range(5):
        registry.submit(str(number), lambda: count(1), "cpu", paused=True)
    with pytest.raises(SettingError, match="5 jobs are open"):
        registry.submit("one more", lambda: count(1), "cpu")


def test_jobs_are_found_by_subject(registry: Registry) -> None:
    registry.submit("export", lambda: count(1), "cpu", subject="run-1")
    newest = registry.submit("export", lambda: count(1), "cpu", subject="run-1")
    registry.submit("export", lambda: count(1), "cpu", subject="run-2")
    assert registry.about("run-1") is newest
    assert registry.about("run-3") is None


def test_snapshots_are_frozen_and_share_their_events(registry: Registry) -> None:
    job = registry.submit("count", lambda: count(2), "cpu", paused=True)
    job.step()
    assert job.wait(State.PAUSED)
    first, second = job.snapshot(), job.snapshot()
    assert first.events is second.events and first.version == second.version
    job.run()
    assert job.wait(State.FINISHED)
    assert len(first.events) == 1 and job.snapshot().version > first.version
    with pytest.raises(AttributeError):
        first.state = State.FAILED  # type: ignore[misc]


def test_time_left_counts_work_and_not_pauses(registry: Registry) -> None:
    def work() -> Iterator[Any]:
        time.sleep(0.3)  # start-up: no part of the pace
        yield Progress(0.1, "begun")
        time.sleep(0.1)
        yield Progress(0.6, "more than half")
        yield iteration(1)
        yield iteration(2)

    job = registry.submit("slow", work, "cpu", paused=True)
    job.step()
    assert job.wait(State.PAUSED)
    working = job.snapshot().seconds
    time.sleep(0.2)
    view = job.snapshot()
    assert view.seconds == working >= 0.4
    assert view.done == 0.6
    assert view.seconds_left is not None
    assert 0.8 * 0.1 <= view.seconds_left <= 0.8 * (working - 0.3)
