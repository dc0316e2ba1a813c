"""The words that commands and jobs take, as values."""

from service.errors import ConfigError


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels from HEIGHTxWIDTH.

    Raises:
        ConfigError: for anything else.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"image size {text!r} must look like 384x128, height first")
    return int(parts[0]), int(parts[1])


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The config file and the overrides among positional words.

    Raises:
        ConfigError: two files.
    """
    overrides = [word for word in words if "=" in word]
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise ConfigError(
            f"expected one config, found {', '.join(files)}; overrides look like section.setting=1"
        )
    return (files[0] if files else None), overrides


def take_option(words: list[str], name: str) -> tuple[list[str], str | None]:
    """`words` without the option `name` and its value, and that value; None without it.

    Raises:
        ConfigError: the value is missing.
    """
    if name not in words:
        return words, None
    at = words.index(name)
    if at + 1 == len(words):
        raise ConfigError(f"{name} needs a value")
    return words[:at] + words[at + 2 :], words[at + 1]


def take_flag(words: list[str], name: str) -> tuple[list[str], bool]:
    """`words` without the word `name`, and whether it was there."""
    return [word for word in words if word != name], name in words
