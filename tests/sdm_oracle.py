"""SDM written straight from its definition, one row at a time, for autograd to differentiate."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from service.losses.sdm import SdmForm, SdmRows, sdm_rows


class SdmInput(NamedTuple):
    """Arguments of `sdm_rows` but for the form."""

    query: Tensor
    gallery: Tensor
    memory: Tensor | None
    query_class: Tensor
    gallery_class: Tensor
    memory_class: Tensor | None

    def rows(self, form: SdmForm) -> SdmRows:
        return sdm_rows(*self, form)


def random_input(
    seed: int,
    sizes: tuple[int, int, int] = (9, 13, 11),
    dim: int = 8,
    classes: tuple[int, int] = (-1, 5),
    dtype: torch.dtype = torch.float64,
) -> SdmInput:
    """B, G, M unit rows; query classes reach two further than the columns', so some are alone."""
    generator = torch.Generator().manual_seed(seed)

    def unit(n: int) -> Tensor:
        return F.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)

    def draw(n: int, low: int, high: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=generator)

    low, high = classes
    b, g, m = sizes
    return SdmInput(
        unit(b).requires_grad_(),
        unit(g).requires_grad_(),
        unit(m),
        draw(b, 0, high + 2),
        draw(g, low, high),
        draw(m, low, high),
    )


def oracle(data: SdmInput, form: SdmForm) -> Tensor:
    """[B] losses by the definition: target, softmax, divergence; 0 where there is no positive."""
    columns, classes = data.gallery, data.gallery_class
    if data.memory is not None and data.memory_class is not None:
        columns = torch.cat([columns, data.memory])
        classes = torch.cat([classes, data.memory_class])
    columns, classes = columns[classes >= 0], classes[classes >= 0]
    queries = zip(data.query, data.query_class, strict=True)
    return torch.stack([_row(columns @ query, classes == own, form) for query, own in queries])


def _row(cosines: Tensor, same: Tensor, form: SdmForm) -> Tensor:
    if not same.any():
        return cosines.sum() * 0.0
    target = same.to(cosines.dtype) / same.sum()
    log_p = F.log_softmax(form.logit_scale * cosines, dim=0)
    if form.name == "ce":
        return -(target * log_p).sum()
    return (log_p.exp() * (log_p - (target + form.eps).log())).sum()
