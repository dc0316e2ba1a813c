"""What all charts of a page share: the span and its time axis, the trials, the decisions."""

from dataclasses import dataclass
from datetime import tzinfo

from service.watching.canvas import across, anchored
from service.watching.clock import time_ticks
from service.watching.marks import Mark
from service.watching.markup import Element, element
from service.watching.span import Span


@dataclass(frozen=True, slots=True)
class Frame:
    """The span, the zone whose clock is shown, the trials in order, and the decisions in time."""

    span: Span
    zone: tzinfo
    trials: tuple[str, ...]
    marks: tuple[Mark, ...]


def time_axis(frame: Frame, top: float) -> list[Element]:
    """Round moments with their words, below a chart that ends at `top` pixels."""
    drawn = []
    for tick in time_ticks(frame.span.start, frame.span.end, frame.zone):
        place, size = frame.span.place(tick.time), f" {tick.size}".rstrip()
        x, anchor = across(place), anchored(place)
        drawn.append(element("line", class_=f"tick{size}", x1=x, x2=x, y1=top, y2=top + 4))
        drawn.append(
            element("text", tick.words, class_=f"time{size}", x=x, y=top + 16, text_anchor=anchor)
        )
    return drawn
