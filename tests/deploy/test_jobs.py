"""What the jobs run exists, is accepted, and fits the cluster that is made for it."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.cli import main
from service.config import Config
from service.errors import CrossReidError
from service.orchestration.entry import _read as read_words
from service.orchestration.runs import check_run_id
from service.orchestration.words import parse_size
from tests.deploy.kustomize import Json, every_object, of_kind, rendered
from tests.deploy.pods import pods

IMAGE = "/opt/crossreid/"
"""Where docker/Dockerfile puts configs and deploy."""
JOBS = [found for _, found in every_object() if found["kind"] == "RayJob"]
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode")
"""Those that submit by themselves; the CRD takes any text."""
_META = re.compile(r"[;&|<>$`\\\"'(){}*?~\n]")
SCRAPE_S = 15.0
MACHINE_S = 1200.0
"""Seconds in which a cloud has given a machine with GPUs, and that has fetched the image."""


@dataclass(frozen=True, slots=True)
class Entry:
    module: str
    config: Config
    run_id: str
    words: list[str]


def entry(found: Json) -> Entry:
    """The entrypoint as jobs/train.py reads it, with the image's files taken from here."""
    python, dash, module, *words = found["spec"]["entrypoint"].split()
    assert (python, dash) == ("python", "-m")
    here = [word.replace(IMAGE, "") if word.startswith(IMAGE) else word for word in words]
    config, run_id = read_words(here)
    assert run_id is not None
    return Entry(module, config, check_run_id(run_id), here)


def complaints(found: Json) -> list[str]:
    """What is wrong with a RayJob and what it runs."""
    spec = found["spec"]
    if _META.search(spec["entrypoint"]):
        return ["the submitter's shell would read the entrypoint otherwise"]
    try:
        said = entry(found)
    except (AssertionError, ValueError, CrossReidError) as error:
        return [f"the entrypoint is refused: {error}"]
    config, wrong = said.config, []
    if spec["submissionMode"] not in MODES or not spec["shutdownAfterJobFinishes"]:
        wrong.append("the cluster is not made for this job, or outlives it")
    if importlib.util.find_spec(said.module) is None:
        wrong.append(f"no module {said.module}")
    if not config.run.storage.startswith("/data/"):
        wrong.append("runs do not lie on the shared volume")
    if not config.data.records.startswith(("/data/", "s3://")):
        wrong.append("records lie neither on the shared volume nor in a store")
    if config.telemetry.host != "0.0.0.0":
        wrong.append("Prometheus cannot reach the exporter")
    if spec["ttlSecondsAfterFinished"] < config.telemetry.linger_s + 3 * SCRAPE_S:
        wrong.append("the head goes before Prometheus has seen the end")
    return wrong + fit(found, config)


def fit(found: Json, config: Config) -> list[str]:
    """Whether the workers hold what the run asks for, and the head serves its numbers."""
    heads, workers = ([p for p in pods(found) if p.role == role] for role in ("head", "worker"))
    ports = [
        port["containerPort"] for port in heads[0].main["ports"] if port["name"] == "reid-metrics"
    ]
    wrong = [] if ports == [config.telemetry.port] else ["the exporter's port is not declared"]
    group = found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = workers[0].main["resources"]["limits"]
    asked = config.cluster
    for each, kind in ((asked.cpus_per_worker, "cpu"), (asked.gpus_per_worker, "nvidia.com/gpu")):
        a_pod = float(limits.get(kind, 0)) // each if each else asked.num_workers
        if a_pod * group["replicas"] < asked.num_workers:
            wrong.append(f"the workers lack {kind}")
    if asked.gpus_per_worker and asked.wait_s < MACHINE_S:
        wrong.append("the run ends before a lost machine is replaced")
    return wrong


@pytest.mark.parametrize("found", JOBS, ids=lambda found: found["metadata"]["name"])
def test_jobs_run_what_exists_on_what_is_enough(found: Json):
    assert complaints(found) == []


@pytest.mark.parametrize("found", JOBS, ids=lambda found: found["metadata"]["name"])
def test_config_show_takes_the_same_words(found: Json, capsys: pytest.CaptureFixture[str]):
    words = entry(found).words
    assert main(["config", "show", *words[: words.index("--run-id")]]) == 0
    assert "host: 0.0.0.0" in capsys.readouterr().out


def test_no_two_jobs_write_the_same_run():
    names = [(said.config.run.storage, said.run_id) for said in map(entry, JOBS)]
    assert len(set(names)) == len(names) == 3


@pytest.mark.parametrize("store", ["", "-s3"])
def test_the_ingest_makes_what_the_training_reads(store: str):
    (ingest,) = of_kind(rendered(f"ingest{store}"), "Job")
    (pod,) = pods(ingest)
    *python, folder, records, size = pod.main["command"]
    assert python == ["python", "-m", "jobs.ingest"]
    (job,) = of_kind(rendered(f"job{store}"), "RayJob")
    config = entry(job).config
    assert (records, parse_size(size)) == (config.data.records, config.model.backbone.image_size)
    assert folder.startswith("/data/")


def test_the_first_run_draws_what_make_demo_draws():
    """The commands and the size are those of the Makefile, which tests run."""
    (job,) = of_kind(rendered("first"), "RayJob")
    (_, head, _) = pods(job)
    script = head.spec["initContainers"][0]["command"][-1]
    made = re.findall(
        r"crossreid (data \w+)[^\n]*?(--size \S+)?$", Path("Makefile").read_text(), re.M
    )
    for command, size in made:
        assert re.search(f"crossreid {command} [^&]*{size}", script)
    assert len(made) == 2
    assert f"{entry(job).config.data.records}/manifest.json" in script


def unknown_setting(found: Json) -> None:
    found["spec"]["entrypoint"] += " telemetry.hosts=0.0.0.0"


def loopback(found: Json) -> None:
    found["spec"]["entrypoint"] += " telemetry.host=127.0.0.1"


def other_port(found: Json) -> None:
    found["spec"]["entrypoint"] += " telemetry.port=9110"


def no_such_config(found: Json) -> None:
    found["spec"]["entrypoint"] = found["spec"]["entrypoint"].replace("orbench", "market")


def no_such_module(found: Json) -> None:
    found["spec"]["entrypoint"] = found["spec"]["entrypoint"].replace("jobs.train", "jobs.tain")


def no_run_id(found: Json) -> None:
    found["spec"]["entrypoint"] = found["spec"]["entrypoint"].partition(" --run-id")[0]


def bad_run_id(found: Json) -> None:
    found["spec"]["entrypoint"] += "/.."


def chained(found: Json) -> None:
    found["spec"]["entrypoint"] += " ; echo done"


def url_storage(found: Json) -> None:
    found["spec"]["entrypoint"] += " run.storage=s3://bucket/runs"


def more_workers(found: Json) -> None:
    found["spec"]["entrypoint"] += " cluster.num_workers=9"


def gone_too_early(found: Json) -> None:
    found["spec"]["ttlSecondsAfterFinished"] = 60


def misspelt_mode(found: Json) -> None:
    found["spec"]["submissionMode"] = "Sidecar"


def impatient(found: Json) -> None:
    found["spec"]["entrypoint"] += " cluster.wait_s=0"


def never_shut_down(found: Json) -> None:
    found["spec"]["shutdownAfterJobFinishes"] = False


FAULTS: tuple[Callable[[Json], None], ...] = (
    unknown_setting, loopback, other_port, no_such_config, no_such_module, no_run_id, bad_run_id,
    chained, url_storage, more_workers, gone_too_early, misspelt_mode, never_shut_down,
    impatient,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_in_a_job_are_found(plant: Callable[[Json], None]):
    (job,) = of_kind(rendered("job"), "RayJob")
    plant(job)
    assert complaints(job)
