"""What deploy/README.md tells to type names what is there, and leads where it says."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import service
from service.orchestration.entry import _read as read_words
from tests.deploy.kustomize import FOLDER, RUNNABLE, VARIANTS, Json, of_kind, rendered
from tests.deploy.pods import Pod, in_bytes, pods
from tests.deploy.test_compose import read
from tests.deploy.test_jobs import IMAGE, MACHINE_S, entry
from tests.deploy.test_kustomize import by_kubectl

TEXT = Path("deploy/README.md").read_text().split("# Runbook\n")[0]
KUBERNETES = TEXT.split("## On Kubernetes\n")[1].split("## With Docker Compose\n")[0]
FOR_OTHERS = {"cpu": 1.0, "memory": 5 * 2**30, "disk": 30 * 2**30}
"""What of the machine for the start is kept for Kubernetes itself, the operators and Grafana, and
of its disk for images."""


def test_every_folder_that_is_applied_is_one():
    applied = re.findall(r"apply -k deploy/kuberay/([\w-]+)", TEXT)
    assert applied
    assert set(applied) <= set(VARIANTS)
    cells = re.findall(r"^\| (`.*?`) \|", TEXT, re.M)
    told = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert told == {path.parent.name for path in FOLDER.glob("*/kustomization.yaml")}


def test_what_has_an_image_is_applied_from_a_folder_that_names_it():
    """The files themselves name a placeholder, which no cluster can fetch."""
    texts = [TEXT, *(path.read_text() for path in FOLDER.rglob("*") if path.is_file())]
    for name in re.findall(r"-k deploy/kuberay/([\w-]+)", "\n".join(texts)):
        assert name not in RUNNABLE
        assert not [pod for found in rendered(name) for pod in pods(found)]


def test_the_folders_that_the_reader_makes_hold_the_readers_image(tmp_path: Path):
    (script,) = re.findall(r"^ *for name in .*?^ *done$", TEXT, re.M | re.S)
    shutil.copytree(FOLDER, tmp_path / FOLDER)
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True, timeout=60)
    made = {path.name for path in (tmp_path / "my").iterdir()}
    assert set(re.findall(r"-k my/([\w-]+)", TEXT)) <= made
    for name in made:
        text = str(by_kubectl(tmp_path / "my" / name))
        assert f"REGISTRY/crossreid:{service.__version__}-cuda" in text
        assert "registry.example.org" not in text


def test_one_kind_is_watched_at_a_time():
    """kubectl refuses `get a,b --watch`."""
    assert re.findall(r"kubectl [^`\n]*--watch", TEXT)
    assert not re.findall(r"kubectl [^`\n]*get \w+,\w[^`\n]*(?:--watch|-w\b)", TEXT)


def test_the_versions_are_those_of_the_crds():
    schemas = Path("tests/schemas/README.md").read_text()
    (kuberay,) = re.findall(r"ray-project/kuberay.*\| ([\d.]+) \|", schemas)
    (operator,) = re.findall(r"prometheus-operator.*\| ([\d.]+) \|", schemas)
    assert f"kuberay-operator --version {kuberay} " in TEXT
    short, watching = (version.rpartition(".")[0] for version in (kuberay, operator))
    for text in (TEXT, Path("README.md").read_text()):
        assert set(re.findall(r"KubeRay \(?([\d.]+)\b", text)) == {short}
        assert set(re.findall(r"[Pp]rometheus[ -]operator ([\d.]+)\b", text)) == {watching}


def on_the_start_machine() -> dict[str, list[Pod]]:
    """The pods without a GPU that run at the same time, by variant."""
    return {
        name: [
            pod
            for found in rendered(name)
            for pod in pods(found)
            for _ in range(replicas(found) if pod.role == "worker" else 1)
            if "nvidia.com/gpu" not in pod.main["resources"]["limits"]
        ]
        for name in RUNNABLE
    }


def replicas(found: Json) -> int:
    """Of the only group of workers."""
    spec = found["spec"].get("rayClusterSpec", found["spec"])
    return spec["workerGroupSpecs"][0]["replicas"]


@pytest.mark.parametrize("name", RUNNABLE)
def test_what_wants_no_gpu_fits_the_machine_that_is_bought(name: str):
    ((cpus, memory, disk),) = re.findall(
        r"one machine with (\d+) CPUs, (\d+) GB of memory and (\d+) GB of disk", TEXT
    )
    found = on_the_start_machine()[name]
    assert found
    limits = [pod.main["resources"]["limits"] for pod in found]
    assert sum(map(in_cpus, limits)) <= int(cpus) - FOR_OTHERS["cpu"]
    asked = sum(in_bytes(limit["memory"]) for limit in limits)
    assert asked <= int(memory) * 1e9 - FOR_OTHERS["memory"]
    asked = sum(in_bytes(limit["ephemeral-storage"]) for limit in limits)
    assert asked <= int(disk) * 1e9 - FOR_OTHERS["disk"]


def in_cpus(limits: dict[str, str]) -> float:
    text = limits["cpu"]
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def test_the_gpu_machine_that_is_told_holds_its_pod():
    (job,) = of_kind(rendered("job"), "RayJob")
    limits = next(pod for pod in pods(job) if pod.role == "worker").main["resources"]["limits"]
    memory, disk = (limits[key].removesuffix("Gi") for key in ("memory", "ephemeral-storage"))
    asked = f"{limits['cpu']} CPUs, {memory} GiB of memory, {limits['nvidia.com/gpu']} GPUs"
    assert f"asks for {asked} and {disk} GiB of disk" in TEXT
    ((cpus, told, room),) = re.findall(
        r"needs about (\d+) CPUs, (\d+) GB and a disk of (\d+) GB", TEXT
    )
    assert int(cpus) > in_cpus(limits)
    assert int(told) * 1e9 > in_bytes(limits["memory"])
    assert int(room) * 1e9 > in_bytes(limits["ephemeral-storage"]) + FOR_OTHERS["disk"]


def test_every_command_for_pods_names_the_namespace():
    for line in re.findall(r"kubectl [\w-]+ [^`\n]+", KUBERNETES):
        is_kustomized = re.search(r" -k\b|kubectl kustomize", line)
        assert is_kustomized or re.search(r" -n (crossreid|monitoring) ", line), line


def test_the_reader_is_told_to_stop_a_run_before_the_machines_go():
    stop = r"crossreid stop RUN --address http://127\.0\.0\.1:8265"
    assert re.search(rf"{stop}\nkubectl delete -k my/job\n", KUBERNETES)
    assert re.search(rf"{stop}[^\n]*compose\.yaml down", TEXT)


def test_every_file_that_is_named_is_there():
    named = re.findall(r"(?<![\w/-])(?:deploy|docker|kuberay|alertmanager)/[\w/.-]*\w\.\w+", TEXT)
    assert len(named) > 5
    for name in named:
        assert any((Path(root) / name).is_file() for root in (".", "deploy")), name


@pytest.mark.parametrize(
    "words", re.findall(r"(?:-m jobs\.train|crossreid submit train) (.*?)(?:`|$)", TEXT, re.M)
)
def test_every_training_that_is_submitted_is_accepted(words: str):
    config, run_id = read_words(words.replace(IMAGE, "").split())
    assert config.telemetry.host == "0.0.0.0"
    assert config.run.storage == "/data/runs"
    assert run_id
    if config.cluster.gpus_per_worker:
        # The long-lived cluster has no machine with GPUs while nothing runs.
        assert config.cluster.wait_s >= MACHINE_S


def test_a_training_is_submitted_in_each_way():
    for way in ("-m jobs.train", "crossreid submit train"):
        assert f"{way} " in KUBERNETES


def test_the_first_run_is_the_same_in_both_places():
    (job,) = of_kind(rendered("first"), "RayJob")
    words = " ".join(job["spec"]["entrypoint"].split())
    assert words in TEXT
    assert f"run `{entry(job).run_id}`" in TEXT
    assert f"job/{job['metadata']['name']}" in TEXT


def test_ports_secrets_and_versions_are_those_of_the_files():
    stack = read()
    for said in stack["services"].values():
        for port in said.get("ports", ()):
            assert port.split(":")[1] in TEXT
    for secret in stack["secrets"].values():
        assert f"> docker/{secret['file'].removeprefix('./')}\n" in TEXT
    assert set(re.findall(r"crossreid:([\d.]+)-", TEXT)) == {service.__version__}
    assert f"Prometheus is {stack['services']['prometheus']['image'].split(':v')[1][:4]}" in TEXT


def test_the_example_of_the_cost_adds_up():
    prices = [0.40, round(500 * 0.30 / 730, 2), 0.10]
    first = round(sum(prices), 2)
    assert f"= {first}; " in TEXT
    assert f"{first} + 25 = {first + 25}" in TEXT
    (claim,) = of_kind(rendered("base"), "PersistentVolumeClaim")
    assert claim["spec"]["resources"]["requests"]["storage"] == "500Gi"
