"""Who the synthetic pedestrians are: attributes, how alike neighbours are, and their captions.

`Tuning` holds every constant that makes one modality of the synthetic data set harder or easier
than another; `service/data/drawing.py` reads the image half of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from service.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tuning:
    """Variety of people and strength of nuisances; * ones are times `nuisance(difficulty)`.

    Lengths are shares of the figure's height, brightness lies in [0, 1].
    """

    dyes: int = 8
    """Colours of clothes and bags in use: the first of `COLOURS`. More ask for more people."""
    kinds: int = 4
    """Values of every other attribute in use: the first of `CHOICES`."""

    pose_shift: float = 0.03
    """* Largest shift of the figure in the frame."""
    pose_scale: float = 0.06
    """* Largest change of the figure's size."""
    tone_spread: float = 0.05
    """* Standard deviation of a garment's brightness from photo to photo."""

    vis_gain: float = 0.15
    """* Largest exposure change."""
    vis_balance: float = 0.10
    """* Standard deviation of each channel's gain."""
    vis_blur: float = 0.008
    """* Largest blur."""
    vis_noise: float = 0.03
    """* Standard deviation of the sensor's noise."""
    vis_occluder: float = 0.25
    """* Probability that something hides a part of the figure."""

    nir_contrast: float = 1.0
    """Share of the reflectance differences that the camera keeps; 0 is one grey."""
    nir_dye_spread: float = 0.08
    """* Standard deviation of a garment's reflectance from photo to photo."""
    nir_blur: float = 0.014
    """* Largest blur."""
    nir_noise: float = 0.06
    """* Standard deviation of the sensor's noise."""
    nir_occluder: float = 0.3
    """* Probability that something hides a part of the figure."""

    cp_paleness: float = 0.45
    """Share of white paper in every pencil colour."""
    cp_colour_spread: float = 0.08
    """* Standard deviation of the pencil's colour from drawing to drawing."""
    cp_line: float = 0.010
    """Thickness of an outline."""

    sk_line: float = 0.011
    """Thickness of an outline."""
    sk_tone: float = 0.85
    """Darkness of the shading that stands for black cloth; 0 draws outlines alone."""
    sk_gaps: float = 0.01
    """* Share of the lines that the pencil skips."""

    text_dropout: float = 0.3
    """* Probability that a caption leaves an attribute out."""
    text_vague: float = 0.4
    """* Probability that a caption says dark, bright or pale instead of the colour."""


@dataclass(frozen=True, slots=True)
class Colour:
    """A dye: what it looks like, how captions call it, what it reflects at 850 nm."""

    rgb: tuple[int, int, int]
    words: tuple[str, ...]
    tone: str
    """The vague word for it."""
    reflectance: float
    """In [0, 1]; deliberately not the luminance: most dyes are bright in near-infrared."""


COLOURS = {
    "black": Colour((28, 28, 32), ("black",), "dark", 0.62),
    "white": Colour((238, 238, 236), ("white",), "pale", 0.78),
    "red": Colour((200, 30, 40), ("red", "crimson"), "bright", 0.78),
    "blue": Colour((26, 46, 150), ("blue", "navy"), "dark", 0.46),
    "yellow": Colour((242, 214, 60), ("yellow", "golden"), "bright", 0.62),
    "green": Colour((50, 148, 70), ("green",), "dark", 0.46),
    "pink": Colour((242, 150, 184), ("pink", "rose"), "pale", 0.46),
    "grey": Colour((140, 142, 146), ("grey", "gray"), "pale", 0.30),
    "purple": Colour((112, 48, 146), ("purple", "violet"), "dark", 0.78),
    "orange": Colour((238, 132, 30), ("orange",), "bright", 0.78),
    "azure": Colour((120, 186, 236), ("light blue", "sky blue"), "pale", 0.62),
    "brown": Colour((112, 70, 40), ("brown",), "dark", 0.30),
}
"""Most telling first; see `Tuning.dyes`."""
HAIR_COLOURS = {
    "black": Colour((26, 22, 22), ("black", "dark"), "dark", 0.25),
    "brown": Colour((98, 58, 32), ("brown",), "dark", 0.35),
    "blond": Colour((222, 186, 98), ("blond", "fair"), "pale", 0.45),
    "grey": Colour((172, 172, 172), ("grey", "silver"), "pale", 0.40),
}
SKIN = Colour((226, 180, 148), (), "pale", 0.68)

_DYES = tuple(COLOURS)
CHOICES: dict[str, tuple[str, ...]] = {
    "build": ("average", "slim", "heavy"),
    "hair": ("short", "long", "ponytail", "bun"),
    "hair_colour": tuple(HAIR_COLOURS),
    "hat": ("none", "beanie", "brim", "none", "cap"),
    "hat_colour": _DYES,
    "upper": ("tshirt", "coat", "poncho", "jacket", "tank", "sweater"),
    "upper_colour": _DYES,
    "pattern": ("plain", "hoops", "block", "pinstripes", "sash", "checks", "dots"),
    "second_colour": _DYES,
    "lower": ("trousers", "shorts", "gown", "flares", "skirt"),
    "lower_colour": _DYES,
    "shoes": ("shoes", "boots"),
    "shoe_colour": ("black", "white", "red"),
    "bag": ("none", "backpack", "suitcase", "handbag", "satchel"),
    "bag_colour": _DYES,
}
"""Values of every attribute, boldest first; a value named twice is twice as frequent."""

DISTINCT = (
    *("hat", "hat_colour", "upper", "upper_colour", "pattern", "second_colour"),
    *("lower", "lower_colour", "bag", "bag_colour"),
)
"""No two people share all of these."""


@dataclass(frozen=True, slots=True)
class Person:
    """The attributes of one pedestrian; a colour of something that is not there is ''."""

    build: str
    hair: str
    hair_colour: str
    hat: str
    hat_colour: str
    upper: str
    upper_colour: str
    pattern: str
    second_colour: str
    lower: str
    lower_colour: str
    shoes: str
    shoe_colour: str
    bag: str
    bag_colour: str

    @property
    def look(self) -> tuple[str, ...]:
        """The `DISTINCT` attributes, which no other person has all the same."""
        return tuple(getattr(self, name) for name in DISTINCT)


def nuisance(difficulty: float) -> float:
    """The factor on every nuisance: 0.5 for difficulty 0, 1 for 0.5, 1.5 for 1."""
    return 0.5 + difficulty


def draw_people(
    num_people: int,
    difficulty: float,
    tuning: Tuning,
    rng: np.random.Generator,
    others: Sequence[Person] = (),
) -> list[Person]:
    """People whose looks differ pairwise and from `others`; some are hard twins.

    Pairs (0, 1), (2, 3), ... are twins with probability `difficulty`: the second is the first with
    1 (difficulty 1) to 4 (difficulty 0) attributes drawn again, so some differ in a single thing.

    Raises:
        ConfigError: no further look was found.
    """
    people: list[Person] = []
    taken = {person.look for person in others}
    choices = _choices(tuning)
    for i in range(num_people):
        twin = people[-1] if i % 2 and rng.random() < difficulty else None
        person = _new_look(taken, twin, 1 + round(3 * (1 - difficulty)), choices, rng)
        taken.add(person.look)
        people.append(person)
    return people


_Choices = dict[str, tuple[str, ...]]


def _choices(tuning: Tuning) -> _Choices:
    return {
        name: values[: tuning.dyes if values is _DYES else tuning.kinds]
        for name, values in CHOICES.items()
    }


def _new_look(
    taken: set[tuple[str, ...]],
    twin: Person | None,
    num_changes: int,
    choices: _Choices,
    rng: np.random.Generator,
) -> Person:
    for _ in range(1000):
        person = _change(twin, num_changes, choices, rng) if twin else _draw(choices, rng)
        if person.look not in taken:
            return person
    raise ConfigError(
        f"synth: found no new look in 1000 draws after {len(taken)} people; make fewer people, or "
        "use more dyes and kinds"
    )


def _draw(choices: _Choices, rng: np.random.Generator) -> Person:
    return _settle(Person(**{name: _pick(values, rng) for name, values in choices.items()}))


def _change(
    person: Person, num_changes: int, choices: _Choices, rng: np.random.Generator
) -> Person:
    """`person` with `num_changes` of the attributes that it shows drawn again."""
    shown = [name for name in DISTINCT if getattr(person, name)]
    names = rng.choice(shown, size=min(num_changes, len(shown)), replace=False)
    changed = {}
    for name in (str(n) for n in names):
        others = [v for v in dict.fromkeys(choices[name]) if v != getattr(person, name)]
        changed[name] = _pick(others, rng)
    # A thing that appears, such as a bag, needs a colour of its own.
    blank = {
        f.name: _pick(choices[f.name], rng)
        for f in fields(Person)
        if not getattr(person, f.name) and f.name not in changed
    }
    return _settle(replace(person, **blank, **changed))


def _settle(person: Person) -> Person:
    """`person` without colours of things that are not there, and with a pattern that shows."""
    two_tone = person.pattern != "plain" or person.upper == "jacket"
    second = _contrasting(person.second_colour, person.upper_colour) if two_tone else ""
    return replace(
        person,
        second_colour=second,
        hat_colour="" if person.hat == "none" else person.hat_colour,
        bag_colour="" if person.bag == "none" else person.bag_colour,
    )


def _contrasting(colour: str, other: str) -> str:
    """The first dye from `colour` on whose tone is not `other`'s, so that sketches tell them."""
    start = _DYES.index(colour)
    turned = _DYES[start:] + _DYES[:start]
    return next(dye for dye in turned if COLOURS[dye].tone != COLOURS[other].tone)


def _pick(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]


_NOUNS: dict[str, tuple[str, ...]] = {
    "tank": ("tank top", "sleeveless top", "vest"),
    "tshirt": ("t-shirt", "tee", "short-sleeved shirt"),
    "sweater": ("sweater", "pullover", "jumper"),
    "jacket": ("open jacket", "unzipped jacket", "blazer"),
    "poncho": ("poncho", "cape", "loose poncho"),
    "coat": ("long coat", "overcoat", "knee-length coat"),
    "trousers": ("trousers", "pants", "slacks"),
    "flares": ("flared trousers", "wide-leg pants", "bell-bottoms"),
    "shorts": ("shorts", "short pants"),
    "skirt": ("short skirt", "knee-length skirt", "skirt"),
    "gown": ("long skirt", "ankle-length skirt", "maxi skirt"),
    "shoes": ("shoes", "sneakers", "trainers"),
    "boots": ("boots", "high boots", "ankle boots"),
    "backpack": ("backpack", "rucksack", "knapsack"),
    "satchel": ("shoulder bag", "satchel", "crossbody bag"),
    "handbag": ("handbag", "hand-held bag", "tote bag"),
    "suitcase": ("suitcase", "trolley case", "wheeled case"),
    "cap": ("cap", "baseball cap", "peaked cap"),
    "beanie": ("beanie", "knitted hat", "woolly hat"),
    "brim": ("wide-brimmed hat", "sun hat", "broad hat"),
    "short": ("short hair", "cropped hair"),
    "long": ("long hair", "shoulder-length hair"),
    "ponytail": ("hair in a ponytail", "ponytail"),
    "bun": ("hair in a bun", "hair tied up in a bun"),
    "hoops": ("with {} horizontal stripes", "with {} hoops"),
    "pinstripes": ("with {} vertical stripes", "with {} lengthwise stripes"),
    "checks": ("with {} checks", "with a {} plaid"),
    "dots": ("with {} dots", "with a {} polka-dot pattern"),
    "block": ("whose lower half is {}", "with a {} lower half"),
    "sash": ("with {} diagonal stripes", "with slanted {} stripes"),
}
_BUILDS = {"slim": ("slim", "thin"), "average": ("",), "heavy": ("heavy", "stout")}


def caption(person: Person, difficulty: float, tuning: Tuning, rng: np.random.Generator) -> str:
    """One sentence or two about `person`, in words that differ from photo to photo."""
    speaker = _Speaker(nuisance(difficulty), tuning, rng)
    clothes = [speaker.upper(person)]
    if speaker.says():
        clothes.append(speaker.thing(person.lower, person.lower_colour))
    if speaker.says():
        clothes.append(speaker.thing(person.shoes, person.shoe_colour))
    body = speaker.word(_BUILDS[person.build])
    first = f"A {body} person" if body and speaker.says() else "A person"
    text = f"{first} {speaker.word(('wears', 'is wearing', 'is dressed in'))} {_listed(clothes)}."
    extras = speaker.extras(person)
    return f"{text} {speaker.word(('The person', 'The pedestrian'))} {extras}." if extras else text


class _Speaker:
    """Chooses words for one caption: state is the generator alone."""

    def __init__(self, strength: float, tuning: Tuning, rng: np.random.Generator) -> None:
        self._dropout = min(0.9, strength * tuning.text_dropout)
        self._vague = min(1.0, strength * tuning.text_vague)
        self._rng = rng

    def says(self) -> bool:
        return self._rng.random() >= self._dropout

    def word(self, words: Sequence[str]) -> str:
        return _pick(words, self._rng)

    def colour(self, colour: Colour) -> str:
        if self._rng.random() < self._vague:
            return colour.tone
        return self.word(colour.words)

    def thing(self, kind: str, colour: str) -> str:
        noun = self.word(_NOUNS[kind])
        article = "" if noun.endswith("s") else "a "
        return f"{article}{self.colour(COLOURS[colour])} {noun}"

    def upper(self, person: Person) -> str:
        text = self.thing(person.upper, person.upper_colour)
        if not person.second_colour or not self.says():
            return text
        second = self.colour(COLOURS[person.second_colour])
        if person.pattern == "plain":
            return f"{text} over a {second} shirt"
        return f"{text} {self.word(_NOUNS[person.pattern]).format(second)}"

    def extras(self, person: Person) -> str:
        parts = []
        if self.says():
            hair = self.word(_NOUNS[person.hair])
            article = "a " if hair == "ponytail" else ""
            parts.append(f"has {article}{self.colour(HAIR_COLOURS[person.hair_colour])} {hair}")
        if person.hat != "none" and self.says():
            parts.append(f"wears {self.thing(person.hat, person.hat_colour)}")
        if person.bag != "none" and self.says():
            verb = self.word(("carries", "has"))
            parts.append(f"{verb} {self.thing(person.bag, person.bag_colour)}")
        return _listed(parts)


def _listed(parts: list[str]) -> str:
    text = " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)
    return text.replace("a orange", "an orange")
