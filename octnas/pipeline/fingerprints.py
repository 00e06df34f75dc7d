"""Fingerprints: the settings and inputs that determine the results of each stage."""

from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from octnas.config import RunConfig
from octnas.errors import ConfigError
from octnas.io.files import open_regular
from octnas.runtime.directory import CONVERT, ORIGINAL, STAGES, WHOLE_RUN, digest
from octnas.settings import IMPLIED, PRETRAINED, flatten, with_former_names

SCHEMA = 1
# Stages whose section of the experiment file has another name.
_SECTIONS = {"truth": "ranking"}
# The settings of the search that affect scores.
_SCORING = ("calibration_batches", "images_per_batch", "threads")
# Those of retraining that matter only where it begins with the original.
_TUNING = ("retrain.distillation", "retrain.fit_images")


def bases(config: RunConfig, stage: str) -> tuple[str, ...]:
    """The stages that a stage builds on with these settings."""
    if stage in ("search", "rank") and config.scores_converted:
        return (CONVERT, *STAGES[stage][1:])
    if stage == CONVERT and config.trains_original:
        return (ORIGINAL,)
    own = (*STAGES[stage], CONVERT) if config.begins_with(stage) else STAGES[stage]
    supernet = stage == "retrain" and config.retrain.weights == "supernet"
    return ("supernet", *own) if supernet else own


def all_bases(config: RunConfig, stage: str) -> tuple[str, ...]:
    """The stages that a stage builds on directly or indirectly, in order."""
    found = set(bases(config, stage))
    for base in tuple(found):
        found.update(all_bases(config, base))
    return tuple(one for one in STAGES if one in found)


def whole_run(config: RunConfig) -> tuple[str, ...]:
    """The stages of `octnas run` with these settings."""
    left_out = {
        ORIGINAL: not config.trains_original,
        CONVERT: not config.has_original,
        "supernet": config.scores_converted,
        "truth": True,
        "rank": True,
    }
    return tuple(stage for stage in STAGES if not left_out.get(stage))


def with_first(config: RunConfig, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages of a command, and those before them that every command does as well."""
    if tuple(stages) == WHOLE_RUN:
        return whole_run(config)
    # Images alone need no trained network.
    waits = config.trains_original and tuple(stages) == ("data",)
    first = {"data", "space", *((CONVERT,) if config.has_original and not waits else ())}
    scored = {"supernet"} if "rank" in stages and config.scores_converted else set()
    return tuple(stage for stage in STAGES if stage in first.union(stages) - scored)


def fingerprint(config: RunConfig, stage: str) -> dict[str, Any]:
    """The settings and inputs that determine the results of a stage, by dotted key."""
    found: dict[str, Any] = {"schema": SCHEMA}
    for base in bases(config, stage):
        found[f"input.{base}"] = digest(with_former_names(fingerprint(config, base)))
    found |= _own(config, stage)
    if stage == "space" and config.latency.table:
        found["latency.table"] = _digest_of("latency.table", config.latency.table)
    if stage == "data":
        found["space.input_size"] = list(config.space.input_size)
    if stage == "supernet":
        found |= _contents("supernet.weights", config.supernet.weights)
    if stage == CONVERT:
        found |= _of_original(config)
    if stage in ("supernet", "search"):
        found["seed"] = config.seed
    if stage == "rank":
        found |= {f"search.{key}": getattr(config.search, key) for key in _SCORING}
        if config.measure != "loss" or config.search.steps:
            found |= {"search.measure": config.measure, "search.steps": config.search.steps}
        # Excluded from the ground truth's own fingerprint, which it does not affect.
        found["ranking.resamples"] = config.ranking.resamples
    return found


def _of_original(config: RunConfig) -> dict[str, Any]:
    """The weights that a run begins with, and the order of their classes where it is another."""
    classes = list(config.space.classes)
    found: dict[str, Any] = {"space.classes": classes} if classes else {}
    return found | _contents("space.weights", config.space.weights)


def _own(config: RunConfig, stage: str) -> dict[str, Any]:
    """The settings of a stage's section that matter, as they are resolved."""
    section = _SECTIONS.get(stage, stage)
    if (settings := getattr(config, section, None)) is None:
        return {}
    found = flatten(settings, section, later=False)
    found = {key: value for key, value in found.items() if key not in IMPLIED}
    if stage == "search":
        # Earlier versions recorded nothing for the objective MACs and the measure loss.
        for name, first in (("objective", "macs"), ("measure", "loss")):
            found.pop(f"search.{name}", None)
            if (value := getattr(config, name)) != first:
                found[f"search.{name}"] = value
    if stage == "supernet":
        found["supernet.teacher"] = config.teacher
        # Supernets of before did not rescale the original's kernels.
        found |= {"supernet.rescaled": True} if config.rescales else {}
    if stage == "retrain" and config.begins_with(stage):
        # Runs of before did not fit, which is no default of theirs.
        found["retrain.fit_images"] = config.retrain.fit_images
    if stage == "truth" and config.begins_with(stage):
        # Trained as retraining would.
        taught = flatten(config.retrain, "retrain")
        found |= {k: v for k, v in taught.items() if k.startswith(_TUNING)}
    if stage == "retrain" and not config.begins_with(stage):
        # Then nothing is fitted or distilled.
        found = {k: v for k, v in found.items() if not k.startswith(_TUNING)}
    return found


def _contents(key: str, weights: str) -> dict[str, str]:
    """A setting by the contents of its file, which may be moved or replaced."""
    return {key: weights if weights in ("", PRETRAINED) else _digest_of(key, weights)}


def _digest_of(key: str, file: str) -> str:
    """A short hash of a file that a setting names; a ConfigError if it cannot be read."""
    try:
        with open_regular(Path(file)) as opened:
            return file_digest(opened, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"{key}: {file}: cannot be read ({error.strerror})") from None
