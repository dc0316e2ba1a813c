import hashlib
import itertools
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.data import synthetic
from service.data.figure import VIEWS, Material, Pose, paint
from service.data.orbench import read_folder
from service.data.people import CHOICES, COLOURS, Tuning, draw_people
from service.data.sheet import contact_sheet
from service.data.synthetic import SynthSettings, synthesize
from service.errors import ConfigError, DataError
from service.modality import IMAGE_MODALITIES, Modality

SMALL = SynthSettings(people=12, images_per_person=11, image_size=(48, 24), seed=3)

# The keys of the official test file, in its order.
OFFICIAL_KEYS = [
    *("NIR", "CP", "SK", "TEXT"),
    *("NIR+CP", "CP+NIR", "NIR+SK", "SK+NIR", "NIR+TEXT", "TEXT+NIR"),
    *("CP+SK", "SK+CP", "CP+TEXT", "TEXT+CP", "SK+TEXT", "TEXT+SK"),
    *("NIR+CP+SK", "CP+NIR+SK", "SK+NIR+CP", "NIR+CP+TEXT", "CP+NIR+TEXT", "TEXT+NIR+CP"),
    *("NIR+SK+TEXT", "SK+NIR+TEXT", "TEXT+NIR+SK", "CP+SK+TEXT", "SK+CP+TEXT", "TEXT+CP+SK"),
    *("NIR+CP+SK+TEXT", "CP+NIR+SK+TEXT", "SK+NIR+CP+TEXT", "TEXT+NIR+CP+SK"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "orbench"
    synthesize(out, SMALL, workers=1)
    return out


@pytest.fixture(scope="module")
def annotations(folder):
    return json.loads((folder / "train_annos.json").read_text())


@pytest.fixture(scope="module")
def protocol(folder):
    return json.loads((folder / "test_gallery_and_queries.json").read_text())


@pytest.fixture(scope="module")
def truth(folder):
    return json.loads((folder / "attributes.json").read_text())


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_settings_give_equal_bytes_with_any_number_of_workers(folder, tmp_path):
    synthesize(tmp_path / "again", SMALL, workers=3)
    assert digests(tmp_path / "again") == digests(folder)


def test_another_seed_gives_other_images(folder, tmp_path):
    synthesize(tmp_path / "other", replace(SMALL, seed=4))
    ours, theirs = set(digests(folder).values()), set(digests(tmp_path / "other").values())
    assert not ours & theirs


def test_query_keys_are_the_official_ones_in_the_official_order(protocol):
    assert list(protocol) == ["RGB_GALLERY", *OFFICIAL_KEYS]


def test_every_anchor_instance_makes_one_query(protocol):
    num_test = SMALL.num_test
    per_person = {m.name: n for m, n in SMALL.num_images.items()} | {"TEXT": 5}
    assert SMALL.num_images[Modality.VIS] == 5
    for key in OFFICIAL_KEYS:
        anchor = key.split("+")[0]
        anchors = [row[1] for row in protocol[key]]
        assert len(anchors) == num_test * per_person[anchor]
        assert anchors == [row[1] for row in protocol[anchor]]
    assert len(protocol["RGB_GALLERY"]) == len(protocol["TEXT"]) == num_test * 5


def test_query_members_are_of_the_labels_person_and_the_keys_modality(folder, protocol, truth):
    dir_id = {p["label"]: p["dir_id"] for p in truth["people"]}
    captions = {}
    for label, text in protocol["TEXT"]:
        captions.setdefault(label, set()).add(text)
    for key, rows in protocol.items():
        names = ["VIS"] if key == "RGB_GALLERY" else key.split("+")
        for label, *members in rows:
            assert len(members) == len(names)
            for name, member in zip(names, members, strict=True):
                if name == "TEXT":
                    assert member in captions[label]
                else:
                    assert member.startswith(f"{name.lower()}/{dir_id[label]}/")
                    assert (folder / member).is_file()


def test_companions_of_an_anchor_vary(protocol):
    assert len({row[2] for row in protocol["TEXT+NIR"]}) > SMALL.num_test


def test_annotations_hold_one_caption_for_each_train_photo(folder, annotations, truth):
    train = {p["dir_id"]: p["label"] for p in truth["people"] if p["split"] == "train"}
    photos = {
        f"vis/{path.parent.name}/{path.name}"
        for path in (folder / "vis").rglob("*.jpg")
        if path.parent.name in train
    }
    assert {a["file_path"] for a in annotations} == photos
    assert len(annotations) == len(photos)
    for a in annotations:
        assert set(a) == {"id", "file_path", "caption", "split"}
        assert a["split"] == "train"
        assert a["id"] == train[Path(a["file_path"]).parent.name]


def test_train_labels_are_contiguous_from_1_and_test_labels_continue(annotations, protocol):
    assert {a["id"] for a in annotations} == set(range(1, SMALL.num_train + 1))
    test = {label for label, _ in protocol["RGB_GALLERY"]}
    assert test == set(range(SMALL.num_train + 1, SMALL.people + 1))


@pytest.mark.parametrize("seed", range(20))
def test_directory_names_are_a_permutation_in_which_nobody_has_the_label(seed):
    subjects = synthetic._cast(replace(SMALL, seed=seed))
    dir_ids = [int(s.dir_id) for s in subjects]
    assert sorted(dir_ids) == list(range(1, SMALL.people + 1))
    assert all(s.label != int(s.dir_id) for s in subjects)


def test_captions_are_words_and_never_name_a_file(annotations, protocol):
    captions = [a["caption"] for a in annotations] + [row[1] for row in protocol["TEXT"]]
    for text in captions:
        assert re.fullmatch(r"[A-Za-z ,.\-]+\.", text)
        assert ".jpg" not in text
        assert not re.search(r"\ba orange\b|  | ,|a a ", text)
    assert len(set(captions)) > len(captions) / 2


def test_file_names_follow_orbench(folder):
    stem = r"(\d{4})_(sysu|llcm)_\d{4}"
    view = "|".join(VIEWS)
    patterns = {
        "vis": rf"{stem}_cam[1245]_\d{{4}}_vis\.jpg",
        "nir": rf"{stem}_cam[36]_\d{{4}}_nir\.jpg",
        "cp": rf"{stem}_({view})_\d_colorpencil\.jpg",
        "sk": rf"{stem}_({view})_\d_sketch\.jpg",
    }
    for modality in IMAGE_MODALITIES:
        people = sorted((folder / modality.label).iterdir())
        assert len(people) == SMALL.people
        for person in people:
            names = sorted(path.name for path in person.iterdir())
            assert len(names) == SMALL.num_images[modality]
            for name in names:
                match = re.fullmatch(patterns[modality.label], name)
                assert match
                assert match[1] == person.name


def test_images_are_rgb_jpegs_of_the_asked_size_and_colourless_where_they_must_be(folder):
    for modality in IMAGE_MODALITIES:
        for path in itertools.islice(sorted((folder / modality.label).rglob("*.jpg")), 6):
            assert simplejpeg.decode_jpeg_header(path.read_bytes())[:3] == (48, 24, "YCbCr")
            image = simplejpeg.decode_jpeg(path.read_bytes()).astype(int)
            spread = np.ptp(image, axis=2).max()
            assert (spread <= 3) == (modality in (Modality.NIR, Modality.SK))
            assert image.std() > 5


def test_the_folder_is_one_that_ingest_reads(folder):
    read = read_folder(folder)
    assert len(read.classes) == SMALL.num_train
    assert [q.key for q in read.queries] == OFFICIAL_KEYS
    assert read.ignored_files == 0


def test_truth_gives_every_label_its_attributes_and_the_settings(truth):
    assert truth["settings"]["seed"] == SMALL.seed
    assert truth["settings"]["tuning"] == asdict(SMALL.tuning)
    assert [p["label"] for p in truth["people"]] == list(range(1, SMALL.people + 1))
    assert {p["split"] for p in truth["people"]} == {"train", "test"}
    for p in truth["people"]:
        assert set(p["person"]) == set(CHOICES)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_no_two_people_look_the_same(difficulty):
    rng = np.random.default_rng(0)
    train = draw_people(300, difficulty, Tuning(), rng)
    test = draw_people(150, difficulty, Tuning(), rng, others=train)
    assert len({p.look for p in train + test}) == 450


def test_difficulty_makes_neighbours_alike():
    def shared(difficulty: float) -> float:
        people = draw_people(200, difficulty, Tuning(), np.random.default_rng(1))
        pairs = zip(people[::2], people[1::2], strict=True)
        equal = [np.mean([x == y for x, y in zip(a.look, b.look, strict=True)]) for a, b in pairs]
        return float(np.mean(equal))

    assert shared(0.0) < shared(0.5) < shared(1.0)
    assert shared(1.0) > 0.75


def test_people_who_run_out_of_looks_are_refused():
    with pytest.raises(ConfigError, match="found no new look"):
        draw_people(50, 0.0, replace(Tuning(), dyes=2, kinds=1), np.random.default_rng(0))


def test_absent_things_have_no_colour_and_patterns_show():
    for p in draw_people(300, 0.5, replace(Tuning(), dyes=12, kinds=9), np.random.default_rng(2)):
        assert (p.hat == "none") == (p.hat_colour == "")
        assert (p.bag == "none") == (p.bag_colour == "")
        assert (p.pattern == "plain" and p.upper != "jacket") == (p.second_colour == "")
        if p.second_colour:
            assert COLOURS[p.second_colour].tone != COLOURS[p.upper_colour].tone


@pytest.mark.parametrize("view", VIEWS)
def test_every_kind_of_garment_hat_and_bag_is_drawn_in_every_view(view):
    pose = Pose(view, False, (0.0, 0.0), 1.0, (0.1, 0.1), 0.02, 0.0)
    base = draw_people(1, 0.0, Tuning(), np.random.default_rng(0))[0]
    seen = {}
    for name in ("hat", "upper", "pattern", "lower", "shoes", "bag", "hair", "build"):
        plain = replace(base, hat="none", bag="none", pattern="plain", upper="tshirt")
        for kind in dict.fromkeys(CHOICES[name]):
            parts = paint(replace(plain, **{name: kind}), pose, (96, 48))
            assert parts.part.shape == parts.material.shape == (192, 96)
            assert (parts.material > 0).mean() > 0.15
            seen[name, kind] = parts.material.tobytes()
        kinds = [value for (of, _), value in seen.items() if of == name]
        assert len(set(kinds)) == len(kinds), name
    bag = paint(replace(base, bag="backpack"), pose, (96, 48)).material
    assert (bag == Material.BAG).any()


def test_a_sketch_is_of_the_pencil_drawing_with_the_same_number(folder):
    for drawing in itertools.islice(sorted((folder / "cp").rglob("*.jpg")), 8):
        sketch = str(drawing).replace("/cp/", "/sk/").replace("colorpencil", "sketch")
        ours = simplejpeg.decode_jpeg(drawing.read_bytes()).min(axis=2) < 150
        theirs = simplejpeg.decode_jpeg(Path(sketch).read_bytes()).min(axis=2) < 245
        assert (ours & theirs).sum() > 0.9 * ours.sum()


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        synthesize(tmp_path / "mine", SMALL)
    assert digests(tmp_path).keys() == {"mine/note.txt"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    tiny = SynthSettings(people=4, test_share=0.5, images_per_person=5, image_size=(32, 32))
    summary = synthesize(tmp_path / "empty", tiny)
    assert summary.num_images == {"vis": 8, "nir": 4, "cp": 4, "sk": 4}
    assert summary.num_gallery == 4
    assert summary.num_queries == 32 * 2 + 8 * 2
    sizes = [path.stat().st_size for path in (tmp_path / "empty").rglob("*.jpg")]
    assert summary.num_bytes == sum(sizes)


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    calls = itertools.count()

    def full_disk(path, value):
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        path.write_text("[]")

    monkeypatch.setattr(synthetic, "_write_json", full_disk)
    with pytest.raises(DataError, match="No space left"):
        synthesize(tmp_path / "out", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("people", 3),
        ("people", 10_000),
        ("images_per_person", 4),
        ("image_size", (96, 8)),
        ("seed", -1),
        ("difficulty", 1.1),
        ("difficulty", float("nan")),
        ("quality", 0),
        ("test_share", 0.0),
        ("test_share", 0.95),
        ("test_share", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        replace(SMALL, **{name: value})


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_contact_sheet_has_one_row_a_person(folder, tmp_path, split):
    out = contact_sheet(folder, tmp_path / "deep" / "sheet.png", people=3, split=split)
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height == 3 * 198
        assert sheet.width > 1000


def test_a_contact_sheet_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train_annos\.json"):
        contact_sheet(tmp_path, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_of_an_unknown_split_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="val"):
        contact_sheet(folder, tmp_path / "sheet.png", split="val")
