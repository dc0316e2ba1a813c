"""HTML and SVG as trees, so that text from outside can never become markup."""

import re
from xml.etree import ElementTree

Element = ElementTree.Element

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not have."""

Child = Element | str | None


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element; None leaves a child or an attribute out.

    In an attribute's name `_` stands for `-`, and a last `_` for nothing, as in `class_`.
    """
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), _text(value))
    for child in children:
        if isinstance(child, str):
            _add_text(made, clean(child))
        elif child is not None:
            made.append(child)
    return made


def markup(root: Element) -> str:
    """The tree as text that a browser reads as HTML and an XML parser as XML.

    Elements that HTML never closes, such as `br`, must not be in it.
    """
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def clean(text: str) -> str:
    """`text` with a mark in place of each character that no page may have."""
    return _FORBIDDEN.sub("\ufffd", text)


def code_words(text: str) -> list[Child]:
    """Text in which backticks hold code."""
    parts = clean(text).split("`")
    return [element("code", part) if place % 2 else part for place, part in enumerate(parts)]


def _text(value: str | float) -> str:
    return clean(value) if isinstance(value, str) else f"{round(value, 2):g}"


def _add_text(made: Element, text: str) -> None:
    if len(made):
        made[-1].tail = (made[-1].tail or "") + text
    else:
        made.text = (made.text or "") + text
