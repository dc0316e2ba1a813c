"""How a chart is laid out: shapes stretch with the page, letters and lines keep their size."""

from service.watching.markup import Child, Element, element

WIDTH = 3000
"""Units of a canvas from the first moment to the last; the browser stretches them to the chart."""
FINE = 5
"""Units of a canvas in a pixel of its height."""
_EDGE = 0.03


def canvas(height: int, top: int, *shapes: Child) -> Element:
    """Shapes in `WIDTH` by `FINE` a pixel of the height; it begins at `top` pixels."""
    return element(
        "svg",
        *shapes,
        class_="canvas",
        y=top,
        width="100%",
        height=height,
        viewBox=f"0 0 {WIDTH} {height * FINE}",
        preserveAspectRatio="none",
    )


def across(place: float) -> str:
    """A place from 0 to 1 as part of a chart's width."""
    return f"{100 * place:.2f}%"


def anchored(place: float) -> str:
    """Words lie around their place, but at the edges inside of the chart."""
    return "start" if place < _EDGE else "end" if place > 1 - _EDGE else "middle"
