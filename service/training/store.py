"""Where checkpoints lie: a local folder or any fsspec URL, behind the same few methods.

A checkpoint is `checkpoint_<step>/` with its files, and counts once `manifest.json` is in it. What
lacks one is an unfinished write, which `sweep` takes away. Nothing is remembered between calls.
"""

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from service.errors import CheckpointError, StoreError
from service.redaction import shown_url
from service.stores import open_store, reaching
from service.training.files import write_text

STATE_FILE = "state.pt"
MANIFEST_FILE = "manifest.json"
OWNER_FILE = "owner.json"
_FOLDER = re.compile(r"checkpoint_(\d{8,})")
_HIDDEN = ".checkpoint_*"
_BLOCK = 16 << 20
"""Bytes that are read back at once."""


class Store(Protocol):
    """The checkpoints of one run. Every method may raise a StoreError that says what the store
    refused; only `read` tells what is missing from what cannot be had."""

    @property
    def where(self) -> str:
        """Where the checkpoints lie, as a message may show it."""
        ...

    def place(self, step: int) -> str:
        """Where the checkpoint of `step` lies, as a message may show it."""
        ...

    def owner(self) -> str | None:
        """What `own` wrote; None before that."""
        ...

    def own(self, owner: str) -> None:
        """Writes down whose the checkpoints are, in place of what was said before."""
        ...

    def put(self, step: int, state: bytes, manifest: bytes) -> None:
        """Writes a checkpoint and reads it back, its manifest last; what was there under this step
        goes."""
        ...

    def steps(self) -> list[int]:
        """The steps of the checkpoints with a manifest, rising."""
        ...

    def read(self, step: int, file: str) -> bytes | None:
        """A file of a checkpoint; None when it is missing."""
        ...

    def delete(self, step: int) -> None:
        """Takes a checkpoint away, so that it never counts with files missing."""
        ...

    def sweep(self) -> None:
        """Takes away what unfinished writes and deletes left."""
        ...


def open_checkpoints(place: str | None, run_dir: Path) -> Store:
    """The store of the run in `run_dir`: `<place>/<run id>`, or the run's own folder.

    place: folder or fsspec URL, as `run.checkpoints`.

    Raises:
        CheckpointError: for an unknown or not installed protocol.
    """
    if place is None:
        return FolderStore(run_dir)
    fs, root = open_store(place, CheckpointError)
    root = f"{root.rstrip('/')}/{run_dir.name}"
    if isinstance(fs, LocalFileSystem):
        return FolderStore(Path(root))
    return UrlStore(fs, root, f"{place.rstrip('/')}/{run_dir.name}")


def folder_name(step: int) -> str:
    return f"checkpoint_{step:08d}"


class FolderStore:
    """Checkpoints in a local folder: each appears, and goes, by one rename."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def where(self) -> str:
        return str(self.folder)

    def place(self, step: int) -> str:
        return str(self.folder / folder_name(step))

    def owner(self) -> str | None:
        found = self._read(self.folder / OWNER_FILE)
        return None if found is None else found.decode(errors="replace")

    def own(self, owner: str) -> None:
        with self._writing(self.where):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / OWNER_FILE, owner)

    def put(self, step: int, state: bytes, manifest: bytes) -> None:
        target = self.folder / folder_name(step)
        beside = self._beside(step)
        with self._writing(self.place(step)):
            try:
                beside.mkdir(parents=True)
                _write(beside / STATE_FILE, state)
                _write(beside / MANIFEST_FILE, manifest)
                _sync(beside)
                if target.is_dir():
                    self.delete(step)
                beside.rename(target)
                _sync(self.folder)
            except Exception:
                shutil.rmtree(beside, ignore_errors=True)
                raise

    def steps(self) -> list[int]:
        try:
            names = [path.name for path in self.folder.iterdir() if _FOLDER.fullmatch(path.name)]
            return _steps_of(n for n in names if (self.folder / n / MANIFEST_FILE).is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(
                f"cannot look for checkpoints in {self.folder}: {error}; check its rights and the "
                "disk, then --resume"
            ) from error

    def read(self, step: int, file: str) -> bytes | None:
        return self._read(self.folder / folder_name(step) / file)

    def delete(self, step: int) -> None:
        aside = self._beside(step)
        with self._writing(self.place(step)):
            (self.folder / folder_name(step)).rename(aside)
            shutil.rmtree(aside)

    def sweep(self) -> None:
        for left in self.folder.glob(_HIDDEN):
            try:
                shutil.rmtree(left)
            except OSError as error:
                raise StoreError(f"cannot remove {left}: {error}; check its rights") from error

    def _beside(self, step: int) -> Path:
        """A hidden name that no other writer, such as one of a lost attempt, uses."""
        return self.folder / f".{folder_name(step)}.{uuid.uuid4().hex[:8]}"

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"cannot read {path}: {error}; check its rights and the disk, then --resume"
            ) from error

    @contextlib.contextmanager
    def _writing(self, place: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write checkpoint {place}: {error}; free space or check rights, "
                "then resume the run; or copy its checkpoints elsewhere, name that place in "
                "run.checkpoints, and resume"
            ) from error


class UrlStore:
    """Checkpoints under an fsspec URL. Stores without a rename get the manifest last, after what
    was uploaded has been read back.

    root: the run's folder in `fs`. url: the same as a URL.
    """

    def __init__(self, fs: AbstractFileSystem, root: str, url: str) -> None:
        self._fs = fs
        self._root = root
        self._url = url

    @property
    def where(self) -> str:
        return shown_url(self._url)

    def place(self, step: int) -> str:
        return f"{self.where}/{folder_name(step)}"

    def owner(self) -> str | None:
        found = self._read(self._path(OWNER_FILE))
        return None if found is None else found.decode(errors="replace")

    def own(self, owner: str) -> None:
        with reaching(self._url, StoreError):
            self._upload(OWNER_FILE, owner.encode())

    def put(self, step: int, state: bytes, manifest: bytes) -> None:
        with reaching(self._url, StoreError):
            try:
                self._remove(step, MANIFEST_FILE)
                self._upload(_file(step, STATE_FILE), state)
                self._upload(_file(step, MANIFEST_FILE), manifest)
            except Exception:
                # A manifest that could not be read back must not count, and a full store needs the
                # room; what cannot be removed now is swept later.
                with contextlib.suppress(Exception):
                    self._remove(step, MANIFEST_FILE)
                    self._remove(step, STATE_FILE)
                raise

    def steps(self) -> list[int]:
        return _steps_of(name for name, file in self._files() if file == MANIFEST_FILE)

    def read(self, step: int, file: str) -> bytes | None:
        return self._read(self._path(_file(step, file)))

    def delete(self, step: int) -> None:
        with reaching(self._url, StoreError):
            self._remove(step, MANIFEST_FILE)
            self._remove_folder(folder_name(step))

    def sweep(self) -> None:
        files = self._files()
        whole = {name for name, file in files if file == MANIFEST_FILE}
        for name in sorted({name for name, _ in files} - whole):
            with reaching(self._url, StoreError):
                self._remove_folder(name)

    def _files(self) -> list[tuple[str, str]]:
        """Every file of a checkpoint, as (its folder's name, its name)."""
        with reaching(self._url, StoreError):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root)
            except FileNotFoundError:
                self._require_bucket()
                return []
        paths = [PurePosixPath(path) for path in found]
        return [(p.parent.name, p.name) for p in paths if _FOLDER.fullmatch(p.parent.name)]

    def _path(self, file: str) -> str:
        return f"{self._root}/{file}"

    def _read(self, path: str) -> bytes | None:
        with reaching(self._url, StoreError):
            self._fs.invalidate_cache()
            try:
                return self._cat(path)
            except FileNotFoundError:
                return None

    def _remove(self, step: int, file: str) -> None:
        """Takes a file away where there is one: a store may refuse deletes, and still be used."""
        self._fs.invalidate_cache()
        path = self._path(_file(step, file))
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def _remove_folder(self, name: str) -> None:
        """Takes away what is left of a checkpoint, which may be nothing."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{name}", recursive=True)

    def _upload(self, file: str, data: bytes) -> None:
        path = self._path(file)
        try:
            self._fs.pipe_file(path, data)
        except FileNotFoundError:
            self._require_bucket()
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, data)
        self._fs.invalidate_cache()
        _require_same(data, self._blocks(path), f"{self.where}/{file}")

    def _require_bucket(self) -> None:
        """Refuses a bucket, or top folder, that is not there: a wrong name must not make one."""
        bucket = "/".join(PurePosixPath(self._root).parts[: 1 + self._root.startswith("/")])
        if not self._fs.exists(bucket.replace("//", "/")):
            raise FileNotFoundError(f"there is no {bucket}")

    def _blocks(self, path: str) -> Iterator[bytes]:
        size = int(self._fs.info(path)["size"])
        for start in range(0, size, _BLOCK):
            yield self._cat(path, start=start, end=min(start + _BLOCK, size))

    def _cat(self, path: str, **part: int) -> bytes:
        found = self._fs.cat_file(path, **part)
        assert isinstance(found, bytes)
        return found


def _file(step: int, name: str) -> str:
    """A checkpoint's file, below the run's folder."""
    return f"{folder_name(step)}/{name}"


def _steps_of(names: Iterable[str]) -> list[int]:
    """The steps among folders' names; other names are somebody else's."""
    found = (_FOLDER.fullmatch(name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def _write(path: Path, data: bytes) -> None:
    """Writes a file and reads it back, from the disk and not from this machine's memory."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb", buffering=0) as file:
        _require_same(data, iter(lambda: file.read(_BLOCK), b""), str(path))


def _require_same(data: bytes, found: Iterable[bytes], place: str) -> None:
    """Whether the blocks `found` at `place` are what was written there: some stores take bytes, say
    so, and lose them.

    Raises:
        StoreError: they are not.
    """
    # By hash: unlike a comparison, that lets training compute meanwhile.
    size, digest = 0, hashlib.sha256()
    for block in found:
        digest.update(block)
        size += len(block)
    if size != len(data) or digest.digest() != hashlib.sha256(data).digest():
        raise StoreError(
            f"{place} was written with {len(data)} bytes and read back with {size}, not the same: "
            "the store loses data; copy the checkpoints to another, name it in run.checkpoints, "
            "and resume"
        )


def _sync(folder: Path) -> None:
    """Makes a rename in `folder` outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
