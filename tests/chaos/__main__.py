"""Kills processes of real runs until CHAOS_KILLS have been killed, and compares every run.

    make chaos                                  100 kills, ten a run, half an hour
    CHAOS_SEED=7 CHAOS_KILLS=10 make chaos      as in the run that says so: to repeat it

Every second run is on a cluster that stays when its commands go, every other one on clusters that
they start themselves, and whose daemons are killed too. Results go to standard output, progress to
standard error. Exits with 1 when a run did not go on, or told anything else than the run that was
left alone; its folder and the logs of its commands stay.
"""

import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import CHECKPOINT_EVERY, Campaign
from tests.chaos.chased import Struck
from tests.chaos.kills import SHARES, STAYING_SHARES, draw
from tests.chaos.table import table

TOTAL = 400
A_RUN = 10
"""Kills of one run."""
VAIN = 3
"""Runs without a kill, in which each moment came too late, after which no more are tried."""


def main() -> int:
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(10**6)))
    wanted = int(os.environ.get("CHAOS_KILLS", "100"))
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    _say(f"CHAOS_SEED={seed} CHAOS_KILLS={wanted}, in {folder}")
    campaign = Campaign(folder, folder, TOTAL)
    kills: dict[bool, list[Struck]] = {False: [], True: []}
    findings: list[str] = []
    began, killed, vain = time.monotonic(), 0, 0

    def on_kill(kill: Struck) -> None:
        nonlocal killed
        killed += 1
        left_s = (time.monotonic() - began) / killed * (wanted - killed)
        what = f"{kill.kill.victim} at {kill.kill.moment}, attempt {kill.attempt}"
        _say(f"kill {killed} of {wanted}: {what}; ETA {left_s / 60:.0f} minutes")

    while killed < wanted:
        before, number = killed, min(A_RUN, wanted - killed)
        stays = seed % 2 == 1
        shares = STAYING_SHARES if stays else SHARES
        plan = draw(seed, number, total=TOTAL, checkpoint_every=CHECKPOINT_EVERY, shares=shares)
        struck, wrong = campaign.chase(f"chased-{seed}", plan, on_kill, stays=stays)
        kills[stays] += struck
        again = f"CHAOS_SEED={seed} CHAOS_KILLS={number} make chaos repeats it"
        _say(*(told := [f"run chased-{seed}: {words} ({again})" for words in wrong]))
        findings += told
        seed += 1
        vain += killed == before
        if vain == VAIN:
            findings.append(f"only {killed} of {wanted} kills could be made")
            break
    for stays, struck in ((stays, struck) for stays, struck in kills.items() if struck):
        where = "a cluster that stays" if stays else "clusters of the commands' own"
        print(f"{len(struck)} kills on {where}:\n{table(struck)}\n")
    print("\n".join([*findings, f"{len(findings)} differences in {killed} kills"]))
    if not findings:
        shutil.rmtree(folder)
    return 1 if findings else 0


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
