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

from service.config import Config, Distribution, Section
from service.errors import ConfigError
from service.redaction import redacted

_SPACE = ("tune", "space")
_EXAMPLE = "optim.head_lr"
_MISPLACED = ("extra_forbidden", "model_type", "dict_type", "model_attributes_type")
"""pydantic's errors about what is no distribution, or lies where one should be."""
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


def given(overrides: Iterable[str], name: str) -> Any:
    """What the overrides say for the setting `name`; None when they leave it out.

    Raises:
        ConfigError: an override that cannot be read.
    """
    values: dict[str, Any] = {}
    for text in overrides:
        values = _merged(values, _override(text))
    found: Any = values
    for key in name.split("."):
        found = cast(Any, found).get(key) if isinstance(found, Mapping) else None
    return found


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


def _merged(
    base: dict[str, Any], top: Mapping[str, Any], at: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`base` with `top` laid over it, section by section.

    Lists are replaced whole, and so are distributions, of which two would contradict each other.
    at: the path of the section that both are.
    """
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping) and at != _SPACE:
            section = cast(dict[str, Any], below)
            result[key] = _merged(section, cast(Mapping[str, Any], value), (*at, key))
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
    for key in reversed(_space_keys(keys)):
        value = {key: value}
    return cast(dict[str, Any], value)


def _space_keys(keys: list[str]) -> list[str]:
    """The path with the dotted setting of `tune.space.a.b` or `tune.space.a.b.grid` as one key."""
    if tuple(keys[:2]) != _SPACE or len(keys) < 3:
        return keys
    kind = keys[-1:] if keys[-1] in Distribution.model_fields and len(keys) > 3 else []
    return [*_SPACE, ".".join(keys[2 : len(keys) - len(kind)]), *kind]


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
    if item["loc"][:2] == _SPACE and item["type"] in _MISPLACED:
        return _explained_distribution(path.removeprefix("tune.space").strip("."), item["input"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, _all_names(), n=1, cutoff=0.6)
        last = [n for n in _all_names() if n.rpartition(".")[2] == path.rpartition(".")[2]]
        hint = f"; did you mean {(near or last)[0]!r}?" if near or last else ""
        return f"{path}: unknown setting{hint}"
    if item["type"] == "missing":
        return f"{path}: missing; it has no default"
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith(f"{path}."):
        return message
    if item["type"] == "value_error" and isinstance(item["input"], Mapping | Section):
        return f"{path}: {message}"
    return redacted(f"{path}: {message}; found {item['input']!r}")[:400]


def _explained_distribution(name: str, found: Any) -> str:
    """How to write what stands at `name` under `tune.space` and is no distribution.

    found: a section with settings in it, a value without its kind, or an unknown kind's value.
    """
    kinds = Distribution.model_fields
    told = f"tune.space{f'.{name}' if name else ''}"
    setting = name or _EXAMPLE
    if setting not in known_settings() and setting.rpartition(".")[0] in known_settings():
        return f"{told}: unknown kind of distribution; it is one of {', '.join(kinds)}"
    while isinstance(found, Mapping) and found and not set(found) & set(kinds):
        inner, found = next(iter(cast(Mapping[str, Any], found).items()))
        setting = f"{setting}.{inner}"
    if setting not in known_settings():
        setting = next(iter(difflib.get_close_matches(setting, known_settings())), _EXAMPLE)
    right = f'tune.space={{"{setting}": {{"grid": [...]}}}}'
    return f"{told}: needs a dotted setting and its distribution, as in {right}"


def _all_names() -> list[str]:
    names = known_settings()
    sections = {n.rsplit(".", depth)[0] for n in names for depth in (1, 2, 3)}
    return sorted(sections.union(names))
