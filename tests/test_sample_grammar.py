"""The grammar behind nli_bert: its labels follow by logic, and the hypothesis alone gives none away."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest

from sample_models import nli_grammar
from sample_models.nli_grammar import Grammar, Pair
from sample_models.nli_logic import (
    CONTRADICTION,
    ENTAILMENT,
    LABELS,
    MANY,
    NEUTRAL,
    Claim,
    Event,
    Phrase,
    Predicate,
    label,
    phrase_within,
    within,
)
from sample_models.nli_words import ABOVE, PARTICIPLES, PLURALS, third_person, vocabulary

DOG, POODLE, CAT, OLD_DOG = Phrase("dog"), Phrase("poodle"), Phrase("cat"), Phrase("dog", "old")
RUN, MOVE, SLEEP, SING = Predicate("run"), Predicate("move"), Predicate("sleep"), Predicate("sing")
RUN_IN_PARK, RUN_INSIDE = Predicate("run", place="in the park"), Predicate("run", place="inside")


def every(subject: Phrase, predicate: Predicate) -> Claim:
    return Claim("every", subject, predicate)


def no(subject: Phrase, predicate: Predicate) -> Claim:
    return Claim("every", subject, replace(predicate, negated=True))


def some(subject: Phrase, predicate: Predicate) -> Claim:
    return Claim("count", subject, predicate)


def some_not(subject: Phrase, predicate: Predicate) -> Claim:
    return Claim("count", subject, replace(predicate, negated=True))


def the(subject: Phrase, predicate: Predicate) -> Claim:
    return Claim("the", subject, predicate)


def number(least: int, most: int, subject: Phrase, predicate: Predicate) -> Claim:
    return Claim("count", subject, predicate, least, most)


@pytest.mark.parametrize(
    "premise, hypothesis, expected",
    [
        (every(DOG, RUN), every(POODLE, RUN), ENTAILMENT),
        (every(POODLE, RUN), every(DOG, RUN), NEUTRAL),
        (every(DOG, RUN), every(DOG, MOVE), ENTAILMENT),
        (every(DOG, RUN), some(Phrase("animal"), MOVE), ENTAILMENT),
        (every(DOG, RUN), every(CAT, RUN), NEUTRAL),
        (every(DOG, RUN), no(OLD_DOG, MOVE), CONTRADICTION),
        (every(DOG, RUN), no(CAT, RUN), NEUTRAL),
        (every(DOG, RUN), no(DOG, SLEEP), ENTAILMENT),
        (every(DOG, RUN), some(POODLE, SLEEP), CONTRADICTION),
        (every(POODLE, RUN), some(DOG, SLEEP), NEUTRAL),
        (every(DOG, RUN), some(DOG, SING), NEUTRAL),
        (every(DOG, RUN_IN_PARK), some(POODLE, RUN_INSIDE), CONTRADICTION),
        (no(DOG, MOVE), no(DOG, RUN), ENTAILMENT),
        (no(DOG, RUN), no(DOG, MOVE), NEUTRAL),
        (no(DOG, RUN), some_not(DOG, RUN), ENTAILMENT),
        (no(DOG, RUN), some(POODLE, RUN_IN_PARK), CONTRADICTION),
        (some(POODLE, RUN_IN_PARK), some(DOG, RUN), ENTAILMENT),
        (some(DOG, RUN), some(POODLE, RUN), NEUTRAL),
        (some(POODLE, RUN), no(DOG, MOVE), CONTRADICTION),
        (some(DOG, RUN), some_not(DOG, RUN), NEUTRAL),
        (some_not(DOG, RUN), every(DOG, RUN), CONTRADICTION),
        (some_not(POODLE, MOVE), some_not(DOG, RUN), ENTAILMENT),
        (the(OLD_DOG, RUN), the(DOG, MOVE), ENTAILMENT),
        (the(DOG, RUN), the(OLD_DOG, RUN), NEUTRAL),
        (the(DOG, RUN), the(DOG, SLEEP), CONTRADICTION),
        (the(DOG, RUN), the(CAT, SLEEP), NEUTRAL),
        (the(POODLE, RUN), some(DOG, RUN), ENTAILMENT),
        (every(DOG, RUN), the(POODLE, MOVE), ENTAILMENT),
        (some(DOG, RUN), the(DOG, RUN), NEUTRAL),
        (number(3, MANY, DOG, RUN), number(2, MANY, DOG, MOVE), ENTAILMENT),
        (number(3, MANY, DOG, RUN), number(0, 2, DOG, RUN), CONTRADICTION),
        (number(3, MANY, DOG, RUN), number(3, 3, DOG, RUN), NEUTRAL),
        (number(3, 3, DOG, RUN), number(0, 4, POODLE, RUN), ENTAILMENT),
        (number(3, 3, POODLE, RUN), number(0, 2, DOG, MOVE), CONTRADICTION),
        (number(0, 2, DOG, MOVE), number(3, MANY, POODLE, RUN), CONTRADICTION),
        (number(0, 2, DOG, MOVE), some(DOG, MOVE), NEUTRAL),
        (number(2, 2, POODLE, RUN), no(DOG, RUN), CONTRADICTION),
        (every(DOG, RUN), number(0, 2, DOG, SLEEP), ENTAILMENT),
        (every(DOG, RUN), number(3, MANY, DOG, SLEEP), CONTRADICTION),
        (every(DOG, RUN), number(3, MANY, DOG, RUN), NEUTRAL),
    ],
)
def test_labels_of_claims(premise: Claim, hypothesis: Claim, expected: str):
    assert label(premise, hypothesis) == expected


CHASE = Event(Phrase("surgeon"), True, "chase", OLD_DOG, False)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, ENTAILMENT),
        ({"agent": Phrase("doctor")}, ENTAILMENT),
        ({"agent_known": False}, ENTAILMENT),
        ({"verb": "follow"}, ENTAILMENT),
        ({"patient": DOG}, ENTAILMENT),
        ({"patient": POODLE}, NEUTRAL),
        ({"patient_known": True}, NEUTRAL),
        ({"verb": "trail"}, NEUTRAL),
        ({"agent": OLD_DOG, "patient": Phrase("surgeon")}, NEUTRAL),
        ({"negated": True}, CONTRADICTION),
        ({"negated": True, "verb": "follow", "patient": DOG}, CONTRADICTION),
        ({"negated": True, "patient": POODLE}, NEUTRAL),
    ],
)
def test_labels_of_events(change: dict, expected: str):
    assert label(CHASE, replace(CHASE, **change)) == expected


def test_a_denied_event_denies_what_lies_within_it():
    denied = Event(Phrase("doctor"), False, "follow", DOG, False, negated=True)
    assert label(denied, replace(CHASE, negated=True)) == ENTAILMENT
    assert label(denied, CHASE) == CONTRADICTION
    assert label(replace(CHASE, negated=True), denied) == NEUTRAL


def test_a_claim_and_an_event_have_no_label():
    with pytest.raises(TypeError):
        label(CHASE, every(DOG, RUN))


# Every way in which two subjects and two predicates can lie to each other, in words.
SUBJECTS = [(DOG, DOG), (POODLE, DOG), (DOG, POODLE), (OLD_DOG, POODLE)]
PREDICATES = [(RUN, RUN), (RUN, MOVE), (MOVE, RUN), (RUN, SLEEP), (RUN, SING)]


@pytest.mark.parametrize("subjects", SUBJECTS, ids=["same", "narrower", "wider", "open"])
@pytest.mark.parametrize("predicates", PREDICATES, ids=["same", "narrower", "wider", "apart", "open"])
def test_labels_are_those_of_all_small_worlds(subjects, predicates):
    """Entailment, neutral and contradiction, read off every world of up to four things."""
    worlds = _worlds(subjects, predicates)
    forms = [
        (kind, negated, least, most)
        for negated in (False, True)
        for kind, least, most in (("every", 1, MANY), ("the", 1, MANY), ("count", 1, MANY))
    ] + [("count", False, least, most) for least, most in ((2, MANY), (0, 1), (2, 2))]
    for (kind, negated, *bounds), (kind2, negated2, *bounds2) in itertools.product(forms, repeat=2):
        premise = Claim(kind, subjects[0], replace(predicates[0], negated=negated), *bounds)
        hypothesis = Claim(kind2, subjects[1], replace(predicates[1], negated=negated2), *bounds2)
        outcomes = set()
        for world in worlds:
            for known in _known(world, 0) if kind == "the" else [None]:
                if not _holds(premise, world, 0, known):
                    continue
                # "The dog" after "the old dog" is the same one.
                same = kind == kind2 == "the" and phrase_within(*subjects)
                others = [known] if same else _known(world, 1) if kind2 == "the" else [None]
                outcomes.update(_holds(hypothesis, world, 1, other) for other in others)
        expected = {(True,): ENTAILMENT, (False,): CONTRADICTION}.get(tuple(outcomes), NEUTRAL)
        assert outcomes and label(premise, hypothesis) == expected, (premise, hypothesis)


def _worlds(subjects, predicates) -> list[tuple]:
    """Each thing is (is subject 0, is subject 1, does predicate 0, does predicate 1)."""
    narrower, wider = phrase_within(*subjects), phrase_within(*subjects[::-1])
    verbs = [predicate.verb for predicate in predicates]
    apart = set(verbs) == {"run", "sleep"}
    things = [
        (a, b, x, y)
        for a, b, x, y in itertools.product((False, True), repeat=4)
        if (a or b)
        and not (narrower and a and not b)
        and not (wider and b and not a)
        and not (within(*verbs) and x and not y)
        and not (within(*verbs[::-1]) and y and not x)
        and not (apart and x and y)
    ]
    worlds = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(things, size) for size in range(1, 5)
    )
    return [world for world in worlds if any(t[0] for t in world) and any(t[1] for t in world)]


def _known(world, side: int) -> list[tuple]:
    return [thing for thing in world if thing[side]]


def _holds(claim: Claim, world, side: int, known) -> bool:
    def does(thing) -> bool:
        return thing[2 + side] != claim.predicate.negated

    if claim.kind == "the":
        return does(known)
    counted = sum(does(thing) for thing in world if thing[side])
    if claim.kind == "every":
        return counted == len(_known(world, side))
    return claim.least <= counted <= claim.most


def test_sentences_say_what_is_meant():
    def ways(meaning) -> set[str]:
        grammar = Grammar(0)
        return {grammar.say(meaning) for _ in range(60)}

    assert ways(no(Phrase("child"), RUN)) == {"no child runs", "no children run"}
    assert ways(every(OLD_DOG, RUN)) == {"every old dog runs", "each old dog runs", "all old dogs run"}
    assert ways(some_not(DOG, RUN)) == {
        "some dog does not run",
        "a dog does not run",
        "there is a dog that does not run",
        "not every dog runs",
        "not all dogs run",
    }
    assert ways(number(2, 2, OLD_DOG, RUN_IN_PARK)) == {"exactly two old dogs run in the park"}
    assert ways(number(0, 3, DOG, RUN)) == {"at most three dogs run", "three or fewer dogs run"}
    assert ways(the(DOG, replace(SLEEP, negated=True))) == {"the dog does not sleep"}
    assert ways(CHASE) == {"the surgeon chases an old dog", "an old dog is chased by the surgeon"}
    assert ways(replace(CHASE, negated=True)) == {
        "the surgeon does not chase an old dog",
        "no old dog is chased by the surgeon",
    }


def test_words_have_their_forms():
    assert [third_person(verb) for verb in ("watch", "push", "see")] == ["watches", "pushes", "sees"]
    assert PLURALS["pony"] == "ponies" and PARTICIPLES["see"] == "seen"
    assert within("poodle", "animal") and not within("animal", "poodle") and within("old", "")
    # The order has no circle, so that looking upwards ends.
    for word in ABOVE:
        assert not within(ABOVE[word], word)


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[Pair]]:
    return {"train": nli_grammar.pairs("train", 512), "test": nli_grammar.pairs("test", 1000)}


def test_the_pairs_are_the_same_everywhere(shipped):
    said = "\n".join(f"{p.premise}|{p.hypothesis}|{p.label}" for split in shipped.values() for p in split)
    assert (
        hashlib.sha256(said.encode()).hexdigest()
        == "7f67239c4895d21a0380acf71927671dd660eab515327fcb48da31e0528dc2ed"
    )


def test_a_shorter_list_begins_the_longer(shipped):
    assert nli_grammar.pairs("test", 100) == shipped["test"][:100]


def test_no_pair_comes_twice_and_no_hypothesis_in_both_splits(shipped):
    assert len({*shipped["train"], *shipped["test"]}) == 1512
    train = nli_grammar.pairs("train", 6000)
    hypotheses = [{pair.hypothesis for pair in pairs} for pairs in (train, shipped["test"])]
    assert hypotheses[0].isdisjoint(hypotheses[1])


def test_any_prefix_is_balanced(shipped):
    for pairs in shipped.values():
        counts: Counter = Counter()
        for pair in pairs:
            counts[pair.label] += 1
            assert max(counts.values()) - min(counts[name] for name in LABELS) <= 1


def test_every_word_is_in_the_vocabulary(shipped):
    words = {word for pair in shipped["test"] for word in f"{pair.premise} {pair.hypothesis}".split()}
    known = vocabulary()
    assert words <= set(known)
    assert len(known) == len(set(known)) and 200 <= len(known) <= 500


def test_the_hypothesis_alone_says_nothing(shipped):
    """Word counts of the training hypotheses, by naive Bayes, and the exact sentence: both near a third."""
    train = nli_grammar.pairs("train", 6000)
    alone = [Pair("", pair.hypothesis, pair.label) for pair in train]
    guesses = _bayes(alone)
    hits = sum(guesses(Pair("", p.hypothesis, "")) == p.label for p in shipped["test"])
    assert abs(hits / 1000 - 1 / 3) < 0.04
    # Whatever reads the hypothesis only cannot do better: each has every label equally often.
    by_sentence: dict[str, Counter] = {}
    for pair in shipped["test"][:999]:
        by_sentence.setdefault(pair.hypothesis, Counter())[pair.label] += 1
    assert all(len({counts[name] for name in LABELS}) == 1 for counts in by_sentence.values())


def test_words_without_their_order_and_relations_do_not_suffice(shipped):
    """Naive Bayes over the words of both sentences, told apart by sentence, stays far below the network."""
    guesses = _bayes(nli_grammar.pairs("train", 6000))
    hits = sum(guesses(p) == p.label for p in shipped["test"])
    assert 0.33 < hits / 1000 < 0.65


def _bayes(train: list[Pair]):
    counts = {name: Counter(w for p in train if p.label == name for w in _features(p)) for name in LABELS}
    totals = {name: sum(counts[name].values()) for name in LABELS}

    def guess(pair: Pair) -> str:
        scores = {
            name: sum(math.log((counts[name][w] + 1) / (totals[name] + 1000)) for w in _features(pair))
            for name in LABELS
        }
        return max(LABELS, key=lambda name: scores[name])

    return guess


def _features(pair: Pair) -> set[str]:
    return {f"p {w}" for w in pair.premise.split()} | {f"h {w}" for w in pair.hypothesis.split()}
