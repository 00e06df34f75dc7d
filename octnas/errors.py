"""What octnas raises when the mistake is the user's: one line that says what to change."""


class OctnasError(Exception):
    """A problem that the user can solve, in one line; the program exits with code 2."""


class SettingError(OctnasError, ValueError):
    """A setting whose value is outside of what is allowed.

    Attributes:
        key: name of the setting within its section.
        found: the value that was given.
        allowed: what may be given instead, in words.
    """

    def __init__(self, key: str, found: object, allowed: str) -> None:
        super().__init__(f"{key}: found {found!r}, allowed: {allowed}")
        self.key = key
        self.found = found
        self.allowed = allowed

    def __reduce__(self) -> tuple[type["SettingError"], tuple[str, object, str]]:
        # Errors cross process boundaries, and are made anew from what they were made with.
        return (SettingError, (self.key, self.found, self.allowed))


class ConfigError(OctnasError):
    """An experiment file (or ``--set`` override) that cannot be used; may hold several lines."""


class SettingWarning(FutureWarning):
    """A setting under a former name, or one that is no longer used."""


class ArchitectureError(OctnasError):
    """An architecture or its file does not fit: unknown site, α outside [0, 1], unknown schema."""


class UnsupportedModelError(OctnasError):
    """A model holds a module that octave feature maps cannot pass through."""


class BudgetError(OctnasError):
    """A budget that no architecture of the search space meets."""


class RunDirectoryError(OctnasError):
    """A run directory whose contents do not fit what is asked of it."""


class DataError(OctnasError):
    """Images that cannot be found or read as asked."""


class TrainingError(OctnasError):
    """A training that cannot go on: its loss is lost, or its process died."""


class DeviceError(OctnasError):
    """A device that has failed or is full; what was not computed yet can be computed later."""


class SearchError(OctnasError):
    """A search that cannot go on."""


class ClusterError(OctnasError):
    """Ray cannot be started or used as asked."""


class MeasureError(OctnasError):
    """A measurement that would say nothing: what was to be timed computes something else."""


class LatencyError(OctnasError):
    """Latencies that cannot be measured, read or used as asked."""


class ExportError(OctnasError):
    """An exported network that is not its source, or that cannot be written here."""


class TrackingError(OctnasError):
    """MLflow cannot be reached or refuses what was sent."""


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised from in the first place; itself if from nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def require(condition: bool, key: str, found: object, allowed: str) -> None:
    """Raise `SettingError` unless ``condition`` holds; for the ``__post_init__`` of settings."""
    if not condition:
        raise SettingError(key, found, allowed)


def require_at_least(settings: object, least: int, *keys: str) -> None:
    """Raise `SettingError` unless each of these settings is at least ``least``."""
    for key in keys:
        require(getattr(settings, key) >= least, key, getattr(settings, key), f"{least} or more")


def require_seed(key: str, seed: int) -> None:
    """Raise `SettingError` unless every generator takes the seed."""
    require(0 <= seed < 2**31, key, seed, "0 to 2147483647")


def require_seeds(seeds: tuple[int, ...]) -> None:
    """Raise `SettingError` unless these are one or more distinct seeds."""
    require(len(seeds) > 0, "seeds", seeds, "one or more")
    require(len(set(seeds)) == len(seeds), "seeds", seeds, "distinct seeds")
    for seed in seeds:
        require_seed("seeds", seed)
