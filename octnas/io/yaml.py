"""YAML with line numbers and without its traps.

Only ``true`` and ``false`` are truth values (``off``, ``no`` and ``y`` are text), ``1e-3`` is a
number, and duplicate keys are errors.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from octnas.errors import ConfigError
from octnas.io.files import writable

Path = tuple[Any, ...]

_MAX_VALUES = 100_000


@dataclass
class Document:
    """A parsed file, with the line of each value.

    Attributes:
        name: name of the file, for messages.
        values: the parsed mapping.
        lines: line number (from 1) by path of keys and indices; None for an override.
    """

    name: str
    values: dict[str, Any]
    lines: dict[Path, int | None] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """File, line and dotted key of a value; for a missing one, the line of its section."""
        key = ".".join(map(str, path))
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        if line is None:
            return f"--set: {key}"
        return f"{self.name}:{line}: {key}" if key else f"{self.name}:{line}"

    def rename(self, old: Path, new: Path | None) -> bool:
        """Rename a key within its section, or remove it if ``new`` is None; whether it was there.

        Raises:
            ConfigError: the file has both keys.
        """
        holder: Any = self.values
        for key in old[:-1]:
            holder = holder.get(key)
            if not isinstance(holder, dict):
                return False
        if old[-1] not in holder:
            return False
        value, line = holder.pop(old[-1]), self.lines.pop(old, None)
        if new is not None:
            if new[-1] in holder and line is not None and self.lines.get(new) is not None:
                raise ConfigError(
                    f"{self.name}:{line}: {'.'.join(old)}: is the former name of "
                    f"{'.'.join(new)}, which is set in line {self.lines[new]}; remove one"
                )
            holder[new[-1]], self.lines[new] = value, line
        return True


class _Loader(Reader, Scanner, Parser, Composer, SafeConstructor, BaseResolver):
    """YAML 1.2's plain scalars, and no types that a settings file does not need."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        BaseResolver.__init__(self)


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", ["<"]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)

_PLAIN = [_TAG + name for name in ("bool", "float", "map", "null", "seq", "str")]
_Loader.yaml_constructors = {
    # Without a tag: what refuses all others.
    **{tag: SafeConstructor.yaml_constructors[tag] for tag in (*_PLAIN, None)},
    # YAML 1.1 reads a leading zero as octal.
    _TAG + "int": lambda loader, node: int(loader.construct_scalar(node)),
}


def parse_yaml(text: str, name: str) -> Document:
    """Parse an experiment file.

    Raises:
        ConfigError: the text is not valid YAML or not a mapping, or has a duplicate key.
    """
    document = Document(name, {})
    try:
        root = _compose(text)
        if root is None:
            return document  # empty, or comments only: defaults throughout
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
        ConfigError: no ``=``, a value that is not valid YAML, or a key below a scalar.
    """
    dotted, equals, text = override.partition("=")
    keys: Path = tuple(
        int(key) if key.isascii() and key.isdecimal() else key for key in dotted.strip().split(".")
    )
    if not equals or not dotted.strip() or "" in keys:
        raise ConfigError(f"--set: found {override!r}, allowed: section.key=value")
    value = None
    try:
        if root := _compose(text):
            _note_lines(root, (), Document("--set", {}), ())
            value = _construct(root)
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


def _compose(text: str) -> yaml.Node | None:
    return _Loader(text).get_single_node()


def _construct(root: yaml.Node) -> Any:
    # Through JSON, so that an override of a value does not change its aliases.
    return json.loads(json.dumps(_Loader("").construct_document(root)))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "…"


def _note_lines(
    node: yaml.Node, path: Path, document: Document, inside: tuple[yaml.Node, ...]
) -> None:
    """Note the line of each value; refuse duplicate keys and values that contain themselves."""
    document.lines[path] = node.start_mark.line + 1
    if len(document.lines) > _MAX_VALUES:
        # Aliases of aliases can expand to more than fits in memory.
        raise ConfigError(
            f"{document.name}: more than {_MAX_VALUES:,} values, aliases counted each time"
        )
    if isinstance(node, yaml.ScalarNode) and not writable(node.value):
        raise ConfigError(f"{document.place(path)}: found a character that is not valid in UTF-8")
    if node in inside:
        raise ConfigError(f"{document.place(path)}: an alias refers to a value that contains it")
    inside = (*inside, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*path, index), document, inside)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key, str) or not writable(key):
            raise ConfigError(f"{document.name}:{line}: found a key that is not text")
        if key in seen:
            raise ConfigError(
                f"{document.name}:{line}: {'.'.join(map(str, (*path, key)))}: duplicate key, "
                f"first in line {seen[key]}"
            )
        seen[key] = line
        _note_lines(value_node, (*path, key), document, inside)
        document.lines[(*path, key)] = line
