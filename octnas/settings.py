"""What all settings share: which of them are part of a fingerprint, and their former names."""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal

Executor = Literal["local", "ray"]
"""Where parallel work runs: in processes of this machine, or in Ray's workers."""

PRETRAINED = "timm"
"""timm's pretrained weights, where a setting may also name a file."""

HOW: Mapping[str, Any] = MappingProxyType({"how": True})
"""Metadata of a field that changes how a result is computed but not the result."""

LATER: Mapping[str, Any] = MappingProxyType({"later": True})
"""Metadata of a field added after the first runs: at its default it is not in a fingerprint."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "supernet.by_role": "supernet.switchable",
        "supernet.workers": "supernet.processes",
        "search.first_rung": "search.screening_fraction",
        "retrain.ranks": "retrain.processes",
        "data.rank_images": "data.search_val_images",
        "data.rank_per_class": "data.search_val_per_class",
    }
)
"""Current name of a setting by its former name."""

RENAMED_VALUES: Mapping[str, Mapping[Any, Any]] = MappingProxyType(
    {
        "supernet.teacher": {"dearest": "largest"},
        "retrain.baselines": {"growing": "increasing"},
    }
)
"""Current name of a value by its former name, by setting."""

REMOVED = ("search.proxies", "proxies")
"""Settings and sections that are accepted and ignored."""


IMPLIED = ("search.score", "retrain.weights")
"""Settings that say what a stage builds on, which its fingerprint notes itself."""


def rename_value(value: Any, names: Mapping[Any, Any]) -> Any:
    """A value, or the items of a list, under other names."""
    if isinstance(value, list):
        return [rename_value(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def with_current_names(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A stored fingerprint with the current names of its settings."""
    found = {
        RENAMED.get(key, key): value
        for key, value in fingerprint.items()
        if key not in IMPLIED and not key.removeprefix("input.").startswith(REMOVED)
    }
    return {key: rename_value(value, RENAMED_VALUES.get(key, {})) for key, value in found.items()}


def with_former_names(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A fingerprint as it was first stored; its digest does not change with a name."""
    keys = {new: old for old, new in RENAMED.items()}
    values = {
        key: {new: old for old, new in names.items()} for key, names in RENAMED_VALUES.items()
    }
    return {
        keys.get(key, key): rename_value(value, values.get(key, {}))
        for key, value in fingerprint.items()
    }


def flatten(settings: Any, prefix: str, *, later: bool = True) -> dict[str, Any]:
    """The settings that decide a result, by dotted key, as JSON values.

    Args:
        settings: a dataclass instance, possibly nested; fields marked with `HOW` are left out.
        prefix: first part of the keys, such as ``"supernet"``.
        later: whether to include fields marked with `LATER` at their default.
    """
    found: dict[str, Any] = {}
    for entry in fields(settings):
        if entry.metadata.get("how"):
            continue
        key, value = f"{prefix}.{entry.name}", getattr(settings, entry.name)
        if entry.metadata.get("later") and not later and value == entry.default:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            found.update(flatten(value, key, later=later))
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
