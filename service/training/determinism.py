"""Kernels that give the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """While it lasts, what has no deterministic kernel is an error, if `enabled`.

    cuBLAS reads its setting when it is first used in a process, so nothing may have computed on a
    GPU before.
    """
    if not enabled:
        yield
        return
    with ExitStack() as before:
        before.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        cudnn = torch.backends.cudnn
        before.enter_context(
            cudnn.flags(
                enabled=cudnn.enabled,
                benchmark=False,
                deterministic=True,
                allow_tf32=cudnn.allow_tf32,
            )
        )
        if _CUBLAS not in os.environ:
            os.environ[_CUBLAS] = ":4096:8"
            before.callback(os.environ.pop, _CUBLAS, None)
        torch.use_deterministic_algorithms(True)
        yield
