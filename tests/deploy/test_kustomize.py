"""Our rendering of the kustomizations is kubectl's."""

import shutil
import subprocess

import pytest
import yaml

from tests.deploy.kustomize import FOLDER, VARIANTS, Json, rendered


def sort(objects: list[Json]) -> list[Json]:
    return sorted(objects, key=lambda found: (found["kind"], found["metadata"]["name"]))


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("variant", VARIANTS)
def test_kubectl_renders_the_same_objects(variant: str):
    said = subprocess.run(
        ["kubectl", "kustomize", FOLDER / variant], capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 0, said.stderr
    assert sort(list(yaml.safe_load_all(said.stdout))) == sort(rendered(variant))


def test_every_folder_with_a_kustomization_is_a_variant_or_part_of_one():
    folders = {path.parent.name for path in FOLDER.glob("*/kustomization.yaml")}
    assert folders == {*VARIANTS, "base", "s3"}


def test_every_manifest_belongs_to_a_kustomization():
    for path in FOLDER.glob("*/*.yaml"):
        if path.name != "kustomization.yaml":
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path
