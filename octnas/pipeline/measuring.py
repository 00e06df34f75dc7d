"""With what the networks that a search chooses are measured, and whether that can be done here."""

from octnas.errors import LatencyError, SettingError
from octnas.latency import LatencyTable
from octnas.measure.backends import check_device, check_installed
from octnas.measure.settings import LatencySettings
from octnas.pipeline.opening import Run


def chosen_settings(run: Run, table: LatencyTable) -> LatencySettings:
    """As the table was measured, on the device of the run's settings.

    Raises:
        SettingError: a backend or a precision that is not known here, or not on that device.
    """
    return LatencySettings(
        backend=table.backend,
        device=run.config.latency.device,
        precision=table.precision,
        batch=table.batch,
        threads=table.threads,
    )


def check_measuring(run: Run, table: LatencyTable | None) -> None:
    """Refuse what could not be measured here in the end; the table may be another device's.

    Args:
        run: which may go without measuring.
        table: that it has or will have, if any.

    Raises:
        ConfigError: a device that is not there.
        LatencyError: a backend that is not installed, or not for the device.
    """
    if table is None or not run.config.latency.measure:
        return
    with run.settings_of("latency"):
        check_device(run.config.latency.device)
    try:
        check_installed(chosen_settings(run, table).backend)
    except SettingError as error:
        raise LatencyError(
            f"latency.table: what a search chooses cannot be measured here as the table of "
            f"{table.device} was ({error}); latency.measure=false goes without"
        ) from None
