"""Our rendering of the kustomizations is kubectl's."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.kustomize import FOLDER, RUNNABLE, VARIANTS, Json, named, of_kind, rendered

KUBECTL = Path(sys.executable).with_name("kubectl")


def by_kubectl(folder: Path) -> list[Json]:
    said = subprocess.run(
        [KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    return list(yaml.safe_load_all(said.stdout))


def sort(objects: list[Json]) -> list[Json]:
    return sorted(objects, key=lambda found: (found["kind"], found["metadata"]["name"]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_kubectl_renders_the_same_objects(variant: str):
    assert sort(by_kubectl(FOLDER / variant)) == sort(rendered(variant))


def test_every_folder_with_a_kustomization_is_a_variant_or_part_of_one():
    folders = {path.parent.name for path in FOLDER.glob("*/kustomization.yaml")}
    assert folders == {*VARIANTS, "s3"}


@pytest.mark.parametrize("variant", [*RUNNABLE, "monitoring"])
def test_deleting_what_was_applied_takes_no_data(variant: str):
    """`kubectl delete -k` takes whatever `apply -k` made: a namespace with all that is in it."""
    kinds = {found["kind"] for found in rendered(variant)}
    assert kinds.isdisjoint({"Namespace", "PersistentVolumeClaim", "PersistentVolume"})
    assert kinds


def test_the_base_is_in_one_folder_only():
    base = {named(found) for found in rendered("base")}
    for variant in (*RUNNABLE, "monitoring"):
        assert base.isdisjoint(map(named, rendered(variant)))
    assert len(of_kind(rendered("base"), "PersistentVolumeClaim")) == 1


def test_every_manifest_belongs_to_a_kustomization():
    for path in FOLDER.glob("*/*.yaml"):
        if path.name != "kustomization.yaml":
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path
