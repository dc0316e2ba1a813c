"""Remote stores with faults, as fsspec file systems: `faulty://`, in the memory of the tests, and
`slow://`, in a folder, which outlives a process that writes to it."""

import errno
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


@dataclass
class Faults:
    """What goes wrong, by the number of the write where it matters.

    refuses: every write. refuses_deletes: every delete. fails_at: these writes, 1-based, half way.
    dies_at: in this write, half way, the writer's process dies.
    holds: writes wait until it is set. slow_s: seconds that a write takes at least. truncates:
    files with this ending, which are cut in half and reported as stored. room: bytes that fit, in
    all. down: nothing can be reached. from_start: a run's first write, which says whose the place
    is, goes wrong too.
    """

    refuses: bool = False
    refuses_deletes: bool = False
    fails_at: frozenset[int] = frozenset()
    dies_at: int | None = None
    holds: threading.Event | None = None
    slow_s: float = 0.0
    truncates: str = ""
    room: int | None = None
    down: bool = False
    from_start: bool = False
    writes: list[str] = field(default_factory=list)


class FaultyFileSystem(MemoryFileSystem):
    """Memory with `faults`, which a test sets; `login` is what its messages let slip."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[Faults] = Faults()

    @classmethod
    def fresh(cls) -> Faults:
        """An empty store without faults."""
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.faults = Faults()
        return cls.faults

    @classmethod
    def files(cls) -> list[str]:
        return sorted(cls.store)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("faulty://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        faults = self.faults
        if path.endswith("/owner.json") and not faults.from_start:
            self._reach(path)
            return super().pipe_file(path, value)
        faults.writes.append(path)
        if faults.holds is not None:
            faults.holds.wait(30)
        time.sleep(faults.slow_s)
        self._reach(path)
        if faults.refuses:
            raise PermissionError(errno.EACCES, "access denied", path)
        kept = value
        if len(faults.writes) in faults.fails_at:
            kept = value[: len(value) // 2]
        if len(faults.writes) == faults.dies_at:
            super().pipe_file(path, value[: len(value) // 2])
            raise KeyboardInterrupt
        if faults.room is not None:
            used = sum(file.size for name, file in self.store.items() if name != path)
            kept = value[: max(faults.room - used, 0)]
        if faults.truncates and path.endswith(faults.truncates):
            super().pipe_file(path, value[: len(value) // 2])
            return
        super().pipe_file(path, kept)
        if len(kept) < len(value):
            raise OSError(errno.ENOSPC if faults.room is not None else errno.EIO, "write failed")

    def cat_file(self, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        self._reach(path)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._reach(path)
        return super().find(path, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._reach(path)
        if self.faults.refuses_deletes:
            raise PermissionError(errno.EACCES, "access denied", path)
        super()._rm(self._strip_protocol(path))

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        """As s3fs does, which refuses a path below which there is nothing."""
        found = self.find(path)
        if not found:
            raise FileNotFoundError(path)
        for file in found:
            self.rm_file(file)

    def _reach(self, path: str) -> None:
        if self.faults.down:
            raise ConnectionError(f"no route to {path}")


def register() -> None:
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


class SlowFolder(DirFileSystem):
    """A store whose write number `holds_at` stops half way, and says so by the file `half`."""

    protocol = "slow"
    cachable = False
    folder: ClassVar[Path]
    holds_at: ClassVar[int]
    writes: ClassVar[int]

    @classmethod
    def use(cls, folder: Path, holds_at: int = 0) -> None:
        cls.folder, cls.holds_at, cls.writes = folder, holds_at, 0
        fsspec.register_implementation("slow", cls, clobber=True)

    def __init__(self, **options: Any) -> None:
        super().__init__(path=str(self.folder), fs=LocalFileSystem(), **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **kwargs: Any) -> None:
        file = self.folder / path
        if not file.parent.is_dir():
            raise FileNotFoundError(path)
        type(self).writes += 1
        if self.writes == self.holds_at:
            file.write_bytes(value[: len(value) // 2])
            (self.folder / "half").touch()
            time.sleep(600)
        file.write_bytes(value)
