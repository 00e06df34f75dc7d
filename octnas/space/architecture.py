"""An architecture: everything that makes one octave network, and its identity."""

import copy
import hashlib
import json
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from octnas.errors import ArchitectureError
from octnas.io.files import read_json

SCHEMA = 1

StrideMode = Literal["paper", "timm"]
STRIDE_MODES: tuple[StrideMode, ...] = get_args(StrideMode)

MOST = 65_536
"""The largest image side in pixels, and the largest number and multiple of channels."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network apart from its weights.

    Attributes:
        backbone: name of a timm model, such as ``"resnet50"``.
        input_size: ``(channels, height, width)`` of one image.
        alphas: octave ratio by site, each in [0, 1]; other sites are at 0.
        backbone_args: keyword arguments for ``timm.create_model``; JSON values only.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: of stride-2 convolutions, see `octnas.nn.conv.OctaveConv2d`.

    Raises:
        ArchitectureError: a value of another type or out of range.
    """

    backbone: str
    input_size: tuple[int, int, int]
    alphas: Mapping[str, float]
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    channel_multiple: int = 1
    stride_mode: StrideMode = "timm"

    def __post_init__(self) -> None:
        self._check()
        # Adding 0.0 turns -0.0, which is equal but written differently, into 0.0.
        ordered = {site: float(alpha) + 0.0 for site, alpha in sorted(self.alphas.items())}
        object.__setattr__(self, "alphas", MappingProxyType(ordered))
        object.__setattr__(self, "backbone_args", MappingProxyType(_as_json(self.backbone_args)))
        object.__setattr__(self, "input_size", tuple(self.input_size))

    def _check(self) -> None:
        size, alphas = self.input_size, self.alphas
        fits = {
            "backbone": isinstance(self.backbone, str),
            "backbone_args": isinstance(self.backbone_args, Mapping),
            "input_size": isinstance(size, list | tuple)
            and len(size) == 3
            and all(type(side) is int and side > 0 for side in size),
            "alphas": isinstance(alphas, Mapping)
            and all(
                isinstance(site, str)
                and isinstance(alpha, int | float)
                and not isinstance(alpha, bool)
                for site, alpha in alphas.items()
            ),
            "channel_multiple": type(self.channel_multiple) is int,
            "stride_mode": isinstance(self.stride_mode, str),
        }
        for key, right in fits.items():
            if not right:
                raise ArchitectureError(f"architecture key {key!r}: found {getattr(self, key)!r}")
        check_alphas(alphas, alphas)
        for key, found in (("channel_multiple", self.channel_multiple), ("input_size", max(size))):
            if not 1 <= found <= MOST:
                raise ArchitectureError(f"{key}: found {reprlib.repr(found)}, allowed: 1 to {MOST}")
        if self.stride_mode not in STRIDE_MODES:
            raise ArchitectureError(
                f"stride_mode: found {self.stride_mode!r}, allowed: {', '.join(STRIDE_MODES)}"
            )

    def __eq__(self, other: object) -> bool:
        # Like the id: 1, 1.0 and True are equal in Python, but differ in JSON.
        return isinstance(other, Architecture) and self._canonical() == other._canonical()

    def __hash__(self) -> int:
        return hash(self._canonical())

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled.
        return (Architecture.from_dict, (self.to_dict(),))

    @property
    def id(self) -> str:
        """The first 12 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self._canonical().encode()).hexdigest()[:12]

    def _canonical(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        """The architecture as a JSON document with a schema version."""
        return {
            "schema": SCHEMA,
            "backbone": self.backbone,
            "backbone_args": copy.deepcopy(dict(self.backbone_args)),
            "input_size": list(self.input_size),
            "alphas": dict(self.alphas),
            "channel_multiple": self.channel_multiple,
            "stride_mode": self.stride_mode,
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "Architecture":
        """Read what `to_dict` wrote.

        Raises:
            ArchitectureError: unknown schema version, missing or unknown keys, or values as above.
        """
        if not isinstance(document, Mapping):
            raise ArchitectureError(
                f"architecture: found {type(document).__name__}, allowed: a JSON object"
            )
        schema = document.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            raise ArchitectureError(f"architecture schema: found {schema!r}, allowed: {SCHEMA}")
        keys = [field.name for field in fields(Architecture)]
        if wrong := set(document) ^ {"schema", *keys}:
            raise ArchitectureError(
                f"architecture: missing or unknown keys {', '.join(sorted(map(str, wrong)))}; "
                f"allowed: exactly schema, {', '.join(keys)}"
            )
        return Architecture(**{key: document[key] for key in keys})

    def save(self, path: str | Path) -> None:
        """Write the architecture as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Architecture":
        """Read an architecture file.

        Raises:
            ArchitectureError: the file is missing, is not JSON, or does not hold an architecture.
        """
        return read_json(Path(path), Architecture, error=ArchitectureError, remedy="")


def _as_json(args: Mapping[str, Any]) -> dict[str, Any]:
    """A copy by way of JSON: tuples become lists."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(args), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArchitectureError(f"backbone_args: found {dict(args)!r}: {error}") from None
    return copied


def check_alpha(site: str, alpha: float) -> None:
    """Raise `ArchitectureError` unless an octave ratio is in [0, 1]."""
    if not 0.0 <= alpha <= 1.0:
        raise ArchitectureError(f"α of site {site!r}: found {alpha}, allowed: 0 to 1")


def check_alphas(alphas: Mapping[str, float], sites: Collection[str]) -> None:
    """Refuse α by site that a network with these sites cannot have.

    Raises:
        ArchitectureError: an unknown site, or α outside [0, 1].
    """
    if unknown := sorted(set(alphas) - set(sites)):
        raise ArchitectureError(f"unknown sites {', '.join(unknown)}; allowed: {', '.join(sites)}")
    for site, alpha in alphas.items():
        check_alpha(site, alpha)
