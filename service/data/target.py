"""Where finished records go: they appear there whole, or not at all."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec import AbstractFileSystem

from service.data.manifest import MANIFEST_FILE, Manifest
from service.errors import DataError
from service.redaction import shown_url
from service.stores import open_store, reaching


def check_free(out: str, root: str, local: bool) -> None:
    """Refuses a target that holds something, or is mounted; an empty folder is free."""
    if local:
        path = Path(root)
        if path.is_mount():
            raise DataError(
                f"{out} is a mount point, whose place the finished records cannot take; name a "
                f"folder in it, as in {out.rstrip('/')}/records"
            )
        taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    else:
        fs, _ = open_store(out)
        with reaching(out):
            taken = fs.exists(f"{root}/{MANIFEST_FILE}")
    if taken:
        raise DataError(f"{out} exists and is not empty; delete it, or name another target")


@contextmanager
def work_folder(target: Path | None) -> Iterator[Path]:
    """A folder beside `target`, so that a rename publishes it; elsewhere for a remote one."""
    try:
        if target:
            target.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.mkdtemp(
            prefix=f".{target.name}.partial-" if target else "crossreid-ingest-",
            dir=target.parent if target else None,
        )
    except OSError as error:
        raise DataError(f"cannot write beside {target}: {error}; choose another target") from error
    try:
        yield Path(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def publish(work: Path, out: str, manifest: Manifest, local: bool) -> None:
    """Makes the finished records appear at `out`: by a rename, or with the manifest last."""
    fs, root = open_store(out)
    with reaching(out):
        if local:
            work.chmod(0o755)
            work.rename(root)
            return
        names = sorted(path.name for path in work.iterdir() if path.name != MANIFEST_FILE)
        fs.makedirs(root, exist_ok=True)
        try:
            fs.put([str(work / name) for name in names], [f"{root}/{name}" for name in names])
            _check_sizes(fs, root, out, {name: (work / name).stat().st_size for name in names})
            _put_manifest(fs, root, out, manifest.to_json())
        except BaseException:
            # A manifest that was not read back must not count, and a full store needs the room.
            with suppress(Exception):
                _take_back(fs, root, [MANIFEST_FILE, *names])
            raise


def _check_sizes(fs: AbstractFileSystem, root: str, out: str, sizes: dict[str, int]) -> None:
    """Refuses a store that does not hold the files with these sizes in bytes."""
    fs.invalidate_cache()
    for name, size in sizes.items():
        try:
            found = int(fs.info(f"{root}/{name}")["size"])
        except FileNotFoundError:
            raise _lost(out, name, size, "is not there") from None
        if found != size:
            raise _lost(out, name, size, f"has {found}")


def _put_manifest(fs: AbstractFileSystem, root: str, out: str, data: bytes) -> None:
    """Writes the manifest and reads it back."""
    path = f"{root}/{MANIFEST_FILE}"
    fs.pipe_file(path, data)
    fs.invalidate_cache()
    try:
        found = fs.cat_file(path)
    except FileNotFoundError:
        raise _lost(out, MANIFEST_FILE, len(data), "is not there") from None
    if found != data:
        raise _lost(out, MANIFEST_FILE, len(data), f"was read back with {len(found)}, not the same")


def _lost(out: str, name: str, size: int, found: str) -> DataError:
    return DataError(
        f"{shown_url(out).rstrip('/')}/{name} was written with {size} bytes and {found}: the store "
        "loses data; ingest into another one"
    )


def _take_back(fs: AbstractFileSystem, root: str, names: Sequence[str]) -> None:
    """Takes away those of the files that are there."""
    fs.invalidate_cache()
    for name in names:
        if fs.exists(f"{root}/{name}"):
            fs.rm_file(f"{root}/{name}")
