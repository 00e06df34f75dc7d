"""YAML with line numbers and without its traps.

Only ``true`` and ``false`` are truth values (``off``, ``no`` and ``y`` are text), ``1e-3`` is a
number, and a key that stands twice is refused.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from octnas.errors import ConfigError
from octnas.io.files import writable

Path = tuple[Any, ...]

_MOST = 100_000


@dataclass
class Document:
    """A parsed file, with where each value stands.

    Attributes:
        name: of the file, for messages.
        values: the parsed mapping.
        lines: line number (from 1) by path of keys and indices; None for an override.
    """

    name: str
    values: dict[str, Any]
    lines: dict[Path, int | None] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """File, line and dotted key of a value; the line of what holds it if it is absent."""
        key = ".".join(map(str, path))
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        if line is None:
            return f"--set: {key}"
        return f"{self.name}:{line}: {key}" if key else f"{self.name}:{line}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars instead of 1.1's."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+0123456789."),
)


# No other types than a settings file needs: no binary data, sets or dates.
_PLAIN = ("bool", "float", "int", "map", "null", "seq", "str")
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[1] in _PLAIN
}


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # A leading zero is no octal number here, as it was in YAML 1.1.
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, name: str) -> Document:
    """Parse an experiment file.

    Raises:
        ConfigError: it is not YAML, not a mapping, or a key stands twice.
    """
    document = Document(name, {})
    try:
        root = _compose(text)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{name}:1: found no settings, allowed: a mapping of sections")
        _note_lines(root, (), document, ())
        document.values = _construct(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = 1 if mark is None else mark.line + 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML: {_one_line(error)}") from None
    return document


def parse_override(override: str, document: Document) -> None:
    """Apply one ``section.key=value`` to a document, in place.

    Raises:
        ConfigError: no ``=``, a value that is not YAML, or a key below a plain value.
    """
    dotted, equals, text = override.partition("=")
    keys: Path = tuple(
        int(key) if key.isascii() and key.isdecimal() else key for key in dotted.strip().split(".")
    )
    if not equals or not dotted.strip() or "" in keys:
        raise ConfigError(f"--set: found {override!r}, allowed: section.key=value")
    try:
        value = _parse_value(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set: {dotted}: not valid YAML: {_one_line(error)}") from None
    holder: Any = document.values
    for key in keys[:-1]:
        if isinstance(holder, dict):
            holder = holder.setdefault(key, {})
        elif isinstance(holder, list) and isinstance(key, int) and key < len(holder):
            holder = holder[key]
        else:
            raise ConfigError(f"--set: {dotted}: {key!r} is not a section")
    try:
        holder[keys[-1]] = value
    except (TypeError, IndexError):
        raise ConfigError(f"--set: {dotted}: {keys[-1]!r} is not a key of a section") from None
    for path in [path for path in document.lines if path[: len(keys)] == keys]:
        del document.lines[path]
    for length in range(1, len(keys) + 1):
        document.lines.setdefault(keys[:length], None)


def _parse_value(text: str) -> Any:
    """The value of an override, checked as a file's."""
    if (root := _compose(text)) is None:
        return None
    _note_lines(root, (), Document("--set", {}), ())
    return _construct(root)


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _construct(root: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "…"


def _note_lines(
    node: yaml.Node, path: Path, document: Document, inside: tuple[yaml.Node, ...]
) -> None:
    """Note where each value stands; refuse keys that stand twice, and values inside themselves."""
    document.lines[path] = node.start_mark.line + 1
    if len(document.lines) > _MOST:
        # Aliases of aliases: a line may stand for more than any memory holds.
        raise ConfigError(f"{document.name}: more than {_MOST:,} values, aliases counted each time")
    if isinstance(node, yaml.ScalarNode) and not writable(node.value):
        raise ConfigError(f"{document.place(path)}: found a character that no text may hold")
    if node in inside:
        raise ConfigError(f"{document.place(path)}: refers to what it stands in")
    inside = (*inside, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), document, inside)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[Hashable, int] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key, str) or not writable(key):
            raise ConfigError(f"{document.name}:{line}: found a key that is not text")
        if key in seen:
            raise ConfigError(
                f"{document.name}:{line}: {'.'.join(map(str, (*path, key)))}: stands twice, "
                f"first in line {seen[key]}; keep one"
            )
        seen[key] = line
        _note_lines(value_node, (*path, key), document, inside)
        document.lines[(*path, key)] = line
