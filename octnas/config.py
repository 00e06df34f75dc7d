"""An experiment file into checked settings, with errors that name file, line and key."""

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from octnas.architecture import MOST, StrideMode
from octnas.budgets import BudgetSettings
from octnas.cluster.settings import RaySettings
from octnas.credentials import redact_all
from octnas.data.settings import SOURCES, DigitsSettings, ImagesSettings
from octnas.errors import ConfigError, SettingError, require, require_seed
from octnas.export.settings import ExportSettings
from octnas.files import read_regular
from octnas.latency import LatencyUse
from octnas.search.settings import SearchSettings
from octnas.settings import HOW
from octnas.tracking.settings import TrackingSettings
from octnas.training.retrain_settings import RetrainSettings
from octnas.training.settings import (
    ProxySettings,
    RankingSettings,
    SupernetSettings,
)
from octnas.yaml import Document, parse_override, parse_yaml

SCHEMA = 1
_SHOULD = "input should be "


def as_share(budget: object) -> object:
    """A budget that is a mere number as one on that share of vanilla's MACs."""
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    return {"share": budget} if number else budget


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """What is searched.

    Attributes:
        backbone: name of a timm ResNet.
        input_size: channels, height and width of the images.
        alphas: the α to choose from at every searchable site.
        budgets: bounds on MACs, activation memory or latency, a mere number being a share of the
            vanilla network's MACs; the search finds one network for each.
        backbone_args: keyword arguments for ``timm.create_model``; the number of classes is
            that of the data unless it is given here.
        fixed: α by site name pattern where there is nothing to choose; by default the paper's
            rule, the stem and the last stage at 0.
        channel_multiple: low channels are rounded down to a multiple of this.
        stride_mode: ``paper`` (average pooling for every stride, for training from scratch) or
            ``timm`` (timm's strides at α = 0, for pretrained weights).
    """

    backbone: str
    input_size: tuple[int, int, int]
    alphas: tuple[float, ...]
    budgets: tuple[Annotated[BudgetSettings, BeforeValidator(as_share)], ...]
    backbone_args: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, float] | None = None
    channel_multiple: int = 1
    stride_mode: StrideMode = "paper"

    def __post_init__(self) -> None:
        sides, allowed = self.input_size, f"1 to {MOST}"
        require(min(sides) >= 1 and max(sides) <= MOST, "input_size", sides, allowed)
        require(
            len(self.alphas) > 0 and all(0 <= alpha <= 1 for alpha in self.alphas),
            "alphas",
            self.alphas,
            "one or more numbers from 0 to 1",
        )
        require(len(self.budgets) > 0, "budgets", self.budgets, "one or more")
        names = [budget.name for budget in self.budgets]
        require(len(set(names)) == len(names), "budgets", names, "distinct budgets")
        multiple = self.channel_multiple
        require(1 <= multiple <= MOST, "channel_multiple", multiple, allowed)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One complete experiment.

    Attributes:
        schema: version of this format.
        name: of the experiment; also of its run directory and its MLflow experiment.
        seed: of the supernet, its sampling and the search.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    schema: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    space: SpaceSettings
    data: Annotated[DigitsSettings | ImagesSettings, Field(discriminator="source")]
    supernet: SupernetSettings = field(default_factory=SupernetSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    retrain: RetrainSettings = field(default_factory=RetrainSettings)
    proxies: ProxySettings = field(default_factory=ProxySettings)
    ranking: RankingSettings = field(default_factory=RankingSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    latency: LatencyUse = field(default_factory=LatencyUse)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    seed: int = 0
    device: str = field(default="auto", metadata=HOW)

    @property
    def objective(self) -> str:
        """What the search makes small besides the loss: MACs, activation memory or latency."""
        bounded = {budget.cost for budget in self.space.budgets}
        if self.search.objective == "auto":
            return bounded.pop() if len(bounded) == 1 else "macs"
        return self.search.objective

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        images = self.data.source != "digits"
        given = self.retrain.augment
        require(given is None or images, "retrain", given, "augment: null with data.source: digits")
        learns = self.supernet.sampling == "learnable"
        require(
            learns or self.search.sampler != "learned",
            "search",
            self.search.sampler,
            "any other sampler, unless supernet.sampling is learnable",
        )
        bounded = [budget.cost for budget in self.space.budgets]
        require(
            "latency" not in bounded or bool(self.latency.table),
            "latency",
            self.latency.table,
            "a table of `octnas latency` in latency.table, for budgets on latency",
        )
        objective = self.search.objective
        require(
            objective in ("auto", "macs") or set(bounded) == {objective},
            "search",
            objective,
            f"auto, macs, or budgets on {objective} alone with search.objective {objective}",
        )
        # What is cheaper and better is no reason to pass over a network that has to cost more.
        upper = set(bounded) == {self.objective} and not any(
            b.min_share for b in self.space.budgets
        )
        require(
            self.search.first_rung == 1 or upper,
            "search",
            self.search.first_rung,
            f"first_rung: 1, or budgets on {self.objective} alone and without min_share",
        )
        require(
            not learns or set(bounded) == {"macs"},
            "space",
            bounded,
            "budgets on MACs, with supernet.sampling learnable",
        )


_ADAPTER = TypeAdapter(RunConfig)


def load_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read an experiment file without checking its settings.

    Args:
        path: of the YAML file.
        overrides: ``section.key=value``, the value in YAML.

    Raises:
        ConfigError: it cannot be read or is not YAML.
    """
    try:
        text = read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    document = parse_yaml(text, str(path))
    for override in overrides:
        parse_override(override, document)
    return document


def check_config(document: Document) -> RunConfig:
    """Settings from a parsed document.

    Raises:
        ConfigError: one line for each mistake: file, line, key, what was found, what is allowed.
    """
    problems = list(_unknown_keys(document, RunConfig, document.values, ()))
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        # Strict, so that true is no number; and as JSON, whose lists may become tuples.
        return _ADAPTER.validate_json(json.dumps(document.values), strict=True)
    except ValidationError as error:
        # Of a value that may have several types, there is a problem with each.
        lines: dict[str, dict[str, None]] = {}
        for problem in error.errors():
            value, wrong = _describe(document, problem)
            lines.setdefault(value, {})[wrong] = None
        raise ConfigError("\n".join(map(_one_line, lines, lines.values()))) from None


def resolved(config: RunConfig) -> dict[str, Any]:
    """All settings, defaults included, as plain YAML values."""
    return dict(_ADAPTER.dump_python(config, mode="json"))


def _unknown_keys(document: Document, kind: Any, value: Any, where: tuple[Any, ...]) -> Any:
    """A line for every key that its section does not have, with the nearest that it has."""
    kind = _section(kind, value)
    if get_origin(kind) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_keys(document, get_args(kind)[0], item, (*where, index))
    if not is_dataclass(kind) or not isinstance(value, Mapping):
        return
    hints = get_type_hints(kind, include_extras=True)
    known = [entry.name for entry in fields(kind)]
    for key, item in value.items():
        if key in known:
            yield from _unknown_keys(document, hints[key], item, (*where, key))
            continue
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
        yield f"{document.place((*where, key))}: unknown key; {hint}"


def _section(kind: Any, value: Any) -> Any:
    """The dataclass or tuple that a type stands for, given the value's ``source``."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if is_dataclass(option)]
        source = value.get("source") if isinstance(value, Mapping) else None
        matching = [o for o in options if source in get_args(get_type_hints(o).get("source"))]
        return matching[0] if matching else None
    return kind


def _one_line(value: str, wrong: Iterable[str]) -> str:
    first, *others = wrong
    return value + ", or ".join([first, *(one.removeprefix(_SHOULD) for one in others)])


def _describe(document: Document, problem: Mapping[str, Any]) -> tuple[str, str]:
    """One validation error as the beginning and the end of a line: the value, what is wrong."""
    where = [part for part in problem["loc"] if part not in ("digits", *SOURCES)]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        key = [] if cause.key == "budget" else [cause.key]
        value = f"{document.place((*where, *key))}: found {_show(cause.found)}, "
        return value, f"allowed: {cause.allowed}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{document.place(tuple(where))}: ", "missing"
    if len(where) > 1 and _is_plain(document.values, where[:-1]):
        # The last part is the name of a type: a plain value holds no keys.
        where = where[:-1]
    message = problem["msg"][0].lower() + problem["msg"][1:]
    note = " (only true and false are truth values)" if problem["type"] == "bool_type" else ""
    value = f"{document.place(tuple(where))}: found {_show(problem['input'])}, "
    return value, f"{message}{note}"


def _is_plain(value: Any, path: Sequence[Any]) -> bool:
    """Whether a path leads to a number, text or the like."""
    for key in path:
        if not isinstance(value, dict | list):
            return False
        value = value[key]
    return not isinstance(value, dict | list)


def _show(value: Any) -> str:
    # Before anything is cut off: half a URL is not recognised as one any more.
    value = redact_all(value)
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."
