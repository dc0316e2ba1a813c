"""What travels to the cluster with a job: the code as it lies here, and the job's config.

Ray stores a package by its content, so the same code and config are sent once.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import service
from service.errors import RunError

CONFIG_FILE = "config.yaml"
LIMIT_BYTES = 50_000_000
_PACKAGES = ("service", "jobs")
_LEFT_OUT = ("__pycache__",)
_COMPILED = (".pyc", ".pyo")
_SHOWN = 5


@contextmanager
def packed(config: str | None = None, root: Path | None = None) -> Iterator[Path]:
    """A folder that holds what a job needs, gone after the block.

    config: YAML that becomes `config.yaml` there. root: the folder that `service` and `jobs` lie
    in; None is where the running package lies, so that local changes are shipped.

    Raises:
        RunError: `jobs` is not there, a file cannot be read or copied, a folder is a link, or it is
            larger than LIMIT_BYTES, which names the largest files.
    """
    root = root or Path(service.__file__).parents[1]
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="crossreid-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            _stage(root, folder)
            if config is not None:
                (folder / CONFIG_FILE).write_text(config, "utf-8")
        except OSError as error:
            raise RunError(
                f"cannot pack the code in {root}: {error}; it is copied to the temporary folder, "
                "which TMPDIR names, and needs room there"
            ) from error
        yield folder


def _stage(root: Path, folder: Path) -> None:
    sizes = {file: (root / file).stat().st_size for file in _files(root)}
    _require_small(root, sizes)
    for file in sizes:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target)


def _files(root: Path) -> Iterator[Path]:
    """The code's files relative to `root`; nothing hidden, nothing compiled."""
    for package in _PACKAGES:
        if not (root / package / "__init__.py").is_file():
            raise RunError(
                f"{root / package} is not there, so there is nothing to submit; install crossreid "
                "again, or submit from a checkout of it"
            )
        for folder, folders, files in os.walk(root / package):
            folders[:] = [name for name in folders if _is_shipped(name)]
            _require_own(Path(folder), folders)
            kept = (name for name in files if _is_shipped(name))
            yield from (Path(folder).relative_to(root) / name for name in kept)


def _require_own(folder: Path, names: list[str]) -> None:
    for name in names:
        if (folder / name).is_symlink():
            raise RunError(
                f"{folder / name} is a link to a folder, which does not travel with a job; put the "
                "folder itself there, or move the link out of service/ and jobs/"
            )


def _is_shipped(name: str) -> bool:
    return not name.startswith(".") and name not in _LEFT_OUT and not name.endswith(_COMPILED)


def _require_small(root: Path, sizes: dict[Path, int]) -> None:
    total = sum(sizes.values())
    if total <= LIMIT_BYTES:
        return
    largest = sorted(sizes, key=lambda file: -sizes[file])[:_SHOWN]
    told = ", ".join(f"{file} {sizes[file] / 1e6:.1f} MB" for file in largest)
    raise RunError(
        f"the code in {root} is {total / 1e6:.1f} MB, and a job takes at most "
        f"{LIMIT_BYTES / 1e6:.0f} MB with it; the largest files: {told}. Move data and weights out "
        "of service/ and jobs/, to where the cluster sees them"
    )
