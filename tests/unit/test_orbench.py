"""Data that does not hold together: each defect is refused at its place, and nothing is left."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orbench import OrbenchFolder, refuses, run, write_orbench


@pytest.fixture
def data(tmp_path: Path) -> OrbenchFolder:
    return write_orbench(tmp_path / "data")


EDITS: list[tuple[Callable[[OrbenchFolder], object], str]] = [
    (lambda d: [e.update(id=0) for e in d.train[:2]], r"must be 1\.\.3; found 0.*nobody has 1"),
    (lambda d: [e.update(id=7) for e in d.train if e["id"] == 3], r"1\.\.3; found 7.*nobody has 3"),
    (
        lambda d: [e.update(id=e["id"] + 1) for e in d.train],
        r"found 4 \(first at train_annos\.json\[4\].*nobody has 1: number the persons",
    ),
    (lambda d: d.train[2].update(id=1), r"label 1 has directories \d+, \d+"),
    (lambda d: d.train[2].update(id=4), r"directory \d+ has labels 2, 4"),
    (lambda d: d.train[1].update(id="one"), r"train_annos\.json\[1\]: the person's label is 'one'"),
    (lambda d: d.train[1].update(id=True), "label is True"),
    (lambda d: d.train[1].update(id=1.0), "label is 1.0"),
    (lambda d: d.train[1].update(id=-1), "label is -1"),
    (lambda d: d.train[3].pop("caption"), r"train_annos\.json\[3\] lacks caption"),
    (lambda d: d.train.insert(2, "row"), r"train_annos\.json\[2\] lacks caption, file_path, id"),
    (lambda d: d.train[3].update(caption=""), r"\[3\]: the caption is empty"),
    (lambda d: d.train[3].update(caption=" \n"), r"\[3\]: the caption is empty"),
    (lambda d: d.train[3].update(caption=None), r"\[3\]: the caption is None"),
    (lambda d: d.train[3].update(caption="\ud800"), r"\[3\].*not valid Unicode"),
    (
        lambda d: d.train[4].update(caption="see 12.JPG"),
        r"\[4\]: the caption 'see 12.JPG' contains",
    ),
    (lambda d: d.train[0].update(split="val"), r"\[0\] says split 'val'"),
    (lambda d: d.train[0].update(file_path="vis/../../x.jpg"), r"path is 'vis/\.\./\.\./x\.jpg'"),
    (lambda d: d.train[0].update(file_path="vis/../x.jpg"), r"inside it"),
    (lambda d: d.train[0].update(file_path="/etc/passwd"), r"path is '/etc/passwd'"),
    (lambda d: d.train[0].update(file_path="/vis/a.jpg"), r"expected vis/<person>/<file>"),
    (lambda d: d.train[0].update(file_path="vis\\1\\x.jpg"), r"expected vis/<person>/<file>"),
    (lambda d: d.train[0].update(file_path="nir/1/x.jpg"), r"expected vis/<person>/<file>"),
    (lambda d: d.train[0].update(file_path=["vis"]), r"the path is \['vis'\]; expected text"),
    (lambda d: d.train.clear(), "holds an empty list"),
    (lambda d: d.test.pop("SK+TEXT"), r"unknown or missing: SK\+TEXT"),
    (lambda d: d.test.update({"NIR+VIS": []}), r"unknown or missing: NIR\+VIS"),
    (lambda d: d.test.pop("RGB_GALLERY"), "unknown or missing: RGB_GALLERY"),
    (lambda d: d.test.update(RGB_GALLERY=[]), r"\[RGB_GALLERY\] is empty"),
    (lambda d: d.test.update(NIR={}), r"\[NIR\] is a dict"),
    (
        lambda d: d.test["RGB_GALLERY"].append(d.test["RGB_GALLERY"][0]),
        r"\[4\].*list an image once",
    ),
    (lambda d: d.test["NIR+CP"][1].pop(), r"\[NIR\+CP\]\[1\] is .*the label, then NIR, CP"),
    (
        lambda d: d.test["NIR"][0].__setitem__(0, 5),
        r"listed as NIR of label 4, elsewhere as NIR of label 5",
    ),
    (lambda d: d.test["TEXT"][2].__setitem__(1, "sk/1/2.jpg"), r"\[TEXT\]\[2\]: the caption"),
    (lambda d: d.test["TEXT"][2].__setitem__(1, ""), r"\[TEXT\]\[2\]: the caption is empty"),
    (
        lambda d: d.test["NIR"][2].__setitem__(1, "a man in red"),
        r"\[NIR\]\[2\]: the path is 'a man",
    ),
    (lambda d: d.test["TEXT+NIR"][2].reverse(), r"\[TEXT\+NIR\]\[2\]: the person's label is"),
    (lambda d: d.test["NIR"][2].__setitem__(1, "nir/../x/a.jpg"), r"\[NIR\]\[2\]: the path"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_data_that_does_not_hold_together_is_refused_at_its_place(data, edit, message):
    edit(data)
    data.save()
    refuses(data, message)


def test_permuted_directory_names_are_no_fault(data):
    assert data.train_dirs != sorted(data.train_dirs)
    run(data)


def test_labels_may_be_spelled_as_text(data):
    for entry in data.train:
        entry["id"] = str(entry["id"])
    data.save()
    assert run(data).num_classes == 3


def test_test_labels_may_start_again_from_one(data):
    for rows in data.test.values():
        for row in rows:
            row[0] -= 3
    data.save()
    run(data)


def test_a_person_in_both_splits_is_refused(data):
    dir_id = data.train_dirs[1]
    path = data.images("vis", dir_id)[0].relative_to(data.root).as_posix()
    data.test["RGB_GALLERY"].append([9, path])
    data.save()
    refuses(data, f"1 persons are in both splits, for example directory {dir_id}")


@pytest.mark.parametrize("name", ["train_annos.json", "test_gallery_and_queries.json"])
def test_a_missing_or_broken_json_is_refused(data, name):
    (data.root / name).write_text("[{")
    refuses(data, f"{name} cannot be read as JSON")
    (data.root / name).write_text('"words"')
    refuses(data, f"{name} holds a str")
    (data.root / name).unlink()
    refuses(data, f"{name} is missing")


def test_a_folder_of_another_kind_is_refused(data):
    (data.root / "sk").rename(data.root / "sketch")
    refuses(data, "has no directory sk; expected an ORBench folder")
