"""The words of `crossreid watch` that are refused before anything is looked for or started."""

from pathlib import Path
from typing import Any

import pytest

from service import cli


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "http://a:1/metrics"), "expected HOST:PORT, as in 127.0.0.1:9109"),
        (("--target", "a"), "expected HOST:PORT"),
        (("--target", "a:0"), "expected HOST:PORT"),
        (("--target", "a:65536"), "expected HOST:PORT"),
        (("--target", "me@a:1"), "expected HOST:PORT"),
        (("--target", "a:1/b"), "expected HOST:PORT"),
        (("--every", "0"), "expected whole seconds from 1 to 120, found '0'"),
        (("--every", "121"), "expected whole seconds"),
        (("--every", "1.5"), "expected whole seconds"),
        (("--port", "65536"), "expected a port from 0 to 65535, found '65536'"),
        (("--alertmanager-port", "-1"), "expected a port"),
        (("--webhook", "chat.example.org"), "expected http://... or https://..."),
        (("--webhook", "ftp://a"), "expected http://... or https://..."),
        (("--hours", "0"), "found '0'"),
        (("--hours", "nan"), "expected hours above 0"),
    ],
)
def test_a_word_that_cannot_be_meant_is_refused_with_what_was_expected(
    words: tuple[str, ...], said: str, capsys: Any
):
    with pytest.raises(SystemExit) as error:
        cli.main(["watch", *words])
    assert error.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("--prometheus", "http://127.0.0.1:1"), ("--run", "r"), ("--trial", "t"), ("--hours", "1")],
)
def test_what_says_how_a_page_is_drawn_needs_a_page(words: tuple[str, ...], capsys: Any):
    assert cli.main(["watch", *words]) == 2
    assert f"ConfigError: {words[0]} says what --page FILE draws" in capsys.readouterr().err


def test_a_storage_that_is_no_folder_is_refused(capsys: Any):
    assert cli.main(["watch", "--storage", "s3://bucket/runs"]) == 2
    assert "found the URL s3://bucket/runs" in capsys.readouterr().err


def test_a_page_from_nowhere_is_refused_and_not_written(tmp_path: Path, capsys: Any):
    page = tmp_path / "page.html"
    assert cli.main(["watch", "--page", str(page), "--prometheus", "http://127.0.0.1:1"]) == 2
    assert "no Prometheus answers at http://127.0.0.1:1" in capsys.readouterr().err
    assert not page.exists()
