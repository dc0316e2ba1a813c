"""What the loop writes of a batch whose rows are not all paired."""

import numpy as np
import torch

from service.data.layout import Batch, StepLayout
from service.losses.pairs import Pairs
from service.modality import Modality
from service.settings import load_text
from service.training import events

CONFIG = load_text("data: {records: x}\nlog: {detail_every: 10}\n")
LAYOUT = StepLayout(
    class_index=np.array([4, 7, 4]),
    kind=np.array([Modality.VIS, Modality.VIS, Modality.NIR], np.int8),
    counts=(3,),
    rank=0,
)
BATCH = Batch(
    epoch=1,
    step=0,
    images=torch.zeros(3, 8, 8, 3, dtype=torch.uint8),
    image_counts=(2, 1, 0, 0),
    tokens=torch.zeros(0, 4, dtype=torch.int32),
    row=np.arange(3),
    fused=torch.zeros(0, 4, dtype=torch.int64),
    layout=LAYOUT,
)


def test_unpaired_rows_are_counted_and_named_at_the_detail_period():
    pairs = Pairs.of(LAYOUT, np.empty(0, np.int64))
    line = events.unpaired(CONFIG, BATCH, pairs, step=9)
    assert line == {"event": "unpaired", "step": 9, "rows": 1, "of": 3}
    assert events.unpaired(CONFIG, BATCH, pairs, step=10)["classes"] == [4, 7]
