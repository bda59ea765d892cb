"""What the sentences of ``nli_grammar`` mean, and the label that follows from two meanings.

The relations between predicates are those of natural logic (MacCartney & Manning, 2009). Two
conventions hold: every noun phrase has at least one thing it is true of, and "the dog" after "the
old dog" is the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sample_models.nli_words import ABOVE

LABELS = ("entailment", "neutral", "contradiction")
ENTAILMENT, NEUTRAL, CONTRADICTION = LABELS
MANY = 1000  # no upper bound


@dataclass(frozen=True)
class Phrase:
    """A noun and perhaps an adjective: ``old dog``."""

    noun: str
    adjective: str = ""


@dataclass(frozen=True)
class Predicate:
    """What a claim says of its subject, or, negated, denies: ``(not) run quickly in the park``."""

    verb: str
    adverb: str = ""
    place: str = ""
    negated: bool = False


@dataclass(frozen=True)
class Claim:
    """A quantifier over things.

    Attributes:
        kind: ``"every"`` (with a negated predicate: "no"), ``"the"``, or ``"count"``.
        subject: what is counted.
        predicate: which of them are counted.
        least: for ``"count"``, their smallest number; "some" is 1 to ``MANY``.
        most: for ``"count"``, their largest number, at least 1.
    """

    kind: str
    subject: Phrase
    predicate: Predicate
    least: int = 1
    most: int = MANY


@dataclass(frozen=True)
class Event:
    """Somebody does something to somebody, or, negated, does not; active and passive mean the same."""

    agent: Phrase
    agent_known: bool  # "the" in place of "a"
    verb: str
    patient: Phrase
    patient_known: bool
    negated: bool = False


@cache
def within(word: str, other: str) -> bool:
    """Whether all that ``word`` is true of is also ``other``; an empty word is true of everything."""
    while word and word != other:
        word = ABOVE.get(word, "")
    return word == other


def phrase_within(phrase: Phrase, other: Phrase) -> bool:
    """Whether every ``phrase`` is an ``other``: every huge poodle is a big dog."""
    return within(phrase.noun, other.noun) and within(phrase.adjective, other.adjective)


def _apart(word: str, other: str) -> bool:
    """Whether nothing is both: neither lies within the other, but both within something."""
    if not word or not other or within(word, other) or within(other, word):
        return False
    return top(word) == top(other)


def top(word: str) -> str:
    while word in ABOVE:
        word = ABOVE[word]
    return word


def predicate_within(predicate: Predicate, other: Predicate) -> bool:
    """Whether everything that ``predicate`` is true of, ``other`` is true of."""
    if predicate.negated != other.negated:
        return other.negated and _exclusive(predicate, other)
    if predicate.negated:
        return _stated_within(other, predicate)
    return _stated_within(predicate, other)


def predicates_apart(predicate: Predicate, other: Predicate) -> bool:
    """Whether nothing can be both."""
    if predicate.negated == other.negated:
        return not predicate.negated and _exclusive(predicate, other)
    if predicate.negated:
        return _stated_within(other, predicate)
    return _stated_within(predicate, other)


def _stated_within(predicate: Predicate, other: Predicate) -> bool:
    """``predicate_within``, both read without negation."""
    return (
        within(predicate.verb, other.verb)
        and within(predicate.adverb, other.adverb)
        and within(predicate.place, other.place)
    )


def _exclusive(predicate: Predicate, other: Predicate) -> bool:
    """``predicates_apart``, both read without negation: nobody walks and swims at once, or is in two places."""
    return _apart(predicate.verb, other.verb) or _apart(predicate.place, other.place)


def label(premise: Claim | Event, hypothesis: Claim | Event) -> str:
    """The label of a pair of one family.

    Raises:
        TypeError: one is a claim and the other an event.
    """
    if isinstance(premise, Claim) and isinstance(hypothesis, Claim):
        return _label_claims(premise, hypothesis)
    if isinstance(premise, Event) and isinstance(hypothesis, Event):
        return _label_events(premise, hypothesis)
    raise TypeError("a claim and an event have no label")


def _label_claims(premise: Claim, hypothesis: Claim) -> str:
    narrower = phrase_within(premise.subject, hypothesis.subject)
    wider = phrase_within(hypothesis.subject, premise.subject)
    follows = predicate_within(premise.predicate, hypothesis.predicate)
    excluded = predicates_apart(premise.predicate, hypothesis.predicate)
    if premise.kind == "every" and hypothesis.kind == "every":
        if wider and follows:
            return ENTAILMENT
        # Both speak of everything in the smaller of the two subjects, which is not empty.
        return CONTRADICTION if (wider or narrower) and excluded else NEUTRAL
    if hypothesis.kind == "the":
        known = {"every": wider, "the": narrower, "count": False}[premise.kind]
        return _decided(known and follows, known and excluded)
    if hypothesis.kind == "every":
        # One thing of which the premise speaks falsifies it.
        found = premise.kind == "the" or premise.least >= 1
        return CONTRADICTION if found and narrower and excluded else NEUTRAL
    # What the premise says of the number that the hypothesis speaks of.
    least, most = 0, MANY
    if premise.kind == "every":
        if wider and excluded:
            most = 0
        elif (wider or narrower) and follows:
            least = 1
    else:
        followed = predicate_within(hypothesis.predicate, premise.predicate)
        if narrower and follows:
            least = 1 if premise.kind == "the" else premise.least
        if wider and followed and premise.kind == "count":
            most = premise.most
    return _decided(
        hypothesis.least <= least and most <= hypothesis.most,
        most < hypothesis.least or least > hypothesis.most,
    )


def _label_events(premise: Event, hypothesis: Event) -> str:
    """A negated event follows from another by contraposition."""
    if not premise.negated:
        follows = _event_follows(premise, hypothesis)
        return _decided(follows and not hypothesis.negated, follows and hypothesis.negated)
    followed = _event_follows(hypothesis, premise)
    return _decided(followed and hypothesis.negated, followed and not hypothesis.negated)


def _event_follows(event: Event, other: Event) -> bool:
    """Whether ``other`` follows from ``event``, both read without negation."""
    return (
        phrase_within(event.agent, other.agent)
        and phrase_within(event.patient, other.patient)
        and within(event.verb, other.verb)
        # "The" says who it is, "a" does not.
        and event.agent_known >= other.agent_known
        and event.patient_known >= other.patient_known
    )


def _decided(entailed: bool, contradicted: bool) -> str:
    return ENTAILMENT if entailed else CONTRADICTION if contradicted else NEUTRAL
