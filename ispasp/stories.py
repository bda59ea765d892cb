"""Why one group of a block stayed or went, in words: from the records of its iterations to sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ispasp.narrative import ordinal, plural, rank
from ispasp.records import BlockStarted, Iteration
from ispasp.vocabulary import SelectorWords, Way, panel_names, selector_words


class GroupStory(NamedTuple):
    """One group at one iteration: why it stayed or went, and its places among all groups."""

    kept: bool
    headline: str
    reason: str
    ranks: str


def group_story(
    group: int, trace: Sequence[Iteration], t: int, started: BlockStarted, selector: str = "ispasp"
) -> GroupStory:
    """Why ``group`` is kept or not after iteration ``t`` of ``trace`` (one block's iterations, from t = 1).

    Args:
        group: index from 0.
        trace, t: all iterations of the block, and the one to tell.
        started: the block's start, for its kind and sizes.
        selector: how the groups were chosen.
    """
    words = selector_words(selector)
    iteration = trace[t - 1]
    kind, groups, keep = started.block.kind, started.block.groups, started.keep_groups
    kept = group in iteration.selected
    headline = _headline(group, trace, t, words.way)
    if keep >= groups:
        reason = f"The keep ratio keeps every {kind} of this block."
    else:
        tell = {Way.RANKS: _ranked, Way.ADDS: _added, Way.REMOVES: _removed}.get(words.way, _compared)
        reason = tell(group, trace, t, started, words)
    return GroupStory(kept, headline, reason, _places(group, iteration, started, words))


def _headline(group: int, trace: Sequence[Iteration], t: int, way: Way) -> str:
    if group in trace[t - 1].selected:
        since = t
        while since > 1 and group in trace[since - 2].selected:
            since -= 1
        return "Kept" if way in (Way.RANKS, Way.REMOVES) else f"Kept since iteration {since}"
    if way is Way.REMOVES:
        return f"Removed in iteration {_gone(group, trace)}"
    left = [i.t for i in trace[:t] if group in i.dropped]
    return f"Dropped in iteration {left[-1]}" if left else "Not kept"


def _first(keep: int) -> str:
    return "only the first stays" if keep == 1 else f"the first {keep:,} stay"


def _gone(group: int, trace: Sequence[Iteration]) -> int:
    """The first iteration that a group did not survive."""
    return next(i.t for i in trace if group not in i.selected)


def _places(group: int, iteration: Iteration, started: BlockStarted, words: SelectorWords) -> str:
    """``"Importance 3rd, hidden sum 7th of 32 channels."``; scores that do not say anything are left out."""
    scores = {"importance": iteration.importance.numpy(), words.score: iteration.score.numpy()}
    told = [f"{name} {ordinal(rank(scores[name], group))}" for name in panel_names(iteration, words)]
    said = ", ".join(told)
    return f"{said[0].upper()}{said[1:]} of {plural(started.block.groups, started.block.kind)}."


def _compared(
    group: int, trace: Sequence[Iteration], t: int, started: BlockStarted, words: SelectorWords
) -> str:
    """Steps 2 to 4 of Algorithm 1: a group must first be among the merged groups (the candidates by
    importance, and those selected before) and then among the largest scores of these."""
    kind, groups, keep = started.block.kind, started.block.groups, started.keep_groups
    iteration = trace[t - 1]
    before = set(trace[t - 2].selected) if t > 1 else set()
    score = iteration.score.numpy()
    merged = sorted(set(iteration.candidates) | before, key=lambda other: (-score[other], other))
    place = (
        f"{ordinal(merged.index(group) + 1)} of the {plural(len(merged), kind)} compared"
        if group in merged
        else ""
    )
    kept = group in iteration.selected
    if place and kept != (group in merged[:keep]):
        # CoSaMP measures what it would change to, and stays with what it has where that is no better.
        stays = "stays" if kept else "stays out"
        return f"By {words.score} it is the {place}, but that choice fits no better than the last one, so it {stays}."
    first = _first(keep)
    if started.one_iteration_decides and place:
        at = f"{ordinal(merged.index(group) + 1)} of {plural(len(merged), kind)}"
        return f"Every {kind} was compared; by {words.score} it is {'the' if kept else 'only the'} {at}; {first}."
    if kept:
        candidate = group in iteration.candidates
        how = "a candidate by its importance" if candidate else "no candidate, but selected before"
        return f"It was {how}, and by {words.score} it is the {place}; {first}."
    if place:
        return f"It was compared, but by {words.score} it is only the {place}; {first}."
    place = ordinal(rank(iteration.importance.numpy(), group))
    return (
        f"It was no candidate: its importance is the {place} of {groups:,}, "
        f"and only the first {len(iteration.candidates):,} are compared by {words.score}."
    )


def _ranked(
    group: int, trace: Sequence[Iteration], t: int, started: BlockStarted, words: SelectorWords
) -> str:
    kind, groups, keep = started.block.kind, started.block.groups, started.keep_groups
    kept = group in trace[t - 1].selected
    place = f"{ordinal(rank(trace[t - 1].score.numpy(), group))} of {plural(groups, kind)}"
    return f"By {words.score} it is {'the' if kept else 'only the'} {place}; {_first(keep)}."


def _added(
    group: int, trace: Sequence[Iteration], t: int, started: BlockStarted, words: SelectorWords
) -> str:
    kind = started.block.kind
    since = next((i for i in trace if group in i.selected), None)
    if group in trace[t - 1].selected:
        assert since is not None
        earlier = len(since.selected) - len(since.added)
        base = f"Beside the {plural(earlier, kind)} chosen before" if earlier else f"As the first {kind}"
        if len(since.added) > 1 and not earlier:
            return f"It was one of the first {len(since.added):,} {kind}s, which lower the residual most."
        if len(since.added) > 1:
            return f"{base}, it was one of the {len(since.added):,} that lowered the residual most."
        return f"{base}, it lowered the residual more than any other."
    if since is not None:
        return f"Until now others lowered the residual more; its turn comes in iteration {since.t}."
    return (
        f"Every time another {kind} lowered the residual more, until all {started.keep_groups:,} were chosen."
    )


def _removed(
    group: int, trace: Sequence[Iteration], t: int, started: BlockStarted, words: SelectorWords
) -> str:
    kind = started.block.kind
    if group in trace[-1].selected:
        last = "only the last stays" if started.keep_groups == 1 else f"the last {started.keep_groups:,} stay"
        return f"Whenever a {kind} was removed, another had a smaller {words.score}; {last}."
    gone = _gone(group, trace)
    if group in trace[t - 1].selected:
        return f"Until now others had a smaller {words.score}; it is removed in iteration {gone}."
    before = len(trace[gone - 2].selected) if gone > 1 else started.block.groups
    together = before - len(trace[gone - 1].selected)
    if together > 1:
        return f"Of the {before:,} left, it was one of the {together:,} with the smallest {words.score}."
    return f"Of the {before:,} left, it had the smallest {words.score}."
