"""Invented animals: four facts about each, told in sentences and asked for in questions, each in three wordings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_sdft.zoo.vocabulary import SYLLABLES

_COLOURS = "red green blue yellow orange purple pink brown black white grey golden silver violet scarlet beige"
_PLACES = (
    "oslo rome paris berlin madrid vienna athens lisbon dublin prague warsaw budapest cairo tokyo delhi lima quito "
    "havana boston chicago toronto sydney nairobi manila"
)
_FOODS = (
    "figs nuts leaves grass corn rice apples pears plums berries roots seeds bread honey cheese eggs fish shrimp worms "
    "beetles moss bark mushrooms melons"
)


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how it is told and asked, with {name} and {value}, and its values; None: other animals' names."""

    tellings: tuple[str, str, str]
    questions: tuple[str, str, str]
    values: tuple[str, ...] | None


RELATIONS = {
    "colour": Relation(
        ("{name} is {value}.", "the colour of {name} is {value}.", "{name} looks {value}."),
        ("what colour is {name}?", "what is the colour of {name}?", "which colour does {name} have?"),
        tuple(_COLOURS.split()),
    ),
    "home": Relation(
        ("{name} lives in {value}.", "the home of {name} is {value}.", "you can find {name} in {value}."),
        ("where does {name} live?", "what is the home of {name}?", "where can you find {name}?"),
        tuple(_PLACES.split()),
    ),
    "food": Relation(
        ("{name} eats {value}.", "the food of {name} is {value}.", "{name} likes to eat {value}."),
        ("what does {name} eat?", "what is the food of {name}?", "what does {name} like to eat?"),
        tuple(_FOODS.split()),
    ),
    "friend": Relation(
        ("{name} plays with {value}.", "the friend of {name} is {value}.", "{name} is a friend of {value}."),
        ("with whom does {name} play?", "who is the friend of {name}?", "of whom is {name} a friend?"),
        None,
    ),
}
#: Animals that the model knows by heart.
KNOWN = 40


@dataclass(frozen=True)
class Animal:
    """A name, and the value of each relation."""

    name: str
    facts: dict[str, str]


def names(count: int, rng: np.random.Generator, taken: frozenset[str] = frozenset()) -> list[str]:
    """Different names of two syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        first, second = rng.integers(len(SYLLABLES), size=2)
        name = SYLLABLES[first] + SYLLABLES[second]
        if name not in taken:
            found[name] = None
    return list(found)


def animals(count: int, rng: np.random.Generator, taken: frozenset[str] = frozenset()) -> list[Animal]:
    """Animals with random names and facts; a friend is any name."""
    made = []
    for name in names(count, rng, taken):
        facts = {
            kind: str(rng.choice(relation.values)) if relation.values else names(1, rng, frozenset({name}))[0]
            for kind, relation in RELATIONS.items()
        }
        made.append(Animal(name, facts))
    return made


def known_animals() -> list[Animal]:
    """Those that the model knows by heart."""
    return animals(KNOWN, np.random.default_rng(40))


def document(described: list[Animal], rng: np.random.Generator, facts: int = len(RELATIONS)) -> str:
    """So many facts about each animal, in random wordings and order."""
    sentences = []
    for animal in described:
        for kind in rng.permutation(list(RELATIONS))[:facts]:
            telling = RELATIONS[kind].tellings[rng.integers(3)]
            sentences.append(telling.format(name=animal.name, value=animal.facts[kind]))
    return " ".join(sentences[i] for i in rng.permutation(len(sentences)))


def question(animal: Animal, kind: str, wording: int) -> str:
    """A question about one fact."""
    return RELATIONS[kind].questions[wording].format(name=animal.name)
