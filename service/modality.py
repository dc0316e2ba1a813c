"""The five modalities and their one spelling."""

from enum import IntEnum


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
