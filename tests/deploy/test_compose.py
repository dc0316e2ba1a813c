"""The Compose files: by Compose's own schema, and by what must hold for this stack."""

import copy
import importlib.resources
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

import service
from tests.deploy.kustomize import Json
from tests.deploy.pods import OF_A_STOPPED_JOB
from tests.deploy.secrets import secrets

FOLDER = Path("docker")
GPU = "compose.gpu.yaml"
OF_RAY = ("head", "worker")
PUBLISHED = {"head": 8265, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000}
_PINNED = re.compile(r"(?:[\w.-]+/)*[\w.-]+:v?\d+\.\d+\.\d+[\w.-]*")
_SIZES = {"m": 2**20, "g": 2**30}


def interpolated(text: str) -> str:
    """`text` with the default of every variable."""
    return re.sub(r"\$\{\w+(?::-([^}]*))?\}", lambda found: found[1] or "", text)


def read(name: str = "compose.yaml") -> Json:
    return yaml.safe_load(interpolated((FOLDER / name).read_text()))


def with_gpu() -> Json:
    """Both files, merged as Compose does: what the second says replaces or adds."""
    base = read()
    for name, said in read(GPU)["services"].items():
        base["services"][name].update(said)
    return base


def of_schema(stack: Json) -> list[str]:
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    content = json.loads((folder / "compose-spec.json").read_text("utf-8"))
    checker = Draft202012Validator(content)
    return [error.message for error in checker.iter_errors(stack)]


def complaints(stack: Json) -> list[str]:
    """What is wrong with a stack; empty when nothing is."""
    wrong = of_schema(stack)
    for name, said in stack["services"].items():
        wrong += [f"{name}: {words}" for words in of_service(name, said)]
        wrong += [f"{name}: {words}" for words in of_volumes(stack, said)]
    return [*wrong, *of_names(stack), *of_scrape(stack)]


def of_service(name: str, said: Json) -> Iterator[str]:
    if not _PINNED.fullmatch(said["image"]):
        yield f"the image {said['image']} has no version"
    if said.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in said["security_opt"]:
        yield "keeps rights"
    if said.get("privileged") or said.get("network_mode") or said.get("pid"):
        yield "leaves its container"
    if "mem_limit" not in said or "cpus" not in said:
        yield "has no limits"
    if not said.get("healthcheck", {}).get("test"):
        yield "tells nobody whether it is well"
    wanted = [f"127.0.0.1:{PUBLISHED[name]}:{PUBLISHED[name]}"] if name in PUBLISHED else []
    if said.get("ports", []) != wanted:
        yield f"publishes {said.get('ports')}"
    for key, value in said.get("environment", {}).items():
        if re.search("TOKEN|PASSWORD|SECRET", key) and not str(value).startswith("/run/secrets/"):
            yield f"has {key} as a literal"
    if name in OF_RAY:
        yield from of_ray(said)


def of_ray(said: Json) -> Iterator[str]:
    if not said["image"].startswith(f"crossreid:{service.__version__}-"):
        yield "is not this version"
    if not said.get("read_only"):
        yield "may write to the image"
    variables = said["environment"]
    if len(said["networks"]) != 1:
        yield "has several addresses, of which Ray tells one"
    for key, value in OF_A_STOPPED_JOB.items():
        if variables.get(key) != value:
            yield f"has {key} {variables.get(key)}, expected {value}"
    if variables.get("RAY_AUTH_MODE") != "token":
        yield "does not ask for the token"
    if variables.get("RAY_AUTH_TOKEN_PATH") != "/run/secrets/ray_token" or said["secrets"] != [
        "ray_token"
    ]:
        yield "has no token"
    (store,) = (w for w in said["command"] if w.startswith("--object-store-memory="))
    number, unit = re.fullmatch(r"(\d+)([mg])", said["shm_size"]).groups()  # pyright: ignore
    if int(store.partition("=")[2]) > int(number) * _SIZES[unit]:
        yield "has an object store larger than /dev/shm"


def of_volumes(stack: Json, said: Json) -> Iterator[str]:
    for volume in said.get("volumes", ()):
        source, target, *mode = volume.split(":")
        if not source.startswith("."):
            if source not in stack["volumes"]:
                yield f"{source} is no volume"
        elif not (FOLDER / source).exists():
            yield f"{source} is not there"
        elif mode != ["ro"]:
            yield f"may write to {target}, which is ours"


def of_names(stack: Json) -> Iterator[str]:
    for name, said in stack["services"].items():
        for network in said.get("networks", ()):
            if network not in stack["networks"]:
                yield f"{name}: {network} is no network"
        for other in said.get("depends_on", {}):
            if other not in stack["services"]:
                yield f"{name}: {other} is no service"
        for secret in said.get("secrets", ()):
            if secret not in stack["secrets"]:
                yield f"{name}: {secret} is no secret"
    ignored = Path(".gitignore").read_text().split()
    for name, said in stack["secrets"].items():
        if (
            not str(FOLDER / said["file"]).startswith("docker/secrets/")
            or "docker/secrets/" not in ignored
        ):
            yield f"{name} could be committed"


def of_scrape(stack: Json) -> Iterator[str]:
    """Every address in the watchers' settings is a service that shares a network with them."""
    scrape = read("watch/prometheus.yml")
    source = read("watch/datasource.yml")["datasources"][0]["url"]
    targets = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    alerting = scrape["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    ways = [("prometheus", way) for way in (*targets, *alerting)] + [("grafana", source)]
    for asker, way in ways:
        host = way.removeprefix("http://").partition(":")[0]
        asked = stack["services"].get(host, {})
        if not set(asked.get("networks", ())) & set(stack["services"][asker]["networks"]):
            yield f"{asker} does not reach {way}"


@pytest.mark.parametrize("stack", [read, with_gpu])
def test_the_stack_is_as_it_must_be(stack: Callable[[], Json]):
    assert complaints(stack()) == []


def test_the_gpu_file_alone_fits_the_schema():
    assert of_schema(read(GPU)) == []


def test_the_services_are_those_of_the_readme():
    assert set(read()["services"]) == {*OF_RAY, "prometheus", "alertmanager", "grafana"}


def test_the_head_does_not_train_and_the_first_run_fits_the_workers():
    services = read()["services"]
    assert {"--head", "--num-cpus=0", "--num-gpus=0"} <= set(services["head"]["command"])
    (cpus,) = (w for w in services["worker"]["command"] if w.startswith("--num-cpus="))
    demo = yaml.safe_load(Path("configs/demo.yaml").read_text())
    assert int(cpus.partition("=")[2]) >= demo["cluster"]["num_workers"]
    assert services["worker"]["cpus"] >= demo["cluster"]["num_workers"]


def test_no_secret_is_written_down():
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            assert secrets(path.read_text()) == [], path


def test_dashboards_come_to_where_the_provider_looks():
    provider = yaml.safe_load(
        Path("deploy/grafana/provisioning/dashboards/crossreid.yml").read_text()
    )["providers"][0]
    mounted = {v.split(":")[0]: v.split(":")[1] for v in read()["services"]["grafana"]["volumes"]}
    assert mounted["../deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounted["../deploy/grafana/provisioning/dashboards"].endswith("/provisioning/dashboards")
    assert mounted["./watch/datasource.yml"].endswith("/provisioning/datasources/crossreid.yml")


def test_the_rules_are_mounted_where_the_settings_look():
    mounted = {
        v.split(":")[0]: v.split(":")[1] for v in read()["services"]["prometheus"]["volumes"]
    }
    settings = Path(mounted["./watch/prometheus.yml"])
    (rules,) = read("watch/prometheus.yml")["rule_files"]
    assert str(settings.parent / Path(rules).parent) == mounted["../deploy/prometheus/rules"]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_its_settings():
    words = ["promtool", "check", "config", "--syntax-only", FOLDER / "watch/prometheus.yml"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr


def misspelt_key(stack: Json) -> None:
    stack["services"]["head"]["shm_sizes"] = "1g"


def open_port(stack: Json) -> None:
    stack["services"]["grafana"]["ports"] = ["3000:3000"]


def more_ports(stack: Json) -> None:
    stack["services"]["head"]["ports"].append("127.0.0.1:6379:6379")


def latest(stack: Json) -> None:
    stack["services"]["prometheus"]["image"] = "prom/prometheus:latest"


def token(stack: Json) -> None:
    stack["services"]["worker"]["environment"] = {"RAY_AUTH_TOKEN": "abc", "RAY_AUTH_MODE": "token"}


def no_auth(stack: Json) -> None:
    stack["services"]["head"]["environment"] = {
        **stack["services"]["head"]["environment"], "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip


def small_shm(stack: Json) -> None:
    stack["services"]["worker"]["shm_size"] = "64m"


def lost_file(stack: Json) -> None:
    stack["services"]["prometheus"]["volumes"][1] = (
        "../deploy/prometheus/rule:/etc/prometheus/rules:ro"
    )


def writable(stack: Json) -> None:
    stack["services"]["grafana"]["volumes"][2] = stack["services"]["grafana"]["volumes"][2][:-3]


def other_name(stack: Json) -> None:
    stack["services"]["controller"] = stack["services"].pop("head")


def apart(stack: Json) -> None:
    stack["services"]["prometheus"]["networks"] = ["watch"]


def two_addresses(stack: Json) -> None:
    stack["services"]["head"]["networks"] = ["ray", "watch"]


def killed_at_once(stack: Json) -> None:
    variables = dict(stack["services"]["head"]["environment"])
    del variables["RAY_JOB_STOP_WAIT_TIME_S"]
    stack["services"]["head"]["environment"] = variables


def committed(stack: Json) -> None:
    stack["secrets"]["ray_token"]["file"] = "./ray_token"


def privileged(stack: Json) -> None:
    stack["services"]["worker"]["privileged"] = True


def unhealthy(stack: Json) -> None:
    del stack["services"]["alertmanager"]["healthcheck"]


def unlimited(stack: Json) -> None:
    del stack["services"]["grafana"]["mem_limit"]


FAULTS: tuple[Callable[[Json], None], ...] = (
    misspelt_key, open_port, more_ports, latest, token, no_auth, small_shm, lost_file, writable,
    other_name, apart, two_addresses, killed_at_once, committed, privileged, unhealthy, unlimited,
)  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_planted_faults_in_the_stack_are_found(plant: Callable[[Any], None]):
    stack = copy.deepcopy(read())
    plant(stack)
    assert complaints(stack)
