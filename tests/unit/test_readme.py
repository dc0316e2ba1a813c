"""What the README tells to type can be typed."""

import re
from pathlib import Path

import numpy as np
import pytest

from service.data.index import IdentityIndex
from service.data.sampler import PKPlan
from service.modality import Modality
from service.orchestration.words import split_words
from service.settings import load_config, load_text

README = Path("README.md").read_text()
COMMANDS = re.findall(
    r"(?:crossreid(?: submit)?|-m jobs\.)[ ]?(?:train|tune) (configs/[^`\n]*)", README
)
THRESHOLDS = re.findall(r"--policy (\S+=[\d.]*\d)", README)
SETTINGS = sorted(set(re.findall(r"`((?:cluster|train|model\.backbone)\.[a-z_.]+=[^` ]+)", README)))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_config_in_a_command_loads_with_its_overrides(words: str):
    file, overrides = split_words(words.partition(" --")[0].split())
    assert file
    load_config(file, overrides)


def test_the_commands_are_found():
    assert {words.split()[0] for words in COMMANDS} >= {
        "configs/demo.yaml",
        "configs/tune-gonogo.yaml",
        "configs/own-photos.yaml",
    }


@pytest.mark.parametrize("text", SETTINGS)
def test_every_setting_that_is_named_with_a_value_is_one(text: str):
    load_text("data: {records: somewhere}\n", [text])


@pytest.mark.parametrize("text", THRESHOLDS)
def test_every_threshold_that_is_named_fits_the_defaults(text: str):
    load_text("data: {records: somewhere}\n", [f"policy.{text}"])


def test_the_thresholds_are_found():
    assert THRESHOLDS


@pytest.mark.parametrize("num_people", [16, 40])
def test_own_photos_fit_on_the_one_worker_that_their_config_asks_for(num_people: int):
    config = load_config("configs/own-photos.yaml")
    people = np.repeat(np.arange(num_people, dtype=np.int32), 5)
    modality = np.tile(np.array(list(Modality), np.int8), num_people)
    index = IdentityIndex.build(people, modality, num_people)
    assert config.cluster.num_workers == 1
    PKPlan(index, config.sampler, seed=0).check_world(config.cluster.num_workers)


def test_own_photos_are_read_where_the_readme_has_them_written():
    config = load_config("configs/own-photos.yaml")
    height, width = config.model.backbone.image_size
    line = f"crossreid data ingest MY_DATA {config.data.records} --size {height}x{width}"
    assert line in README
    assert line in Path("configs/own-photos.yaml").read_text()
