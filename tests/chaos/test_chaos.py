"""A run whose processes are killed one after the other ends as one that was left alone.

The cluster stays when the driver is killed. The long form, with a hundred kills, of the barrier, of
workers that hang and of Ray's daemons too, and on clusters that the run starts itself: make chaos.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.campaign import CHECKPOINT_EVERY, Campaign
from tests.chaos.kills import DAEMONS, Victim, draw
from tests.chaos.table import table

TOTAL = 120
ONLY_LONG = (Victim.BARRIER, Victim.FROZEN, *DAEMONS)
SEED = int(os.environ.get("CHAOS_SEED", "26"))
KILLS = int(os.environ.get("CHAOS_KILLS", "6"))


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Ray's sockets lie below it, and their names may not be long."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_survives_the_death_of_each_of_its_processes(
    tmp_path: Path, ray_folder: Path, record_property: Any
):
    campaign = Campaign(tmp_path, ray_folder, TOTAL)
    once = {victim: 1 for victim in Victim if victim not in ONLY_LONG}
    kills = draw(SEED, KILLS, total=TOTAL, checkpoint_every=CHECKPOINT_EVERY, shares=once)
    struck, differences = campaign.chase("chased", kills, stays=True)
    record_property("kills", f"\n{table(struck)}")
    assert differences == []
    # The last one may come too late.
    assert {found.kill for found in struck} >= set(kills[:-1])
