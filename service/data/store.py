"""Records files as local paths: a local folder as it is, a remote one through a node-local cache.

The cache holds files by the hash of their content, so data sets share it and nothing in it goes
stale. One process of a node fetches, the others wait on a file lock.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from service.data.manifest import MANIFEST_FILE, DataFile, Manifest, parse_manifest
from service.data.shards import file_sha256
from service.errors import DataError
from service.stores import open_store, reaching

_FILES_AT_ONCE = 8


def default_cache() -> Path:
    """Where remote records are kept on a node: the user's own cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crossreid"


def read_manifest(url: str) -> Manifest:
    """The manifest of the records folder at `url`.

    Raises:
        DataError: when there is none, or the store cannot be reached.
    """
    fs, root = open_store(url)
    path = f"{root}/{MANIFEST_FILE}"
    with reaching(url):
        if not fs.exists(path):
            raise DataError(
                f"{url} holds no {MANIFEST_FILE}, so it is not a records folder; "
                "make one with `crossreid data ingest`"
            )
        text = fs.cat_file(path)
    return parse_manifest(text, f"{url}/{MANIFEST_FILE}")


def local_files(url: str, files: Sequence[DataFile], cache: Path | None = None) -> list[Path]:
    """Local paths of `files`, each there with its right size; remote ones are fetched first.

    What is fetched is checked by its hash; what was there already, by its size.

    Raises:
        DataError: when a file is missing or damaged, or the store cannot be reached.
    """
    fs, root = open_store(url)
    if isinstance(fs, LocalFileSystem):
        paths = [Path(root) / file.file for file in files]
        wrong = [_describe(path, file) for path, file in zip(paths, files, strict=True)]
        if any(wrong):
            raise DataError(
                f"{url} is incomplete: {'; '.join(filter(None, wrong))}; copy it again, or "
                "ingest the data set again"
            )
        return paths
    cache = cache or default_cache()
    paths = [cache / f"{file.sha256}.arrow" for file in files]
    if any(_describe(path, file) for path, file in zip(paths, files, strict=True)):
        _fill_cache(fs, root, url, files, cache)
    return paths


def _describe(path: Path, file: DataFile) -> str | None:
    """What is wrong with a file's presence or size, or None."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{file.file} is missing"
    except OSError as error:
        return f"{file.file} cannot be read ({error.strerror})"
    if size != file.bytes:
        return f"{file.file} has {size} bytes, the manifest says {file.bytes}"
    return None


def _fill_cache(
    fs: AbstractFileSystem, root: str, url: str, files: Sequence[DataFile], cache: Path
) -> None:
    """Fetches the files that the cache lacks, while holding the cache's lock."""
    with reaching(url):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            for left in cache.glob("*.partial"):
                left.unlink()
            lacking = {f.sha256: f for f in files if _describe(cache / f"{f.sha256}.arrow", f)}
            queue = list(lacking.values())
            for start in range(0, len(queue), _FILES_AT_ONCE):
                _fetch(fs, root, url, queue[start : start + _FILES_AT_ONCE], cache)


def _fetch(
    fs: AbstractFileSystem, root: str, url: str, files: Sequence[DataFile], cache: Path
) -> None:
    """Fetches `files` in one call (stores then work in parallel), checks and publishes them."""
    partial = [cache / f"{file.sha256}.partial" for file in files]
    try:
        fs.get([f"{root}/{file.file}" for file in files], [str(path) for path in partial])
        for path, file in zip(partial, files, strict=True):
            wrong = _describe(path, file)
            if wrong or file_sha256(path) != file.sha256:
                raise DataError(
                    f"{url}/{file.file} is damaged: {wrong or 'its hash is not the manifest`s'}; "
                    "upload it again, or ingest the data set again"
                )
            os.replace(path, cache / f"{file.sha256}.arrow")
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
