"""The doctor's commands as people type them, on sound and on broken data. Ray is not started."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service import cli
from service.config import Config
from service.data.index import IdentityIndex
from service.data.records import Records
from service.data.sampler import PKPlan, PlanBatch
from service.data.shards import Record
from service.doctor import sampler as sampler_module
from service.doctor.subset import choose, written
from service.errors import ExitCode
from service.modality import Modality
from tests.broken import as_record, broken_copy
from tests.small import small_config

Change = Callable[[int, Record], Record | None]


@pytest.fixture
def config(records: Path, tmp_path: Path) -> str:
    return written_config(tmp_path, small_config(records))


def written_config(folder: Path, config: Config) -> str:
    file = folder / "small.yaml"
    file.write_text(config.to_yaml())
    return str(file)


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.main(["doctor", *words])
    out, err = capsys.readouterr()
    return code, out, err


def checks(out: str) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(out)["checks"]}


def causes(out: str) -> dict[str, str | None]:
    """Failed checks and what they are called."""
    return {n: c["cause"] for n, c in checks(out).items() if c["status"] == "fail"}


# -- data and sampler ------------------------------------------------------------------------------


def test_sound_data_is_told_with_its_numbers(records: Path, config: str, capsys: Any):
    code, out, _ = run(capsys, "data", "--json", str(records))
    assert code == ExitCode.OK
    assert {check["status"] for check in checks(out).values()} == {"ok"}
    train = Records.open(str(records), "train")
    (table,) = json.loads(out)["tables"]
    assert [row[-1] for row in table["rows"] if row[0] == "train"] == [str(train.num_rows)]
    code, out, _ = run(capsys, "data", "--json", config, "model.backbone.image_size=[64, 32]")
    assert (code, list(causes(out))) == (ExitCode.NO_GO, ["image size"])


def test_the_same_text_goes_to_a_file(records: Path, capsys: Any, tmp_path: Path):
    for extra in ([], ["--json"]):
        file = tmp_path / "told" / "out.txt"
        code, out, _ = run(capsys, "data", str(records), "--output", str(file), *extra)
        assert (code, file.read_text()) == (ExitCode.OK, out)
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "data", str(records), "--output", str(tmp_path / "file" / "x"))
    assert code == ExitCode.USER_ERROR
    assert "--output" in err


def test_the_sheet_shows_each_person_in_every_modality(records: Path, capsys: Any, tmp_path: Path):
    file = tmp_path / "sheet.png"
    code, out, _ = run(capsys, "data", str(records), "--sheet", str(file), "--people", "3")
    assert code == ExitCode.OK
    assert str(file) in out
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    # The head is white; below it stand three rows with four pictures each.
    assert (pixels.std(axis=(1, 2)) > 1).sum() > 3 * 150
    code, _, err = run(capsys, "data", str(records), "--sheet", "/proc/none/sheet.png")
    assert (code, "cannot write the sheet" in err) == (ExitCode.USER_ERROR, True)


def shuffled(row: int, record: Record) -> Record:
    return replace(record, class_index=(record.class_index + row % 2) % 16)


def gapped(row: int, record: Record) -> Record | None:
    return None if record.class_index == 3 else record


def out_of_range(row: int, record: Record) -> Record:
    return replace(record, class_index=16) if row == 5 else record


def torn(row: int, record: Record) -> Record:
    return replace(record, payload=record.payload[:200]) if row % 7 == 0 else record


def without_others(row: int, record: Record) -> Record | None:
    lonely = record.class_index >= 8 and record.modality is not Modality.VIS
    return None if lonely else record


@pytest.mark.parametrize(
    ("change", "name", "cause"),
    [
        (shuffled, "names belong together", "labels_shuffled"),
        (gapped, "class numbers without gaps", "labels_gapped"),
        (gapped, "rows as counted", None),
        (out_of_range, "class numbers in range", "labels_out_of_range"),
        (torn, "train images can be read", None),
        (without_others, "people who can pair", "sampler_not_pairing"),
    ],
)
def test_broken_data_is_named(
    records: Path, tmp_path: Path, capsys: Any, change: Change, name: str, cause: str | None
):
    broken = broken_copy(records, tmp_path / "broken", change)
    code, out, _ = run(capsys, "data", "--json", str(broken))
    assert code == ExitCode.NO_GO
    assert causes(out)[name] == cause


def test_a_lost_test_split_is_a_failed_check(records: Path, tmp_path: Path, capsys: Any):
    broken = broken_copy(records, tmp_path / "broken", lambda row, record: record)
    (broken / "test-00000.arrow").unlink()
    code, out, _ = run(capsys, "data", "--json", str(broken))
    assert (code, list(causes(out))) == (ExitCode.NO_GO, ["test split"])


def test_the_sampler_is_proven_and_compared(config: str, capsys: Any):
    code, out, _ = run(capsys, "sampler", "--json", config)
    assert code == ExitCode.OK
    assert {check["status"] for check in checks(out).values()} == {"ok"}
    people, batches, compared = json.loads(out)["tables"]
    assert [len(table["rows"]) for table in (people, batches, compared)] == [5, 5, 3]
    ours, _, anyhow = (float(row[1].rstrip("%")) for row in compared["rows"])
    assert ours == 0.0
    assert anyhow > 20.0


@pytest.mark.parametrize(
    ("change", "overrides", "name"),
    [
        (None, ["sampler.ids_per_batch=17"], "plan"),
        (None, ["cluster.num_workers=9"], "plan"),
        (without_others, [], "people who can pair"),
        (gapped, [], "class numbers without gaps"),
    ],
)
def test_a_plan_that_cannot_be_is_a_failed_check(
    records: Path,
    tmp_path: Path,
    capsys: Any,
    change: Change | None,
    overrides: list[str],
    name: str,
):
    source = broken_copy(records, tmp_path / "broken", change) if change else records
    file = written_config(tmp_path, small_config(source))
    code, out, _ = run(capsys, "sampler", "--json", file, *overrides)
    assert (code, list(causes(out))) == (ExitCode.NO_GO, [name])


def test_soft_people_are_counted_and_only_warned_of(records: Path, tmp_path: Path, capsys: Any):
    def two_lonely(row: int, record: Record) -> Record | None:
        lonely = record.class_index < 2 and record.modality is not Modality.VIS
        return None if lonely else record

    broken = broken_copy(records, tmp_path / "broken", two_lonely)
    file = written_config(tmp_path, small_config(broken))
    soft = ["sampler.on_unpairable=soft", "sampler.soft_share=0.25"]
    code, out, _ = run(capsys, "sampler", "--json", file, *soft)
    assert checks(out)["people of a batch pair"]["status"] == "warn"
    assert code == ExitCode.OK


class Forgetful(PKPlan):
    """Shows the first batch again and again."""

    def batch(self, epoch: int, step: int) -> PlanBatch:
        return super().batch(epoch, step * 0)


class Endless(PKPlan):
    """Does not stop at the end of an epoch."""

    def batch(self, epoch: int, step: int) -> PlanBatch:
        return super().batch(epoch, step % self.steps_per_epoch)


class Repeating(PKPlan):
    """Puts its first row in the place of its second."""

    def batch(self, epoch: int, step: int) -> PlanBatch:
        found = super().batch(epoch, step)
        found.rows[1] = found.rows[0]
        return found


class Misnamed(PKPlan):
    """Gives people the rows of others."""

    def batch(self, epoch: int, step: int) -> PlanBatch:
        found = super().batch(epoch, step)
        return replace(found, class_index=np.roll(found.class_index, 1))


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (Forgetful, "rows seen in an epoch"),
        (Endless, "length of an epoch"),
        (Repeating, "people and rows of a batch"),
        (Misnamed, "people of a batch pair"),
    ],
)
def test_faults_of_a_plan_are_named(
    config: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, plan: type[PKPlan], name: str
):
    monkeypatch.setattr(sampler_module, "PKPlan", plan)
    code, out, _ = run(capsys, "sampler", "--json", config)
    assert code == ExitCode.NO_GO
    assert name in causes(out)


# -- model, learning by heart, smoke ---------------------------------------------------------------


def test_the_model_is_looked_at_on_the_records(config: str, capsys: Any):
    code, out, _ = run(capsys, "model", "--json", config)
    assert code == ExitCode.OK
    assert {check["status"] for check in checks(out).values()} == {"ok"}


def test_a_subset_is_records_like_any_other(records: Path):
    train = Records.open(str(records), "train")
    index = IdentityIndex.build(train.class_index, train.modality, train.num_classes)
    subset = choose(index, 64)
    with written(train, subset) as folder:
        small = Records.open(str(folder), "train")
        small.verify()
        assert small.num_classes == len(subset.people)
        assert small.num_rows == subset.num_rows
        at = 0
        for number, rows in enumerate(subset.rows):
            for row in sorted(rows):
                found, expected = as_record(small, at), as_record(train, row)
                assert found.class_index == number
                assert (found.tokens == expected.tokens).all()
                same = {"class_index": 0, "tokens": ()}
                assert replace(found, **same) == replace(expected, **same)
                at += 1
    assert not folder.exists()


@pytest.mark.slow
def test_a_few_people_are_learned_by_heart_unless_the_head_cannot_move(
    config: str, capsys: Any, records: Path
):
    code, out, err = run(capsys, "overfit", "--json", config, "--samples", "128")
    assert code == ExitCode.OK
    (table,) = json.loads(out)["tables"]
    assert [row[0] for row in table["rows"]] == [str(epoch) for epoch in range(1, 11)]
    assert float(table["rows"][-1][2]) < 0.5
    assert "ETA" in err
    faulty = [config, "--samples", "128", "optim.head_lr=1e-6"]
    code, out, _ = run(capsys, "overfit", "--json", *faulty)
    assert code == ExitCode.NO_GO
    assert causes(out) == {"a few people by heart": "head_lr_too_small"}


def test_too_few_rows_to_learn_by_heart_are_refused(config: str, capsys: Any):
    code, out, err = run(capsys, "overfit", config, "--samples", "4")
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert "--samples" in err


@pytest.mark.slow
def test_a_smoke_test_passes_and_leaves_nothing(
    config: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run(capsys, "smoke", "--json", config)
    assert code == ExitCode.OK
    found = checks(out)
    assert found["run: verdict"]["found"] == "GO"
    for part in ("data: ", "sampler: ", "model: ", "run: "):
        assert any(name.startswith(part) for name in found)
    assert "fail" not in {check["status"] for check in found.values()}
    assert "ETA" in err
    assert not list(tmp_path.glob("crossreid-*"))


@pytest.mark.slow
def test_a_smoke_test_that_fails_keeps_its_run_and_names_the_cause(
    config: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from service.doctor import model as model_module

    # The forecast would stop it before: here the run itself has to find out.
    monkeypatch.setattr(model_module, "head_reach", lambda config: 1.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, _ = run(capsys, "smoke", "--json", config, "optim.head_lr=1e-6")
    assert code == ExitCode.NO_GO
    assert causes(out)["run: verdict"] == "head_lr_too_small"
    (kept,) = tmp_path.glob("crossreid-smoke-*/*")
    assert str(kept) in json.loads(out)["notes"][0]
    code, out, _ = run(capsys, "run", "--json", str(kept))
    assert code == ExitCode.NO_GO
    assert "head's learning rate" in json.loads(out)["closing"]
    assert "the replay gives every decision that was journaled" in json.loads(out)["notes"]


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model.backbone.image_size=[64, 32]"], "data"),
        (["sampler.ids_per_batch=40"], "sampler"),
        (["optim.head_lr=1e-7"], "model"),
    ],
)
def test_nothing_is_trained_when_something_is_wrong_before(
    config: str, capsys: Any, overrides: list[str], part: str
):
    code, out, _ = run(capsys, "smoke", "--json", config, *overrides)
    assert code == ExitCode.NO_GO
    assert f"wrong with the {part}" in json.loads(out)["closing"]
    assert not any(name.startswith("run: ") for name in checks(out))


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data"], "expected a config or a records folder"),
        (["data", "{folder}/none"], "no manifest.json"),
        (["data", "{folder}/none.yaml"], "cannot read config"),
        (["data", "{records}", "train.epochs=3"], "has nothing to change"),
        (["model"], "expected a config file"),
        (["sampler", "{config}", "sampler.ids=3"], "unknown setting"),
        (["smoke", "{config}", "data.records={folder}/none"], "no manifest.json"),
        (["overfit", "{config}", "data.records={folder}/none"], "no manifest.json"),
        (["run", "nobody"], "no run 'nobody'"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    words: list[str], message: str, config: str, records: Path, tmp_path: Path, capsys: Any
):
    filled = [w.format(config=config, folder=tmp_path, records=records) for w in words]
    code, out, err = run(capsys, *filled)
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [[], ["everything"], ["overfit", "x.yaml", "--samples", "0"]])
def test_unknown_words_are_refused_by_the_parser(words: list[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor", *words])
    assert caught.value.code == 2
