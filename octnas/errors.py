"""Errors that the user can fix, in one line that says what to change."""


class OctnasError(Exception):
    """Base class; the program prints the message and exits with code 2."""


class SettingError(OctnasError, ValueError):
    """A setting with a value that is not allowed.

    Attributes:
        key: name of the setting within its section.
        found: the value.
        allowed: a description of the allowed values.
    """

    def __init__(self, key: str, found: object, allowed: str) -> None:
        super().__init__(f"{key}: found {found!r}, allowed: {allowed}")
        self.key = key
        self.found = found
        self.allowed = allowed

    def __reduce__(self) -> tuple[type["SettingError"], tuple[str, object, str]]:
        # Errors are pickled between processes.
        return (SettingError, (self.key, self.found, self.allowed))


class ConfigError(OctnasError):
    """An experiment file (or ``--set`` override) that cannot be used; may have several lines."""


class SettingWarning(FutureWarning):
    """A setting under a former name, or one that is no longer used."""


class ArchitectureError(OctnasError):
    """An architecture or its file is invalid: unknown site, α outside [0, 1], unknown schema."""


class UnsupportedModelError(OctnasError):
    """A model holds a module that octave feature maps cannot pass through."""


class BudgetError(OctnasError):
    """A budget that no architecture of the search space meets."""


class RunDirectoryError(OctnasError):
    """A run directory with invalid contents, or with others than the command needs."""


class DataError(OctnasError):
    """Images that cannot be found or read."""


class TrainingError(OctnasError):
    """A training that cannot continue: its loss is not finite, or its process died."""


class DeviceError(OctnasError):
    """A device that failed or is out of memory; the command can be resumed."""


class SearchError(OctnasError):
    """A search that cannot continue."""


class ClusterError(OctnasError):
    """Ray cannot be started or used."""


class MeasureError(OctnasError):
    """A meaningless measurement: wrong results, or too much noise."""


class LatencyError(OctnasError):
    """Latencies that cannot be measured, read or used."""


class ExportError(OctnasError):
    """An exported network that differs from its source, or cannot be written."""


class TrackingError(OctnasError):
    """MLflow cannot be reached, or refuses what was sent."""


def first_cause(error: BaseException) -> BaseException:
    """The first error in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise `SettingError` unless ``condition`` is true; for ``__post_init__`` of settings."""
    if not condition:
        raise SettingError(key, found, allowed)


def require_at_least(settings: object, least: int, *keys: str) -> None:
    """Raise `SettingError` unless each of these settings is at least ``least``."""
    for key in keys:
        require(getattr(settings, key) >= least, key, getattr(settings, key), f"{least} or more")


def require_seed(key: str, seed: int) -> None:
    """Raise `SettingError` unless all random generators accept the seed."""
    require(0 <= seed < 2**31, key, seed, "0 to 2147483647")


def require_seeds(seeds: tuple[int, ...]) -> None:
    """Raise `SettingError` unless these are one or more distinct seeds."""
    require(len(seeds) > 0, "seeds", seeds, "one or more")
    require(len(set(seeds)) == len(seeds), "seeds", seeds, "distinct seeds")
    for seed in seeds:
        require_seed("seeds", seed)
