"""What of a URL is a secret."""

from pathlib import Path

import pytest

from service.errors import ConfigError
from service.orchestration.runs import create_run, plan_run, resume_run
from service.redaction import has_password, redacted
from service.settings import load_text, override


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3://bucket/runs", False),
        ("/data/a@b/runs", False),
        ("s3://bucket/a@b/runs", False),
        ("http://host:8080/a@b", False),
        ("http://[::1]:80/a@b", False),
        ("sftp://me@host/runs", False),
        ("abfs://container@account.dfs.core.windows.net/runs", False),
        ("s3://bucket/a:b@c", False),
        ("sftp://me:pass@host/runs", True),
        ("s3://key:sec/ret@bucket/runs", True),
    ],
)
def test_a_password_is_told_from_an_at_that_is_none(url: str, found: bool):
    assert has_password(url) is found


def test_a_new_run_does_not_keep_a_password_and_an_old_one_can_be_read(tmp_path: Path):
    place = "sftp://me:hush@host/runs"
    config = load_text(
        f"data: {{records: r}}\nrun: {{storage: {tmp_path}, checkpoints: '{place}'}}"
    )
    with pytest.raises(ConfigError, match="its own variables or file") as told:
        plan_run(config)
    assert "hush" not in str(told.value)


def test_a_long_secret_in_a_value_that_is_refused_is_not_shown_in_part():
    place = f"sftp://me:{'hush' * 200}@host/runs"
    with pytest.raises(ConfigError, match=r"run\.seed") as told:
        load_text(f"data: {{records: r}}\nrun: {{seed: '{place}'}}")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize("setting", ["run.checkpoints", "data.records"])
def test_a_password_is_not_laid_over_the_config_of_a_run_that_goes_on(tmp_path: Path, setting: str):
    run = create_run(load_text(f"data: {{records: r}}\nrun: {{storage: {tmp_path}}}"), "one")
    with pytest.raises(ConfigError, match=rf"{setting}=s3://<login>@b/x has a password"):
        resume_run(str(run.path), override(run.config, [f"{setting}=s3://key:hush@b/x"]))
    assert resume_run(str(run.path), run.config).path == run.path


def test_the_place_of_a_secret_is_none():
    environ = {
        "RAY_AUTH_TOKEN_PATH": "/home/me/token",
        "SSL_KEY_FILE": "/home/me/key.pem",
        "SECRETS_DIR": "/run/secrets",
        "RAY_AUTH_TOKEN": "hushhush",
    }
    text = "RAY_AUTH_TOKEN_PATH names /home/me/token, /home/me/key.pem, /run/secrets: hushhush"
    assert redacted(text, environ) == text.replace("hushhush", "<RAY_AUTH_TOKEN>")
