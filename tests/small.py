"""A small learnable data set and run, for tests of the whole loop."""

from collections.abc import Callable, Iterable
from pathlib import Path

from service.config import Config
from service.data.ingest import ingest
from service.data.synthetic import SynthSettings, synthesize
from service.settings import load_text

SIZE = (48, 24)

CONFIG = """
run: {{name: small, seed: 0}}
data: {{records: {records}}}
sampler: {{ids_per_batch: 8, rows_per_id: 5}}
augment: {{pad: 2, erase: 0.0}}
model:
  backbone:
    name: small
    image_size: [48, 24]
    architecture:
      {{embed_dim: 32, patch_size: 8, vision_width: 48, vision_layers: 2, vision_heads: 2,
       text_width: 32, text_layers: 1, text_heads: 2}}
loss: {{sdm: {{min_steps: 20}}}}
optim: {{head_lr: 3e-3, backbone_lr: 1e-3, patch_lr: 1e-3, neck_lr: 1e-3}}
train: {{epochs: 1000, max_steps: 120, checkpoint_every: 1000, threads: 1}}
log: {{every: 10, health_every: 20}}
policy: {{window: 20, first_look: 60, no_go_from: 80, final_look: 120}}
telemetry: {{enabled: false}}
eval: {{after_training: false}}
"""


def make_records(folder: Path, people: int = 24, seed: int = 0, shard_rows: int = 8192) -> Path:
    """Ingested synthetic people under `folder`; two thirds are for training."""
    settings = SynthSettings(
        people=people, images_per_person=20, image_size=(64, 32), seed=seed, difficulty=0.2
    )
    synthesize(folder / "orbench", settings)
    ingest(folder / "orbench", str(folder / "records"), image_size=SIZE, shard_rows=shard_rows)
    return folder / "records"


def dies_after(steps: int) -> Callable[[int], None]:
    """A poll that kills the run once it has made so many steps."""
    left = iter(range(steps))

    def poll(applied: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return poll


def small_config(records: Path, overrides: Iterable[str] = ()) -> Config:
    return load_text(CONFIG.format(records=records), overrides)
