"""Reading configs: what is refused, where it says so, and that the last word wins."""

from pathlib import Path
from typing import Any

import pytest

from service.config import Config, Distribution
from service.errors import ConfigError
from service.settings import given, known_settings, load_config, load_text, override

MINIMAL = "data: {records: somewhere}\n"
CONFIGS = sorted(Path("configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_loads_and_opens_with_the_command_that_runs_it(path: Path):
    config = load_config(path)
    first = path.read_text().splitlines()[0]
    command = "tune" if config.tune.space else "train"
    assert first == f"# crossreid {command} configs/{path.name}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_resolved_config_loads_to_the_same_config(path: Path):
    config = load_config(path)
    assert load_text(config.to_yaml()) == config


def test_one_number_stands_for_the_whole_head_schedule():
    config = load_text(MINIMAL, ["optim.head_lr=1e-5"])
    assert [(e.epoch, e.lr) for e in config.optim.head_lr] == [(1, 1e-5)]


def test_the_default_head_schedule_drops_in_epoch_two():
    config = load_text(MINIMAL)
    assert [(e.epoch, e.lr) for e in config.optim.head_lr] == [(1, 1e-2), (2, 3e-3)]


@pytest.mark.parametrize(
    ("override_text", "parts"),
    [
        ("optim.hed_lr=1", ["optim.hed_lr", "optim.head_lr"]),
        ("nonsense=1", ["nonsense", "unknown"]),
        ("sampler.vis_per_id=5", ["vis_per_id=5", "rows_per_id=5"]),
        ("sampler.ids_per_batch=0", ["sampler.ids_per_batch", "0"]),
        ("loss.sdm.warmup_epochs=1", ["two readings", "start_epoch"]),
        ("policy.go=0.99", ["policy.go=0.99 must be below policy.hold=0.951"]),
        ("policy.go=0.9", ["policy.learning=0.918 must be below policy.go=0.9"]),
        ("policy.collapse=1.0", ["policy.collapse=1.0 must be below 1"]),
        ("policy.first_look=400", ["policy.first_look=400 must not be above policy.no_go_from=3"]),
        ("optim.head_lr=[{epoch: 2, lr: 0.1}]", ["rise from 1"]),
        ("train.precision=fp16", ["train.precision", "fp16"]),
        ("justtext", ["section.setting=value"]),
        ("data.records={a: 1, a: 2}", ["'a' stands twice"]),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(override_text: str, parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        load_text(MINIMAL, [override_text])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text", ["policy.go=0.99", "policy.max_unpaired=0.01", "loss.sdm.warmup_epochs=1"]
)
def test_an_error_about_a_section_does_not_repeat_the_whole_section(text: str):
    with pytest.raises(ConfigError) as caught:
        load_text(MINIMAL, [text])
    assert "{" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"optim": {"head_lr": {"grid": [1]}}}', '{"optim.head_lr": {"grid": [...]}}'),
        ("{loss: {sdm: {form: {grid: [kl]}}}}", '{"loss.sdm.form": {"grid": [...]}}'),
        ("{optim: {neck_lr: [1]}}", '{"optim.neck_lr": {"grid": [...]}}'),
        ("{optim.neck_lr: [1]}", '{"optim.neck_lr": {"grid": [...]}}'),
        ("{optim.neck_lr: {gird: [1]}}", "one of grid, choice, uniform, loguniform"),
        ("[1]", '{"optim.head_lr": {"grid": [...]}}'),
    ],
)
def test_a_space_of_another_form_is_shown_the_right_one(text: str, told: str):
    with pytest.raises(ConfigError) as caught:
        load_text(MINIMAL, [f"tune.space={text}"])
    assert told in str(caught.value)
    assert "instance of" not in str(caught.value)


@pytest.mark.parametrize("kind", Distribution.model_fields)
@pytest.mark.parametrize(
    "text",
    [
        "tune.space={optim.neck_lr: {KIND: [1e-3, 1e-2]}}",
        "tune.space.optim.neck_lr={KIND: [1e-3, 1e-2]}",
        "tune.space.optim.neck_lr.KIND=[1e-3, 1e-2]",
    ],
)
def test_a_distribution_can_be_given_as_a_mapping_and_as_a_path(text: str, kind: str):
    config = load_text(MINIMAL, [text.replace("KIND", kind)])
    values: dict[str, Any] = {kind: (1e-3, 1e-2)}
    assert config.tune.space == {"optim.neck_lr": Distribution(**values)}


def test_a_distribution_takes_the_place_of_the_one_below_it_and_leaves_the_others(tmp_path: Path):
    below = "{optim.neck_lr: {grid: [1e-3]}, run.seed: {grid: [1, 2]}}"
    (tmp_path / "base.yaml").write_text(f"{MINIMAL}tune: {{space: {below}}}\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: base.yaml\ntune: {space: {run.seed: {choice: [3]}}}\n")
    text = "tune.space.optim.neck_lr={uniform: [1e-3, 1e-2]}"
    wanted = {
        "optim.neck_lr": Distribution(uniform=(1e-3, 1e-2)),
        "run.seed": Distribution(choice=(3,)),
    }
    assert load_config(top, [text]).tune.space == wanted
    assert override(load_config(top), [text]).tune.space == wanted


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        ([], None),
        (["run.storage=a", "train.epochs=2", "run.storage=b"], "b"),
        (["run={storage: c}"], "c"),
        (["run.seed=1"], None),
        (["run=2"], None),
    ],
)
def test_what_overrides_say_for_one_setting_is_found(overrides: list[str], value: str | None):
    assert given(overrides, "run.storage") == value


@pytest.mark.parametrize(
    "value",
    [
        "2020-13-45",
        "{? [a] : b}",
        "{? {a: b} : c}",
        "1" * 5000,
        "0x" + "f" * 5000,
        "!!int ''",
        "!!bool perhaps",
        "!!timestamp soon",
        "[" * 3000,
    ],
)
@pytest.mark.parametrize("read", [lambda t: load_text(f"run: {{name: {t}}}\n"), None])
def test_a_value_that_yaml_cannot_build_is_refused_in_text_and_as_override(value: str, read):
    with pytest.raises(ConfigError) as caught:
        read(value) if read else load_text(MINIMAL, [f"run.name={value}"])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("number", ["9223372036854775808", "-9223372036854775809", "0x" + "f" * 99])
def test_a_whole_number_of_more_than_64_bits_is_refused(number: str):
    with pytest.raises(ConfigError, match="more than 64 bits"):
        load_text(MINIMAL, [f"run.seed={number}"])
    assert load_text(MINIMAL, ["run.seed=9223372036854775807"]).run.seed == 2**63 - 1


def test_a_key_that_is_no_name_is_refused_with_its_line():
    with pytest.raises(ConfigError, match=r"config:2: a key must be a name; found \['a'\]"):
        load_text("data: {records: a}\n? [a]\n: b\n")


@pytest.mark.parametrize("base", ["a\\0b", "loop"])
def test_a_base_whose_path_cannot_be_is_refused(tmp_path: Path, base: str):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "top.yaml").write_text(f'extends: "{base}"\n')
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config(tmp_path / "top.yaml")


def test_a_duplicate_key_is_refused_with_its_line():
    with pytest.raises(ConfigError, match=r"config:3: key 'records' stands twice"):
        load_text("data:\n  records: a\n  records: b\n")


def test_a_missing_section_is_named():
    with pytest.raises(ConfigError, match=r"data: missing"):
        load_text("run: {seed: 1}\n")


def test_extends_lays_one_file_over_another(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("data: {records: a}\noptim: {neck_lr: 0.5}\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: base.yaml\noptim: {patch_lr: 0.25}\n")
    config = load_config(top, ["optim.neck_lr=0.125", "optim.neck_lr=0.0625"])
    assert config.data.records == "a"
    assert config.optim.patch_lr == 0.25
    assert config.optim.neck_lr == 0.0625


def test_a_config_that_extends_itself_is_refused(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(path)


def test_yaml_cannot_construct_objects():
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_text("data: !!python/object/apply:os.system [echo]\n")


def test_overriding_a_config_equals_loading_with_the_override():
    assert override(load_text(MINIMAL), ["train.epochs=3"]) == load_text(
        MINIMAL, ["train.epochs=3"]
    )


def test_the_fingerprint_follows_what_determines_the_weights_and_nothing_else():
    base = load_text(MINIMAL)

    def same(text: str) -> bool:
        return override(base, [text]).fingerprint() == base.fingerprint()

    assert same("cluster.num_workers=8")
    assert same("log.every=7")
    assert same("run.storage=elsewhere")
    assert not same("run.seed=1")
    assert not same("optim.head_lr=0.5")
    assert not same("sampler.ids_per_batch=8")


def test_every_setting_is_known_by_its_dotted_name():
    names = known_settings()
    assert "optim.head_lr" in names
    assert "loss.sdm.weights" in names
    assert len(names) == len(set(names))
    assert all("." in name for name in names)
    assert Config.model_fields.keys() == {name.split(".")[0] for name in names}
