"""File stores by URL, through fsspec: opened, and their clients' errors made ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.errors import CrossReidError, DataError
from service.redaction import shown_url, told_of

Kind = type[CrossReidError]


def open_store(url: str, kind: Kind = DataError) -> tuple[AbstractFileSystem, str]:
    """The file system that `url` names, and the folder's path in it.

    Raises:
        kind: for an unknown or not installed protocol, or an unreachable store.
    """
    with reaching(url, kind):
        return url_to_fs(url)


def is_local(url: str, kind: Kind = DataError) -> bool:
    """Whether `url` names a folder of this machine.

    Raises:
        kind: as `open_store`.
    """
    return isinstance(open_store(url, kind)[0], LocalFileSystem)


@contextmanager
def reaching(url: str, kind: Kind = DataError) -> Iterator[None]:
    """Turns whatever a store's client raises into a `kind` that names the URL, without secrets."""
    try:
        yield
    except CrossReidError:
        raise
    except Exception as error:
        # Every store's client has exceptions of its own, so no narrower class names them all.
        raise kind(
            f"cannot reach {shown_url(url)}: {type(error).__name__}: {told_of(error, url)}; check "
            "the address, the credentials, free disk space, and that the client for this protocol "
            "is installed"
        ) from error
