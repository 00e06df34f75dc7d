"""Read an experiment file into checked settings; errors name file, line and key."""

import difflib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from octnas.cluster.settings import RaySettings
from octnas.data.settings import DigitsSettings, ImagesSettings, cache_folder
from octnas.errors import (
    ConfigError,
    OctnasError,
    SettingError,
    SettingWarning,
    require,
    require_seed,
)
from octnas.export.settings import ExportSettings
from octnas.io.credentials import HIDDEN, redact_all
from octnas.io.files import expand_home, read_regular
from octnas.io.yaml import Document, parse_override, parse_yaml
from octnas.results.networks import PRUNED
from octnas.search.settings import SearchSettings
from octnas.settings import HOW, PRETRAINED, REMOVED, RENAMED, RENAMED_VALUES, rename_value
from octnas.space.architecture import MOST, StrideMode
from octnas.space.budgets import BudgetSettings
from octnas.space.latency import LatencyUse
from octnas.tracking.settings import TrackingSettings
from octnas.training.settings import (
    FINE_TUNE_RECIPE,
    ConvertSettings,
    OriginalSettings,
    RankingSettings,
    RetrainSettings,
    SupernetSettings,
)

_SHOULD = "input should be "


def as_share(budget: object) -> object:
    """A plain number as a budget on that share of the vanilla network's MACs."""
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    return {"share": budget} if number else budget


@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """Section ``space``: the networks to choose from, and the budgets.

    Attributes:
        backbone: name of a timm ResNet, or ``thumbnail_resnet`` for small images.
        input_size: channels, height and width of the images, in pixels.
        alphas: candidate values of α for every searchable site.
        budgets: upper bounds on MACs, activation memory, latency or peak memory, one or several at
            once; the search finds one network for each. A plain number is a share of the vanilla
            network's MACs.
        backbone_args: keyword arguments for ``timm.create_model``; ``num_classes`` is taken from
            the data unless given here.
        weights: the trained network that the run begins with: a file with timm's keys, or ``timm``
            for timm's pretrained weights (may be downloaded). Its channels are sorted, the networks
            start from it, and it teaches them. Empty to learn from scratch.
        classes: names of the classes in the order of that network's logits, where this is not the
            data's; empty if it is.
        fixed: α by site name pattern for sites that are not searched; null for the paper's rule,
            which keeps the stem and the last stage at 0.
        channel_multiple: low-resolution channels are rounded down to a multiple of this. Use 8 or
            16 for wide networks: hardware is slow on fewer channels.
        stride_mode: ``paper`` uses average pooling for every stride, for training from scratch;
            ``timm`` keeps timm's strides at α = 0, for pretrained weights, and is the default in
            runs that begin with a trained network.
    """

    backbone: str = "resnet50"
    input_size: tuple[int, int, int] = (3, 224, 224)
    alphas: tuple[float, ...] = (0.0, 0.125, 0.25, 0.5, 0.75)
    budgets: tuple[Annotated[BudgetSettings, BeforeValidator(as_share)], ...] = (
        BudgetSettings(uniform=0.5),
        BudgetSettings(uniform=0.25),
    )
    backbone_args: dict[str, Any] = field(default_factory=dict)
    weights: str = field(default="", metadata=HOW)  # a stage of its own notes its contents
    classes: tuple[str, ...] = field(default=(), metadata=HOW)
    fixed: dict[str, float] | None = None
    channel_multiple: int = 1
    stride_mode: StrideMode = "paper"

    def __post_init__(self) -> None:
        sides, allowed = self.input_size, f"1 to {MOST}"
        require(min(sides) >= 1 and max(sides) <= MOST, "input_size", sides, allowed)
        shares = len(self.alphas) > 0 and all(0 <= alpha <= 1 for alpha in self.alphas)
        require(shares, "alphas", self.alphas, "one or more numbers from 0 to 1")
        require(len(self.budgets) > 0, "budgets", self.budgets, "one or more")
        names = [budget.name for budget in self.budgets]
        require(len(set(names)) == len(names), "budgets", names, "distinct budgets")
        fits = not self.weights or self.stride_mode == "timm"
        require(fits, "stride_mode", self.stride_mode, "timm with space.weights")
        distinct = len(set(self.classes)) == len(self.classes)
        fits = not self.classes or (distinct and bool(self.weights))
        require(fits, "classes", self.classes, "distinct names, with space.weights")
        multiple = self.channel_multiple
        require(1 <= multiple <= MOST, "channel_multiple", multiple, allowed)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One complete experiment.

    Attributes:
        schema: version of the file format. Recipes in files with ``schema: 1`` keep the defaults
            of that version: 8 epochs, batches of 64, weight decay 5e-4, one warm-up epoch and no
            gradient clipping.
        name: name of the experiment, of its run directory and of its MLflow experiment; by default
            the name of the file.
        seed: random seed of the supernet, its sampling and the search.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    # Holds for all sections.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    schema: Literal[1, 2] = 2
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    space: SpaceSettings = field(default_factory=SpaceSettings)
    data: Annotated[DigitsSettings | ImagesSettings, Field(discriminator="source")] = field(
        default_factory=ImagesSettings
    )
    original: OriginalSettings | None = None
    convert: ConvertSettings = field(default_factory=ConvertSettings)
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
    def has_original(self) -> bool:
        """Whether the run begins with a trained network, given or trained by itself."""
        return bool(self.space.weights) or self.original is not None

    @property
    def trains_original(self) -> bool:
        """Whether the run trains the network itself that it begins with."""
        return self.original is not None and not self.space.weights

    def begins_with(self, stage: str) -> bool:
        """Whether ``supernet``, ``retrain`` or ``truth`` begins with the weights of the original.

        Or with those of a supernet that did.
        """
        scratch = stage != "supernet" and self.retrain.weights == "scratch"
        return self.has_original and stage in ("supernet", "retrain", "truth") and not scratch

    @property
    def scores_converted(self) -> bool:
        """Whether candidates are scored without a supernet."""
        score, learns = self.search.score, self.supernet.sampling == "learnable"
        return self.has_original and score != "supernet" and not (score == "auto" and learns)

    @property
    def rescales(self) -> bool:
        """Whether the supernet rescales the original's kernels; not where α is learned."""
        return self.has_original and self.supernet.sampling != "learnable"

    @property
    def teacher(self) -> float | str:
        """What the supernet learns from, see `SupernetSettings.teacher`."""
        if self.supernet.teacher != "auto":
            return self.supernet.teacher
        learns = self.supernet.sampling == "learnable"
        return "original" if self.has_original and not learns else "largest"

    @property
    def measure(self) -> Literal["loss", "kl"]:
        """What candidates are scored by: the loss, or the divergence from the original."""
        return "loss" if self.search.measure == "auto" else self.search.measure

    @property
    def objective(self) -> str:
        """What the search minimises besides the loss: MACs, activation memory or latency."""
        if self.search.objective == "auto":
            # Peak memory is no sum, by which architectures could be listed.
            found = [cost for cost in self.space.budgets[0].costs if cost in self._bounded_by_all]
            return next((cost for cost in found if cost != "peak"), "macs")
        return self.search.objective

    @property
    def _bounded_by_all(self) -> set[str]:
        """The costs that all budgets bound."""
        return set.intersection(*(set(budget.costs) for budget in self.space.budgets))

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        there = "with space.weights or a section original"
        fits = not self.trains_original or self.space.stride_mode == "timm"
        require(fits, "space.stride_mode", self.space.stride_mode, f"timm {there}")
        fits = self.has_original or self.retrain.weights != "original"
        require(fits, "retrain.weights", self.retrain.weights, f"original only {there}")
        baselines = self.retrain.baselines
        fits = self.has_original or PRUNED not in baselines
        require(fits, "retrain.baselines", baselines, f"pruned only {there}")
        fits = not (self.has_original and self.supernet.weights)
        require(fits, "supernet.weights", self.supernet.weights, f"empty {there}")
        fits = self.has_original or self.search.score != "converted"
        require(fits, "search.score", self.search.score, f"converted only {there}")
        known = bool(self.supernet.weights) or self.has_original
        fits, allowed = known or self.teacher != "original", f"original only {there}"
        require(fits, "supernet.teacher", self.teacher, f"{allowed}, or with supernet.weights")
        fits = self.retrain.weights != "supernet" or not self.scores_converted
        allowed = "supernet only with search.score: supernet; here none is trained"
        require(fits, "retrain.weights", self.retrain.weights, allowed)
        fits = self.has_original or self.search.measure != "kl"
        require(fits, "search.measure", self.search.measure, f"kl only {there}")
        fits, steps = self.scores_converted or not self.search.steps, self.search.steps
        require(fits, "search.steps", steps, "0, or more with converted scores (search.score)")
        given = self.retrain.augment
        fits = given is None or not isinstance(self.data, DigitsSettings)
        require(fits, "retrain.augment", given, "null with data.source: digits")
        learns = self.supernet.sampling == "learnable" and not self.scores_converted
        fits = learns or self.search.sampler != "learned"
        allowed = "learned only with supernet.sampling: learnable, and with its scores"
        require(fits, "search.sampler", self.search.sampler, allowed)
        bounded = {cost for budget in self.space.budgets for cost in budget.costs}
        fits = "latency" not in bounded or bool(self.latency.table)
        allowed = "a table measured by `octnas latency`, for budgets on latency"
        require(fits, "latency.table", self.latency.table, allowed)
        objective = self.search.objective
        fits = objective in ("auto", "macs") or objective in self._bounded_by_all
        allowed = f"auto or macs; {objective} only if all budgets bound it"
        require(fits, "search.objective", objective, allowed)
        # Screening drops candidates that others beat in loss and cost: a budget on another cost, or
        # a lower bound, might still need one of them.
        upper = not any(budget.min_share for budget in self.space.budgets)
        share = self.search.screening_fraction
        fits = share == 1 or (bounded == {self.objective} and upper)
        allowed = f"1, unless all budgets bound {self.objective} and have no min_share"
        require(fits, "search.screening_fraction", share, allowed)
        fits, found = not learns or bounded == {"macs"}, sorted(bounded)
        require(fits, "space.budgets", found, "budgets on MACs with supernet.sampling: learnable")


_ADAPTER = TypeAdapter(RunConfig)


def load_document(
    path: Path, overrides: Sequence[str] = (), *, generated: bool = False
) -> Document:
    """Read an experiment file without checking its settings.

    Args:
        path: a YAML file.
        overrides: ``section.key=value``, the value in YAML.
        generated: whether octnas wrote the file; its former names need no warning.

    Raises:
        ConfigError: the file cannot be read or is not valid YAML.
    """
    try:
        text = read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    document = parse_yaml(text, str(path))
    if generated and not document.values:
        raise ConfigError(f"{path}: is empty, but octnas wrote the settings of a run there")
    _use_current_names(document, warn=not generated)
    for override in overrides:
        parse_override(override, document)
        _use_current_names(document)
    return document


def _use_current_names(document: Document, *, warn: bool = True) -> None:
    """Replace former names of settings and values, with a warning for each.

    Raises:
        ConfigError: the file has a setting under both names.
    """
    notes = []
    for old, new in RENAMED.items():
        place = document.place(tuple(old.split(".")))
        if document.rename(tuple(old.split(".")), tuple(new.split("."))):
            notes.append(f"{place} is now called {new}")
    for key in REMOVED:
        place = document.place(tuple(key.split(".")))
        if document.rename(tuple(key.split(".")), None):
            notes.append(f"{place} was removed and is ignored")
    for key, names in RENAMED_VALUES.items():
        notes += _use_current_values(document, key, names)
    for note in notes if warn else ():
        warnings.warn(note, SettingWarning, stacklevel=3)


def _use_current_values(document: Document, key: str, names: Mapping[Any, Any]) -> list[str]:
    """Replace former names of a setting's values; a note for each."""
    section, name = key.split(".")
    holder = document.values.get(section)
    value = holder.get(name) if isinstance(holder, dict) else None
    # Text in place of a list is an error, which shows what was written.
    if not isinstance(holder, dict) or (key == "retrain.baselines" and isinstance(value, str)):
        return []
    found = [old for old in names if old in (value if isinstance(value, list) else [value])]
    if found:
        holder[name] = rename_value(value, names)
    place = document.place((section, name))
    return [f"{place}: {old} is now called {names[old]}" for old in found]


def check_config(document: Document) -> RunConfig:
    """Convert a parsed document to settings; whatever is missing has its default.

    Raises:
        ConfigError: one line for each mistake: file, line, key, what was found, what is allowed.
    """
    sections = {entry.name for entry in fields(RunConfig)}
    # A section whose settings are all commented out is null.
    given = {k: v for k, v in document.values.items() if v is not None or k not in sections}
    values = {"name": Path(document.name).stem, **given}
    if isinstance(data := values.get("data"), dict):
        values["data"] = {"source": "folder", **data}
    space = values.get("space", {})
    own = "original" in values
    trained = own or (isinstance(space, dict) and bool(space.get("weights")))
    if isinstance(space, dict) and trained:
        values["space"] = {"stride_mode": "timm", **space}
    for section, kind in _WITH_RECIPE.items():
        if section == "original" and not own:
            continue
        settings = values.get(section, {})
        recipe = settings.get("recipe", {}) if isinstance(settings, dict) else None
        if isinstance(recipe, dict):
            defaults = {} if values.get("schema") == 1 else asdict(kind().recipe)
            # The ground truth of a ranking is trained as retraining would.
            like = values.get("retrain", {}) if section == "ranking" else settings
            weights = like.get("weights") if isinstance(like, dict) else None
            tuned = trained and section != "original" and weights != "scratch"
            if tuned or (section, weights) == ("retrain", "supernet"):
                defaults = asdict(FINE_TUNE_RECIPE)
            epochs = recipe.get("epochs")
            if isinstance(epochs, int) and epochs < 10 * defaults.get("warmup_epochs", 0):
                defaults["warmup_epochs"] = epochs / 10
            values[section] = {**settings, "recipe": {**defaults, **recipe}}
    try:
        # As JSON, whose arrays may become tuples in strict mode.
        return _ADAPTER.validate_json(json.dumps(values))
    except ValidationError as error:
        # A value that may have several types has one error for each.
        lines: dict[str, dict[str, None]] = {}
        for problem in error.errors():
            value, wrong = _describe(document, problem)
            lines.setdefault(value, {})[wrong] = None
        raise ConfigError("\n".join(map(_one_line, lines, lines.values()))) from None


# Sections with a recipe of their own: a partial recipe changes some of the section's defaults.
_WITH_RECIPE = {
    "original": OriginalSettings,
    "supernet": SupernetSettings,
    "retrain": RetrainSettings,
    "ranking": RankingSettings,
}


def resolved(config: RunConfig) -> dict[str, Any]:
    """All settings, defaults included, as plain YAML values."""
    return dict(_ADAPTER.dump_python(config, mode="json"))


def _one_line(value: str, wrong: Iterable[str]) -> str:
    first, *others = wrong
    return value + ", or ".join([first, *(one.removeprefix(_SHOULD) for one in others)])


def _describe(document: Document, problem: Mapping[str, Any]) -> tuple[str, str]:
    """A validation error as the first and the second half of a line: the value; what is wrong."""
    where = list(problem["loc"])
    known = _known_keys(RunConfig, where[:-1])
    if where[:1] == ["data"]:
        del where[1:2]  # the source
    if problem["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(str(where[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
        return f"{document.place(tuple(where))}: unknown key; ", hint
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        where += [] if cause.key == "budget" else cause.key.split(".")
        value = f"{document.place(tuple(where))}: found {_show(cause.found)}, "
        return value, f"allowed: {cause.allowed}"
    if len(where) > 1 and _is_plain(document.values, where[:-1]):
        del where[-1]  # the name of a type, in a union
    message = problem["msg"][0].lower() + problem["msg"][1:]
    for json_word, word in {"an object": "a section", "a valid array": "a list"}.items():
        message = message.replace(json_word, word)
    note = " (only true and false are truth values)" if problem["type"] == "bool_type" else ""
    value = f"{document.place(tuple(where))}: found {_show(problem['input'])}, "
    return value, f"{message}{note}"


def _known_keys(kind: Any, path: Sequence[Any]) -> list[str]:
    """The keys of the section at the path of an error, which names the source within ``data``."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if path:
            return _known_keys(hints.get(path[0]), path[1:])
        return [entry.name for entry in fields(kind)]
    for option in filter(is_dataclass, get_args(kind)):
        sources = get_args(get_type_hints(option).get("source"))
        if not sources:
            return _known_keys(option, [part for part in path if not isinstance(part, int)])
        if path[:1] and path[0] in sources:
            return _known_keys(option, path[1:])
    return []


def _is_plain(value: Any, path: Sequence[Any]) -> bool:
    """Whether a path leads to a scalar."""
    for key in path:
        if not isinstance(value, dict | list):
            return False
        value = value[key]
    return not isinstance(value, dict | list)


def _show(value: Any) -> str:
    # Redact first: a truncated URL is no longer recognised as one.
    value = redact_all(value)
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def shipped_experiments() -> list[Path]:
    """The YAML files in ``search_spaces``, sorted by name.

    Raises:
        OctnasError: they are missing.
    """
    package = Path(__file__).parent
    # In an installed package; in a checkout.
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if found := sorted(folder.glob("*.yaml")):
            return found
    raise OctnasError("the shipped experiments are missing; reinstall octnas")


def default_experiment() -> Path:
    """The experiment that needs no data: cluttered digits."""
    return next(path for path in shipped_experiments() if path.stem == "digits")


def resolved_paths(config: RunConfig) -> RunConfig:
    """The settings with absolute paths, which are the same from any folder and on Ray's workers.

    Raises:
        ConfigError: a path below ``~`` of a user without a home.
    """
    ranking, latency, supernet = config.ranking, config.latency, config.supernet
    if supernet.weights != PRETRAINED:
        weights = _absolute(supernet.weights, "supernet.weights")
        supernet = replace(supernet, weights=weights)
    truth_from = _absolute(ranking.truth_from, "ranking.truth_from")
    space = config.space
    if space.weights != PRETRAINED:
        space = replace(space, weights=_absolute(space.weights, "space.weights"))
    config = replace(
        config,
        space=space,
        ranking=replace(ranking, truth_from=truth_from),
        latency=replace(latency, table=_absolute(latency.table, "latency.table")),
        supernet=supernet,
    )
    data = config.data
    if not isinstance(data, ImagesSettings):
        return config
    kind, _, path = data.name.partition("/")
    # A local folder of shards, or a name on the Hugging Face hub.
    name = f"{kind}/{Path(path).absolute()}" if path and Path(path).is_dir() else data.name
    cache = data.cache
    if cache.enabled:
        cache = replace(cache, folder=str(cache_folder(data)))
    root = _absolute(data.root, "data.root")
    return replace(config, data=replace(data, root=root, name=name, cache=cache))


def _absolute(path: str, key: str) -> str:
    return str(expand_home(path, key).absolute()) if path else ""


STORAGE_VARIABLE = "OCTNAS_STORAGE"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


def with_passwords(config: RunConfig) -> RunConfig:
    """The settings with the passwords of database URLs, which run directories leave out.

    Raises:
        ConfigError: a password was left out, and the environment does not provide it.
    """
    url = config.search.storage or os.environ.get(STORAGE_VARIABLE, "")
    storage = _with_password("search.storage", url, STORAGE_VARIABLE)
    uri = _with_password("tracking.uri", config.tracking.uri, TRACKING_VARIABLE)
    return replace(
        config,
        search=replace(config.search, storage=storage),
        tracking=replace(config.tracking, uri=uri),
    )


def _with_password(key: str, url: str, variable: str) -> str:
    if HIDDEN not in url:
        return url
    if not os.environ.get(variable):
        raise ConfigError(
            f"{key}: found {url!r}, whose password was left out of the run directory; "
            f"set the whole URL in the environment variable {variable}"
        )
    return os.environ[variable]
