"""The five modalities, their one spelling, and the only table of other spellings."""

from enum import IntEnum

from service.errors import ConfigError


class Modality(IntEnum):
    """Values are stored in records; their order is the row order inside a batch."""

    VIS = 0
    NIR = 1
    CP = 2
    SK = 3
    TEXT = 4

    @property
    def label(self) -> str:
        """The dataset-native spelling: vis, nir, cp, sk or text."""
        return self.name.lower()


IMAGE_MODALITIES = (Modality.VIS, Modality.NIR, Modality.CP, Modality.SK)
QUERY_MODALITIES = (Modality.NIR, Modality.CP, Modality.SK, Modality.TEXT)
PHOTO_MODALITIES = (Modality.VIS, Modality.NIR)

_ALIASES = {
    "rgb": Modality.VIS,
    "visible": Modality.VIS,
    "ir": Modality.NIR,
    "infrared": Modality.NIR,
    "cpencil": Modality.CP,
    "colorpencil": Modality.CP,
    "colourpencil": Modality.CP,
    "sketch": Modality.SK,
    "caption": Modality.TEXT,
}
_NAMES = {m.label: m for m in Modality}


def parse_modality(name: str) -> Modality:
    """The modality that `name` spells, canonical or alias, case-insensitive.

    Use it only where a name enters from outside; inside, modalities are `Modality` values.

    Raises:
        ConfigError: for any other name.
    """
    key = name.strip().lower()
    found = _NAMES.get(key, _ALIASES.get(key))
    if found is None:
        known = ", ".join([*_NAMES, *_ALIASES])
        raise ConfigError(f"unknown modality {name!r}; expected one of: {known}")
    return found
