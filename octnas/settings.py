"""What all settings share: what is part of a fingerprint and what is not."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal

Executor = Literal["local", "ray"]
"""Where work is done side by side: in processes of this machine, or by Ray's workers."""

PRETRAINED = "timm"
"""The weights that timm has of a network, where a setting may also name a file."""

HOW: Mapping[str, Any] = MappingProxyType({"how": True})
"""Metadata of a field that says how a result is computed, not which."""

LATER: Mapping[str, Any] = MappingProxyType({"later": True})
"""Metadata of a field that runs were made without: at its default it is not in a fingerprint."""


def flatten(settings: Any, prefix: str) -> dict[str, Any]:
    """The settings that decide a result, by dotted key, as JSON values.

    Args:
        settings: a dataclass instance, possibly nested; fields marked with `HOW` are left out, and
            those marked with `LATER` at their default.
        prefix: what the keys begin with, such as ``"supernet"``.
    """
    found: dict[str, Any] = {}
    for entry in fields(settings):
        if entry.metadata.get("how"):
            continue
        key, value = f"{prefix}.{entry.name}", getattr(settings, entry.name)
        if entry.metadata.get("later") and value == entry.default:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            found.update(flatten(value, key))
        elif isinstance(value, tuple):
            found[key] = [_plain(item) for item in value]
        else:
            found[key] = value
    return found


def _plain(item: Any) -> Any:
    if not is_dataclass(item) or isinstance(item, type):
        return item
    new = {entry.name: entry.default for entry in fields(item) if entry.metadata.get("later")}
    return {key: value for key, value in asdict(item).items() if new.get(key, ...) != value}
