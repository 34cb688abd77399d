"""The bundled sample text: short stories from a small grammar, as long as wanted, from a seed.

A story has a hero, a friend, a place and a thing that matters. Its sentences are short, so that a
context of 64 characters holds what a next word depends on. There is something to learn at every
distance: spelling; articles (a, an); agreement in number (the dog runs, the dogs run; was, were;
this, these); pronouns that fit the hero; quotation marks that close; names that come back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from .errors import InputError

Option = TypeVar("Option")

HEROINES = [
    "Anna", "Bella", "Clara", "Daisy", "Ella", "Fiona", "Greta", "Hanna", "Iris", "Julia", "Karla", "Lena", "Maria",
    "Nora", "Olivia", "Paula", "Rosa", "Sara", "Tina", "Vera",
]  # fmt: skip
HEROES = [
    "Adam", "Ben", "Carl", "David", "Emil", "Felix", "Georg", "Henry", "Ivan", "Jack", "Karl", "Leo", "Martin",
    "Noah", "Oscar", "Peter", "Robert", "Simon", "Tom", "Victor",
]  # fmt: skip

# Singular, plural.
CREATURES = [
    *((word, f"{word}s") for word in ["dog", "cat", "bird", "horse", "cow", "goat", "duck", "frog", "bee", "bear", "lion", "tiger", "rabbit", "squirrel", "hedgehog", "owl", "eagle", "robin", "swan", "turtle", "snail", "spider", "beetle", "hen", "rooster", "lamb", "kitten", "puppy", "donkey", "monkey", "parrot", "whale", "seal", "crab", "dragon", "giant", "king", "queen", "farmer", "baker", "sailor", "teacher", "doctor", "painter", "singer", "hunter", "miller", "soldier", "neighbor", "sister", "brother", "cousin", "friend", "girl", "boy", "stranger", "traveler", "gardener"]),
    ("fox", "foxes"), ("witch", "witches"), ("mouse", "mice"), ("goose", "geese"), ("sheep", "sheep"), ("fish", "fish"),
    ("wolf", "wolves"), ("thief", "thieves"), ("child", "children"), ("lady", "ladies"), ("pony", "ponies"),
    ("butterfly", "butterflies"), ("fisherman", "fishermen"),
]  # fmt: skip
THINGS = [
    *((word, f"{word}s") for word in ["apple", "pear", "plum", "nut", "egg", "cake", "cookie", "carrot", "pumpkin", "cup", "plate", "spoon", "kettle", "lamp", "candle", "basket", "bucket", "rope", "ladder", "hammer", "key", "door", "window", "table", "chair", "blanket", "pillow", "hat", "coat", "shoe", "ring", "crown", "coin", "letter", "book", "map", "picture", "drum", "flute", "bell", "clock", "kite", "ball", "boat", "wagon", "wheel", "stone", "shell", "feather", "flower", "rose", "lantern", "bottle", "button", "mirror", "umbrella", "island", "orange", "onion", "acorn"]),
    ("box", "boxes"), ("brush", "brushes"), ("dish", "dishes"), ("knife", "knives"), ("loaf", "loaves"), ("leaf", "leaves"),
    ("berry", "berries"), ("cherry", "cherries"), ("scarf", "scarves"),
]  # fmt: skip
PLACES = [
    "garden", "forest", "village", "town", "valley", "library", "kitchen", "meadow", "camp", "bay", "harbor", "mill",
    "barn", "castle", "tower", "cabin", "market", "school", "kitchen", "cellar", "attic", "cave", "orchard", "field",
    "hill", "forge", "stable", "bakery", "church", "park", "pond", "street", "city", "yard",
]  # fmt: skip
LOOKS = [
    "old", "young", "small", "big", "little", "tall", "tiny", "heavy", "strange", "pretty", "ugly", "golden",
    "silver", "red", "blue", "green", "white", "black", "brown", "yellow", "round", "long", "short", "wooden",
    "broken", "shiny", "warm", "cold", "wet", "dry", "soft", "loud", "quiet", "empty", "dusty", "orange", "ancient",
    "enormous", "icy",
]  # fmt: skip
MOODS = [
    "happy", "sad", "angry", "tired", "hungry", "thirsty", "proud", "afraid", "brave", "curious", "lonely", "lucky",
    "busy", "sleepy", "sorry", "glad", "calm", "shy",
]  # fmt: skip
WEATHER = ["sunny", "rainy", "windy", "cloudy", "foggy", "snowy", "stormy", "cool", "mild", "bright", "dark"]
TIMES = ["One day", "One morning", "One evening", "In spring", "In summer", "In autumn", "In winter", "Last week",
         "Long ago", "At noon", "At night", "On Monday", "On Friday", "On Sunday", "After lunch", "Before dinner"]  # fmt: skip
# Base, third person, past.
MOVES = [
    ("walk", "walks", "walked"), ("run", "runs", "ran"), ("jump", "jumps", "jumped"), ("swim", "swims", "swam"),
    ("sing", "sings", "sang"), ("dance", "dances", "danced"), ("sleep", "sleeps", "slept"), ("laugh", "laughs", "laughed"),
    ("cry", "cries", "cried"), ("wait", "waits", "waited"), ("rest", "rests", "rested"), ("work", "works", "worked"),
    ("play", "plays", "played"), ("hide", "hides", "hid"), ("climb", "climbs", "climbed"), ("smile", "smiles", "smiled"),
    ("dream", "dreams", "dreamed"), ("eat", "eats", "ate"), ("listen", "listens", "listened"), ("whisper", "whispers", "whispered"),
]  # fmt: skip
DEEDS = [
    ("find", "finds", "found"), ("see", "sees", "saw"), ("take", "takes", "took"), ("bring", "brings", "brought"),
    ("carry", "carries", "carried"), ("hide", "hides", "hid"), ("lose", "loses", "lost"), ("want", "wants", "wanted"),
    ("need", "needs", "needed"), ("like", "likes", "liked"), ("love", "loves", "loved"), ("buy", "buys", "bought"),
    ("sell", "sells", "sold"), ("paint", "paints", "painted"), ("wash", "washes", "washed"), ("clean", "cleans", "cleaned"),
    ("fix", "fixes", "fixed"), ("hold", "holds", "held"), ("watch", "watches", "watched"), ("keep", "keeps", "kept"),
    ("open", "opens", "opened"), ("share", "shares", "shared"), ("look for", "looks for", "looked for"),
    ("draw", "draws", "drew"), ("remember", "remembers", "remembered"), ("forget", "forgets", "forgot"),
]  # fmt: skip
MANNERS = [
    "slowly", "quickly", "quietly", "happily", "sadly", "carefully", "bravely", "gently", "loudly", "alone",
    "together", "again", "today", "outside",
]  # fmt: skip
COUNTS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "some", "many"]
ASKED = ["asked", "whispered", "called", "said"]
ANSWERED = ["answered", "replied", "said", "whispered"]
SHOUTED = ["shouted", "cried", "called"]
ENDINGS = [
    "The sun went down.", "The moon came up.", "The stars were bright.", "It was time to go home.", "Everyone was happy.",
    "They all laughed.", "Then they had dinner.", "And that was the end of the day.", "Soon it was quiet again.",
    "Nobody was afraid anymore.", "They were friends from then on.", "The next day was even better.",
]  # fmt: skip


class _Story:
    """The words that return throughout one story, and the random choices."""

    def __init__(self, generator: random.Random) -> None:
        self.uniform = generator.random
        female = self.uniform() < 0.5
        self.hero = self.pick(HEROINES if female else HEROES)
        self.friend = self.pick(HEROES if female else HEROINES)
        self.pronoun, self.possessive, self.object = ("she", "her", "her") if female else ("he", "his", "him")
        self.place = self.pick(PLACES)
        self.creature = self.pick(CREATURES)
        self.thing = self.pick(THINGS)

    def pick(self, options: Sequence[Option]) -> Option:
        """Return one of several options; `random.choice` may differ between Python versions."""
        return options[int(self.uniform() * len(options))]

    def two(self, options: Sequence[str]) -> str:
        """Return two different options joined by `and`."""
        first, second = self.pick(options), self.pick(options)
        return first if first == second else f"{first} and {second}"

    def subject(self) -> str:
        """Return the hero by name or pronoun, to begin a sentence."""
        return self.hero if self.uniform() < 0.4 else self.pronoun.capitalize()

    def noun(self, words: tuple[str, str] | None = None) -> tuple[str, bool]:
        """Return a noun with its article or number, and whether it is plural."""
        singular, plural = words or self.pick(THINGS if self.uniform() < 0.5 else CREATURES)
        look = self.pick(LOOKS) if self.uniform() < 0.45 else ""
        if self.uniform() < 0.4:
            return " ".join(filter(None, (self.pick(COUNTS), look, plural))), True
        return with_article(" ".join(filter(None, (look, singular)))), False

    def definite(self, words: tuple[str, str], plural: bool) -> str:
        """Return a noun with `the` and perhaps an adjective."""
        look = f"{self.pick(LOOKS)} " if self.uniform() < 0.3 else ""
        return f"the {look}{words[plural]}"

    def opening(self) -> str:
        """Return the first sentence."""
        look = self.pick(LOOKS[:4])
        person = "girl" if self.pronoun == "she" else "boy"
        return self.pick((
            f"{self.pick(TIMES)}, {self.hero} went to the {self.place}.",
            f"Once there was {with_article(f'{look} {person}')} named {self.hero}.",
            f"{self.hero} lived near the {self.place}.",
            f"{self.hero} and {self.friend} were in the {self.place}.",
        ))  # fmt: skip

    def weather(self) -> str:
        """Return a sentence about the day."""
        return f"The day was {self.two(WEATHER)}."

    def mood(self) -> str:
        """Return a sentence about how someone felt; was or were."""
        if self.uniform() < 0.4:
            plural = self.uniform() < 0.6
            verb = "were" if plural else "was"
            return f"{capitalized(self.definite(self.creature, plural))} {verb} {self.pick(MOODS)}."
        return f"{self.subject()} was {self.two(MOODS)}."

    def deed(self) -> str:
        """Return a sentence in which the hero does something with a thing."""
        noun, _ = self.noun(self.thing if self.uniform() < 0.5 else None)
        where = f" in the {self.place}" if self.uniform() < 0.3 else ""
        return f"{self.subject()} {self.pick(DEEDS)[2]} {noun}{where}."

    def move(self) -> str:
        """Return a sentence in which someone moves."""
        manner = f" {self.pick(MANNERS)}" if self.uniform() < 0.6 else ""
        who = (
            self.subject() if self.uniform() < 0.5 else capitalized(self.definite(self.creature, self.uniform() < 0.5))
        )
        return f"{who} {self.pick(MOVES)[2]}{manner}."

    def there(self) -> str:
        """Return a sentence with there was or there were."""
        noun, plural = self.noun()
        return f"There {'were' if plural else 'was'} {noun} near the {self.place}."

    def relation(self) -> str:
        """Return a sentence about a thing of the hero's."""
        plural = self.uniform() < 0.5
        return (
            f"{capitalized(self.possessive)} {self.thing[plural]} {'were' if plural else 'was'} {self.pick(LOOKS)}, "
            f"but {self.pronoun} {self.pick(DEEDS)[2]} {'them' if plural else 'it'}."
        )

    def dialogue(self) -> str:
        """Return a question and its answer, in the present tense."""
        first, second = (self.hero, self.friend) if self.uniform() < 0.5 else (self.friend, self.hero)
        plural = self.uniform() < 0.5
        noun = self.pick((self.thing, self.creature))
        this, verb, pronoun = ("these", "are", "they") if plural else ("this", "is", "it")
        creature = self.definite(self.creature, plural)
        move, deed = self.pick(MOVES), self.pick(DEEDS)
        question, answer = self.pick((
            (f"Where {verb} the {noun[plural]}?", f"{capitalized(pronoun)} {verb} in the {self.place}."),
            (f"Do you like {this} {self.thing[plural]}?", f"Yes, {pronoun} {verb} very {self.pick(LOOKS)}."),
            (f"Why {'do' if plural else 'does'} {creature} {move[0]}?", f"Because {pronoun} {verb} {self.pick(MOODS)}."),
            ("What do you want?", f"I {deed[0]} {self.noun()[0]}."),
            ("Can you help me?", f"Yes, I can {self.pick(MOVES)[0]} with you."),
            (f"Who is in the {self.place}?", f"I see {self.noun(self.creature)[0]} there."),
            (f"Look, {creature} {move[0] if plural else move[1]}!", f"And {creature} {deed[0] if plural else deed[1]} {self.noun()[0]}!"),
        ))  # fmt: skip
        asked = self.pick(ASKED if question.endswith("?") else SHOUTED)
        answered = self.pick(SHOUTED if answer.endswith("!") else ANSWERED)
        if self.uniform() < 0.5:
            answer = f"{answer[:-1]}," if answer.endswith(".") else answer
            return f'"{question}" {asked} {first}. "{answer}" {answered} {second}.'
        return f'{first} {asked}, "{question}" {second} {answered}, "{answer}"'

    def tell(self) -> str:
        """Return the whole story as one paragraph."""
        middle = [self.pick(MIDDLE)(self) for _ in range(3 + int(self.uniform() * 4))]
        return " ".join([self.opening(), *middle, self.pick(ENDINGS)])


MIDDLE: tuple[Callable[[_Story], str], ...] = (
    _Story.weather, _Story.mood, _Story.deed, _Story.deed, _Story.move, _Story.move, _Story.there, _Story.relation,
    _Story.dialogue, _Story.dialogue, _Story.dialogue,
)  # fmt: skip


def generate_stories(num_bytes: int, seed: int = 0) -> str:
    """Return whole stories, one a paragraph: `num_bytes` ASCII characters or up to a story more.

    Args:
        num_bytes: At least 1.
        seed: The same seed and size give the same text with every version of Python.

    Raises:
        InputError: The size is not positive.
    """
    if num_bytes < 1:
        raise InputError(f"the size of the sample text must be at least 1 byte, not {num_bytes}")
    generator = random.Random(seed)
    stories: list[str] = []
    size = 0
    while size < num_bytes:
        story = _Story(generator).tell() + "\n\n"
        stories.append(story)
        size += len(story)
    return "".join(stories)


def with_article(words: str) -> str:
    """Return words with `a` or `an` before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def capitalized(words: str) -> str:
    """Return words with a capital first letter."""
    return words[0].upper() + words[1:]
