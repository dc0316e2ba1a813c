"""Whether a step of the loop would make the host wait for the device, seen without a GPU.

On the CPU nothing waits, but the calls that would wait on a GPU are known: those whose answer the
host needs before it can go on, and copies that were not told to go on. Two modes of torch see them:
one every operator, also inside autograd and the optimiser; the other the calls that read or copy a
tensor without an operator when everything is on the CPU.
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense",  # item(), float(), int(), bool(), if tensor:
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "bincount",
}
"""Operators whose result, or its shape, the host has to know."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""By a mask they count its True values first."""

READING = {
    Tensor.tolist: "tolist",
    Tensor.cpu: "cpu",
    Tensor.equal: "equal",
    torch.equal: "equal",
    Tensor.allclose: "allclose",
    torch.allclose: "allclose",
}
"""Calls whose answer lies on the host. `numpy` is not among them: on a device tensor it raises."""

Place = str | torch.device
_FROM_NUMPY = torch.from_numpy
Note = Callable[[str, tuple[Any, ...]], None]


class Waits:
    """While entered, notes (step, what, where) of every call that would wait for the device.

    step: the step that runs, set by whoever drives. host: tensors that live on the host on purpose,
    known by identity, as are those made from arrays; reading them waits for nothing.
    """

    def __init__(self, host: Iterable[Tensor] = ()) -> None:
        self.step = 0
        self.seen: list[tuple[int, str, str]] = []
        self._host = {id(tensor): tensor for tensor in host}
        self._modes = (_Operators(self._note), _Calls(self._note, self._host))
        self._arrays = patch.object(torch, "from_numpy", self._from_numpy)

    def at(self, steps: Iterable[int]) -> list[tuple[int, str, str]]:
        wanted = set(steps)
        return [wait for wait in self.seen if wait[0] in wanted]

    def __enter__(self) -> "Waits":
        self._arrays.start()
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)
        self._arrays.stop()

    def _from_numpy(self, array: Any) -> Tensor:
        tensor = _FROM_NUMPY(array)
        self._host[id(tensor)] = tensor
        return tensor

    def _note(self, what: str, args: tuple[Any, ...]) -> None:
        if not args or id(args[0]) not in self._host:
            self.seen.append((self.step, what, _where()))


class _Operators(TorchDispatchMode):
    def __init__(self, note: Note) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: Mapping[str, Any] = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITING:
            self._note(name, args)
        elif name in INDEXING and any(_is_mask(index) for index in args[1]):
            self._note(f"{name} by a mask", args)
        elif name == "repeat_interleave" and given.get("output_size") is None:
            self._note("repeat_interleave of unknown length", args)
        return func(*args, **given)


class _Calls(TorchFunctionMode):
    def __init__(self, note: Note, host: dict[int, Tensor]) -> None:
        super().__init__()
        self._note = note
        self._host = host

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given: Mapping[str, Any] = kwargs or {}
        if func in READING:
            self._note(READING[func], args)
        elif func in (torch.tensor, torch.as_tensor) and given.get("device") is not None:
            self._note("a new tensor copied to the device", ())
        elif func is Tensor.to and self._is_blocking_move(args, given):
            self._note("to(device) without non_blocking", ())
        elif func is Tensor.copy_ and self._is_blocking_copy(args, given):
            self._note("copy_ without non_blocking", ())
        return func(*args, **given)

    def _is_blocking_move(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
        """To another place, except from host to host, which says "cpu" in so many words.

        Torch's own functions move only between devices.
        """
        place = given.get("device", args[1] if len(args) > 1 else None)
        if not isinstance(place, Place) or given.get("non_blocking") or _is_torchs_own():
            return False
        return not (place == "cpu" and id(args[0]) in self._host)

    def _is_blocking_copy(self, args: tuple[Any, ...], given: Mapping[str, Any]) -> bool:
        """Between the host and another tensor."""
        is_told = given.get("non_blocking", len(args) > 2 and args[2])
        return not is_told and sum(id(tensor) in self._host for tensor in args[:2]) == 1


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _is_torchs_own() -> bool:
    """Whether a function of torch, and not the product or a test, makes the call."""
    frames = [f for f in traceback.extract_stack() if f.filename != __file__]
    return "/torch/" in frames[-1].filename


def _where() -> str:
    """The innermost line of the product that made the call."""
    frames = [f for f in traceback.extract_stack() if "/service/" in f.filename]
    if not frames:
        return ""
    file = frames[-1].filename.split("/service/", 1)[1]
    return f"service/{file}:{frames[-1].lineno}"
