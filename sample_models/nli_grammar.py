"""Sentence pairs for natural-language inference, written by a grammar and labelled by logic.

A pair says whether a hypothesis follows from a premise (``entailment``), cannot be true beside it
(``contradiction``), or neither (``neutral``). Two families of sentences (``sample_models.nli_logic``):

* a ``Claim`` counts: "every old dog rests outside", "at most two poodles run", "no cat sleeps";
* an ``Event`` has two sides: "the surgeon chases a dog", "no dog is followed by the doctor".

Words are ordered by meaning (``sample_models.nli_words``): a poodle is a dog, to sprint is to run, a
huge dog is a big dog. ``nli_logic.label`` decides from this order.

Every hypothesis comes with three premises, one for each label, so that the hypothesis alone says
nothing. The hypotheses of the two splits are different. Only ``random.Random.random`` is drawn from,
whose sequence Python keeps the same between versions, so that the pairs are the same everywhere.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

from sample_models.nli_logic import LABELS, MANY, Claim, Event, Phrase, Predicate, label, top, within
from sample_models.nli_words import (
    ADJECTIVES,
    ADVERBS,
    NOUNS,
    NUMBERS,
    PARTICIPLES,
    PLACES,
    PLURALS,
    TRANSITIVE,
    VERBS,
    third_person,
)

SEEDS = {"train": 1, "test": 2}
_TEST_SHARE = 8  # one hypothesis in so many is a test hypothesis
_ATTEMPTS = 400  # premises tried for one hypothesis

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """One example."""

    premise: str
    hypothesis: str
    label: str


class Grammar:
    """Draws meanings, puts them into words, and pairs them; seeded."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._random.random() * len(choices))]

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def triples(self, split: str) -> Iterator[tuple[Pair, Pair, Pair]]:
        """Without end: one hypothesis with a premise for each label, the labels in random order."""
        while True:
            meaning = self._event() if self._chance(0.4) else self._claim()
            hypothesis = self.say(meaning)
            is_test = zlib.crc32(hypothesis.encode()) % _TEST_SHARE == 0
            if is_test != (split == "test"):
                continue
            premises = self._premises(meaning, hypothesis)
            if len(premises) == len(LABELS):
                a, b, c = (Pair(premises[key], hypothesis, key) for key in self._shuffled(LABELS))
                yield a, b, c

    def _shuffled(self, items: Sequence[T]) -> list[T]:
        left, taken = list(items), []
        while left:
            taken.append(left.pop(int(self._random.random() * len(left))))
        return taken

    def _premises(self, meaning: Claim | Event, hypothesis: str) -> dict[str, str]:
        """A premise for every label, as far as chance finds one."""
        found: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            changed = self._changed(meaning)
            verdict = label(changed, meaning)
            if verdict not in found and (said := self.say(changed)) != hypothesis:
                found[verdict] = said
                if len(found) == len(LABELS):
                    break
        return found

    # Meanings, and small changes of them.

    def _phrase(self, kind: str) -> Phrase:
        return Phrase(self._pick(NOUNS[kind]), self._pick(ADJECTIVES) if self._chance(0.4) else "")

    def _predicate(self, negated: bool) -> Predicate:
        return Predicate(
            self._pick(VERBS),
            self._pick(ADVERBS) if self._chance(0.3) else "",
            self._pick(PLACES) if self._chance(0.4) else "",
            negated,
        )

    def _claim(self) -> Claim:
        subject = self._phrase(self._pick(("animal", "person")))
        return self._quantified(Claim("every", subject, self._predicate(self._chance(0.5))))

    def _quantified(self, claim: Claim) -> Claim:
        """With another quantifier."""
        kind = self._pick(("every", "every", "some", "some", "the", "number", "number"))
        if kind in ("every", "the"):
            return replace(claim, kind=kind, least=1, most=MANY)
        least, most = 1, MANY
        if kind == "number":
            number = 2 + int(self._random.random() * (len(NUMBERS) - 2))
            least, most = self._pick(((number, MANY), (0, number), (number, number)))
        return replace(claim, kind="count", least=least, most=most)

    def _event(self) -> Event:
        return Event(
            self._phrase(self._pick(("animal", "person"))),
            self._chance(0.5),
            self._pick(TRANSITIVE),
            self._phrase(self._pick(("animal", "person"))),
            self._chance(0.5),
            self._chance(0.4),
        )

    def _changed(self, meaning: Claim | Event) -> Claim | Event:
        if isinstance(meaning, Claim):
            claim = self._quantified(meaning) if self._chance(0.5) else meaning
            subject = self._phrase_changed(claim.subject) if self._chance(0.6) else claim.subject
            predicate = claim.predicate
            if self._chance(0.6):
                predicate = self._predicate_changed(predicate)
            if self._chance(0.25):
                predicate = replace(predicate, negated=not predicate.negated)
            return replace(claim, subject=subject, predicate=predicate)
        event = meaning
        if self._chance(0.15):
            event = replace(
                event,
                agent=event.patient,
                agent_known=event.patient_known,
                patient=event.agent,
                patient_known=event.agent_known,
            )
        return Event(
            self._phrase_changed(event.agent) if self._chance(0.5) else event.agent,
            self._chance(0.5) if self._chance(0.4) else event.agent_known,
            self._word_changed(event.verb, TRANSITIVE) if self._chance(0.4) else event.verb,
            self._phrase_changed(event.patient) if self._chance(0.5) else event.patient,
            self._chance(0.5) if self._chance(0.4) else event.patient_known,
            self._chance(0.5),
        )

    def _phrase_changed(self, phrase: Phrase) -> Phrase:
        noun, adjective = phrase.noun, phrase.adjective
        if self._chance(0.6):
            noun = self._word_changed(noun, NOUNS[top(noun)])
        if self._chance(0.5):
            adjective = self._modifier_changed(adjective, ADJECTIVES)
        return Phrase(noun, adjective)

    def _predicate_changed(self, predicate: Predicate) -> Predicate:
        verb, adverb, place = predicate.verb, predicate.adverb, predicate.place
        if self._chance(0.6):
            verb = self._word_changed(verb, VERBS)
        if self._chance(0.3):
            adverb = self._modifier_changed(adverb, ADVERBS)
        if self._chance(0.4):
            place = self._modifier_changed(place, PLACES)
        return Predicate(verb, adverb, place, predicate.negated)

    def _word_changed(self, word: str, words: tuple[str, ...]) -> str:
        """A word above or below it, or any other."""
        related = _related(word, words)
        return self._pick(related) if related and self._chance(0.7) else self._pick(words)

    def _modifier_changed(self, word: str, words: tuple[str, ...]) -> str:
        return self._word_changed(word, words) if word and self._chance(0.5) else self._pick(("", *words))

    # Words.

    def say(self, meaning: Claim | Event) -> str:
        """A sentence in lower case, without a full stop; of several wordings one by chance."""
        return self._say_claim(meaning) if isinstance(meaning, Claim) else self._say_event(meaning)

    def _say_claim(self, claim: Claim) -> str:
        negated = claim.predicate.negated
        one, many = _noun(claim.subject), _noun(claim.subject, plural=True)
        does, do = _verb_phrase(claim.predicate), _verb_phrase(claim.predicate, plural=True)
        without = replace(claim.predicate, negated=False)
        if claim.kind == "the":
            return f"the {one} {does}"
        if claim.kind == "every":
            if negated:
                return self._pick(
                    (f"no {one} {_verb_phrase(without)}", f"no {many} {_verb_phrase(without, plural=True)}")
                )
            return self._pick((f"every {one} {does}", f"each {one} {does}", f"all {many} {do}"))
        if (claim.least, claim.most) == (1, MANY):
            ways = [
                f"some {one} {does}",
                f"{_with_article(one)} {does}",
                f"there is {_with_article(one)} that {does}",
            ]
            if negated:
                ways.append(f"not every {one} {_verb_phrase(without)}")
                ways.append(f"not all {many} {_verb_phrase(without, plural=True)}")
            return self._pick(ways)
        if claim.most == MANY:
            words = self._pick((f"at least {NUMBERS[claim.least]}", f"{NUMBERS[claim.least]} or more"))
        elif claim.least == claim.most:
            words = f"exactly {NUMBERS[claim.least]}"
        else:
            words = self._pick((f"at most {NUMBERS[claim.most]}", f"{NUMBERS[claim.most]} or fewer"))
        return f"{words} {many} {do}"

    def _say_event(self, event: Event) -> str:
        agent, patient = (event.agent, event.agent_known), (event.patient, event.patient_known)
        passive = self._chance(0.4)
        first, second = (patient, agent) if passive else (agent, patient)
        participle = PARTICIPLES[event.verb]
        if passive:
            says, denies = f"is {participle} by", f"is not {participle} by"
        else:
            says, denies = third_person(event.verb), f"does not {event.verb}"
        other = f"the {_noun(second[0])}" if second[1] else _with_article(_noun(second[0]))
        if not event.negated:
            subject = f"the {_noun(first[0])}" if first[1] else _with_article(_noun(first[0]))
            return f"{subject} {says} {other}"
        return (
            f"the {_noun(first[0])} {denies} {other}" if first[1] else f"no {_noun(first[0])} {says} {other}"
        )


@cache
def _related(word: str, words: tuple[str, ...]) -> list[str]:
    """Those of ``words`` that lie above or below ``word``."""
    return [other for other in words if other != word and (within(other, word) or within(word, other))]


def _noun(phrase: Phrase, plural: bool = False) -> str:
    return f"{phrase.adjective} {PLURALS[phrase.noun] if plural else phrase.noun}".strip()


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _verb_phrase(predicate: Predicate, plural: bool = False) -> str:
    if predicate.negated:
        verb = f"{'do' if plural else 'does'} not {predicate.verb}"
    else:
        verb = predicate.verb if plural else third_person(predicate.verb)
    return " ".join(word for word in (verb, predicate.adverb, predicate.place) if word)


def pairs(split: str, count: int) -> list[Pair]:
    """The first ``count`` pairs of a split, no pair twice; any prefix holds each label equally often.

    Args:
        split: ``"train"`` or ``"test"``; no hypothesis is in both.
        count: number of pairs, at least 1.
    """
    seen: set[Pair] = set()
    taken: list[Pair] = []
    triples = Grammar(SEEDS[split]).triples(split)
    while len(taken) < count:
        triple = next(triples)
        if seen.isdisjoint(triple):
            taken.extend(triple)
            seen.update(triple)
    return taken[:count]
