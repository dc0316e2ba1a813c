"""Reading a config: a YAML file, the file that it `extends:`, and dotted overrides, last one wins.

`extends:` names one file, relative to the file that says it. The overrides `a.b=c` serve the
command line, job specs and Tune samples alike. Unknown and duplicate keys are errors that name
their path.
"""

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from service.config import Config, Section
from service.errors import ConfigError

_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What PyYAML raises, besides its own errors, for a value that cannot be what it looks like."""


class _Loader(yaml.SafeLoader):
    """Safe YAML: duplicate keys are refused, 1e-5 is a number, whole numbers fit 64 bits."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            at = f"{key_node.start_mark.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key, Hashable):
                raise ConfigError(f"{at}: a key must be a name; found {key!r}")
            if key in seen:
                raise ConfigError(f"{at}: key {key!r} stands twice")
            seen.add(key)
        return cast(dict[Any, Any], super().construct_mapping(node, deep=deep))

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{node.value[:20]}... is a number of more than 64 bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The config in the YAML file `path`, with `a.b=c` overrides applied in order.

    Raises:
        ConfigError: naming the file, the path of the setting, what was found and what fits.
    """
    return _validated(_read(Path(path), ()), overrides, str(path))


def load_text(text: str, overrides: Iterable[str] = (), name: str = "config") -> Config:
    """The config in a YAML text that extends nothing."""
    return _validated(_parsed(text, name), overrides, name)


def override(config: Config, overrides: Iterable[str]) -> Config:
    """`config` with `a.b=c` overrides applied in order."""
    return _validated(config.model_dump(mode="python"), overrides, "config")


def known_settings() -> list[str]:
    """Every dotted setting name, sections left out."""
    return sorted(_names(Config, ""))


def _names(section: type[Section], prefix: str) -> Iterable[str]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _names(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        path = path.resolve()
        if path in seen:
            raise ConfigError(f"{path} extends itself through {seen[-1]}; remove one `extends:`")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot read config {path}: {error}") from error
    values = _parsed(text, str(path))
    base = values.pop("extends", None)
    if base is None:
        return values
    return _merged(_read(path.parent / str(base), (*seen, path)), values)


def _parsed(text: str, name: str) -> dict[str, Any]:
    values = _value(text, name, name)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must hold sections such as `data:`, found {type(values)}")
    return cast(dict[str, Any], values)


def _value(text: str, name: str, where: str) -> Any:
    """The value of a YAML text; marks call it `name`, messages `where`."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    except _UNREADABLE as error:
        raise ConfigError(
            f"{where} holds a value that cannot be read: {error}; put quotes around text that "
            "looks like a date or a number"
        ) from error


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `top` laid over it, section by section; lists are replaced whole."""
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            result[key] = _merged(cast(dict[str, Any], below), cast(Mapping[str, Any], value))
        else:
            result[key] = value
    return result


def _override(text: str) -> dict[str, Any]:
    """The nested mapping that `a.b=c` stands for; `c` is read as YAML."""
    name, sign, raw = text.partition("=")
    keys = name.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(f"override {text!r} must look like section.setting=value")
    value = _value(raw, "value", f"override {text[:100]!r}")
    if keys[:2] == ["tune", "space"] and len(keys) > 2:
        keys = ["tune", "space", ".".join(keys[2:])]
    for key in reversed(keys):
        value = {key: value}
    return cast(dict[str, Any], value)


def _validated(values: dict[str, Any], overrides: Iterable[str], name: str) -> Config:
    for text in overrides:
        values = _merged(values, _override(text))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explained(dict(item)) for item in error.errors()]
        raise ConfigError(f"{name} is not a valid config:\n  " + "\n  ".join(lines)) from None


def _explained(item: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, _all_names(), n=1, cutoff=0.6)
        last = [n for n in _all_names() if n.rpartition(".")[2] == path.rpartition(".")[2]]
        hint = f"; did you mean {(near or last)[0]!r}?" if near or last else ""
        return f"{path}: unknown setting{hint}"
    if item["type"] == "missing":
        return f"{path}: missing; it has no default"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{path}: {message}; found {item['input']!r}"[:400]


def _all_names() -> list[str]:
    names = known_settings()
    sections = {n.rsplit(".", depth)[0] for n in names for depth in (1, 2, 3)}
    return sorted(sections.union(names))
