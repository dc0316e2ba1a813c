"""What deploy/README.md tells to type names what is there."""

import re
from pathlib import Path

import pytest

import service
from service.orchestration.entry import _read as read_words
from tests.deploy.kustomize import FOLDER, VARIANTS, of_kind, rendered
from tests.deploy.test_compose import read
from tests.deploy.test_jobs import IMAGE, entry

TEXT = Path("deploy/README.md").read_text().split("# Runbook\n")[0]


def test_every_folder_that_is_applied_is_one():
    applied = re.findall(r"apply -k deploy/kuberay/([\w-]+)", TEXT)
    assert applied
    assert set(applied) <= set(VARIANTS)
    cells = re.findall(r"^\| (`.*?`) \|", TEXT, re.M)
    told = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert told == {path.parent.name for path in FOLDER.glob("*/kustomization.yaml")}


def test_every_file_that_is_named_is_there():
    named = re.findall(r"(?<![\w/-])(?:deploy|docker|kuberay|alertmanager)/[\w/.-]*\w\.\w+", TEXT)
    assert len(named) > 5
    for name in named:
        assert any((Path(root) / name).is_file() for root in (".", "deploy")), name


@pytest.mark.parametrize("words", re.findall(r"-m jobs\.train (.*?)$", TEXT, re.M))
def test_every_training_that_is_submitted_is_accepted(words: str):
    config, run_id = read_words(words.replace(IMAGE, "").split())
    assert config.telemetry.host == "0.0.0.0"
    assert config.run.storage == "/data/runs"
    assert run_id


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
    (claim,) = of_kind(rendered("job"), "PersistentVolumeClaim")
    assert claim["spec"]["resources"]["requests"]["storage"] == "500Gi"
