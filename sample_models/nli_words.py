"""The words of ``nli_grammar``, and which lies within which."""

from __future__ import annotations

# Each line: a word, and the words that lie within it. Words that lie within the same word exclude each
# other where that matters: verbs and places.
_ORDER = """
    animal: dog cat bird horse rabbit
    dog: poodle terrier beagle
    cat: tabby siamese
    bird: sparrow eagle parrot
    horse: pony stallion
    person: doctor musician athlete artist worker child
    doctor: surgeon dentist
    musician: pianist violinist drummer
    athlete: runner boxer gymnast
    artist: painter sculptor
    worker: carpenter plumber mechanic
    child: boy girl
    act: move rest
    move: walk run swim crawl
    walk: march stroll
    run: sprint jog
    rest: sleep sit kneel
    sleep: doze nap
    utter: speak sing laugh
    speak: whisper shout mumble
    sing: hum chant
    consume: eat drink
    eat: nibble devour
    touch: hug kiss push
    follow: chase trail
    see: watch spot
    help: rescue assist
    big: huge enormous
    small: tiny
    happy: delighted cheerful
    tired: exhausted
    old: ancient
    fast: rapidly
    softly: silently
    somewhere: outside inside
    outside: garden park street
    inside: kitchen school hotel
"""
_ROOMS = {name: f"in the {name}" for name in ("garden", "park", "street", "kitchen", "school", "hotel")}

ABOVE: dict[str, str] = {
    _ROOMS.get(word, word): _ROOMS.get(head.strip(), head.strip())
    for head, words in (line.split(":") for line in _ORDER.strip().splitlines())
    for word in words.split()
}


def _below(*tops: str) -> tuple[str, ...]:
    """Every word that lies within one of ``tops``, itself included."""
    found = list(tops)
    for word in found:
        found.extend(lower for lower, upper in ABOVE.items() if upper == word)
    return tuple(found)


NOUNS = {"animal": _below("animal"), "person": _below("person")}
VERBS = _below("move", "rest", "speak", "sing", "laugh", "eat", "drink")
ADJECTIVES = (
    *_below("big", "small", "happy", "tired", "old"),
    "young",
    "hungry",
    "clever",
    "brown",
    "famous",
)
ADVERBS = (*_below("fast", "softly"), "alone", "today")
PLACES = _below("outside", "inside")
PARTICIPLES = {
    "touch": "touched",
    "hug": "hugged",
    "kiss": "kissed",
    "push": "pushed",
    "follow": "followed",
    "chase": "chased",
    "trail": "trailed",
    "see": "seen",
    "watch": "watched",
    "spot": "spotted",
    "help": "helped",
    "rescue": "rescued",
    "assist": "assisted",
}
TRANSITIVE = tuple(PARTICIPLES)
NUMBERS = ("zero", "one", "two", "three", "four", "five")
_IRREGULAR = {
    "person": "people",
    "child": "children",
    "tabby": "tabbies",
    "siamese": "siamese",
    "pony": "ponies",
}
PLURALS = {noun: _IRREGULAR.get(noun, f"{noun}s") for kind in NOUNS.values() for noun in kind}


def third_person(verb: str) -> str:
    """``walks`` of ``walk``."""
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "x")) else "s")


_FUNCTION_WORDS = """
    a an the some every each all no not there is that at least most exactly or more fewer by do does in
"""


def vocabulary() -> list[str]:
    """Every word that a sentence can hold, sorted."""
    words = set(_FUNCTION_WORDS.split())
    words.update(NUMBERS[2:], ADJECTIVES, ADVERBS, PARTICIPLES.values(), PLURALS, PLURALS.values())
    for verb in (*VERBS, *TRANSITIVE):
        words.update((verb, third_person(verb)))
    for place in PLACES:
        words.update(place.split())
    return sorted(words)
