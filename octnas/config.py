"""An experiment file into checked settings, with errors that name file, line and key.

The experiments that come with octnas.

Paths of an experiment that mean the same from any folder and on Ray's workers.

Passwords in URLs: a run directory leaves them out, the environment gives them again.
"""

import difflib
import json
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from octnas.cluster.settings import RaySettings
from octnas.data.settings import SOURCES, DigitsSettings, ImagesSettings, cache_folder
from octnas.errors import ConfigError, OctnasError, SettingError, require, require_seed
from octnas.export.settings import ExportSettings
from octnas.io.credentials import HIDDEN, redact_all
from octnas.io.files import expand_home, read_regular
from octnas.io.yaml import Document, parse_override, parse_yaml
from octnas.search.settings import SearchSettings
from octnas.settings import HOW, PRETRAINED
from octnas.space.architecture import MOST, StrideMode
from octnas.space.budgets import BudgetSettings
from octnas.space.latency import LatencyUse
from octnas.tracking.settings import TrackingSettings
from octnas.training.settings import (
    RankingSettings,
    RetrainSettings,
    SupernetSettings,
)

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
            self.search.screening_fraction == 1 or upper,
            "search",
            self.search.screening_fraction,
            f"screening_fraction: 1, or budgets on {self.objective} alone and without min_share",
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


def shipped_experiments() -> list[Path]:
    """The shipped YAML files, sorted by name.

    An installed package holds them; in a checkout they stand beside the package.

    Raises:
        OctnasError: neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if found := sorted(folder.glob("*.yaml")):
            return found
    raise OctnasError("the shipped experiments are missing; install octnas again")


def default_experiment() -> Path:
    """The experiment that needs no data of one's own: cluttered digits."""
    return next(path for path in shipped_experiments() if path.stem == "digits")


def absolute(path: str, key: str) -> str:
    """The path of a setting, meaning the same from any folder; none stays none.

    Raises:
        ConfigError: in the home of a user who has none.
    """
    return str(expand_home(path, key).absolute()) if path else ""


def resolved_paths(config: RunConfig) -> RunConfig:
    """Paths that mean the same from any folder.

    Raises:
        ConfigError: in the home of a user who has none.
    """
    truth_from = absolute(config.ranking.truth_from, "ranking.truth_from")
    table = absolute(config.latency.table, "latency.table")
    weights = config.supernet.weights
    config = replace(
        config,
        ranking=replace(config.ranking, truth_from=truth_from),
        latency=replace(config.latency, table=table),
        supernet=replace(
            config.supernet,
            weights=weights if weights == PRETRAINED else absolute(weights, "supernet.weights"),
        ),
    )
    data = config.data
    if not isinstance(data, ImagesSettings):
        return config
    root = absolute(data.root, "data.root")
    kind, _, path = data.name.partition("/")
    # A name on a hub stays as it is.
    name = f"{kind}/{Path(path).absolute()}" if path and Path(path).is_dir() else data.name
    cache = data.cache
    if cache.enabled:
        # Ray's workers have another home.
        cache = replace(cache, folder=str(cache_folder(data)))
    return replace(config, data=replace(data, root=root, name=name, cache=cache))


STORAGE_VARIABLE = "OCTNAS_STORAGE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


def with_passwords(config: RunConfig) -> RunConfig:
    """The URLs of study and tracking, from the environment where it gives them.

    Raises:
        ConfigError: a password was left out, and the environment does not give it.
    """
    url = config.search.storage or os.environ.get(STORAGE_VARIABLE, "")
    storage = _whole("search.storage", url, STORAGE_VARIABLE)
    uri = _whole("tracking.uri", config.tracking.uri, TRACKING_VARIABLE)
    return replace(
        config,
        search=replace(config.search, storage=storage),
        tracking=replace(config.tracking, uri=uri),
    )


def _whole(key: str, url: str, variable: str) -> str:
    """A URL with its password, which a run directory leaves out.

    Raises:
        ConfigError: it was left out, and the environment does not give it.
    """
    if HIDDEN not in url:
        return url
    if not os.environ.get(variable):
        raise ConfigError(
            f"{key}: found {url!r}, whose password was left out of the run directory; "
            f"set the whole URL in the environment variable {variable}"
        )
    return os.environ[variable]
