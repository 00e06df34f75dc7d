"""A run as a chain of SLURM jobs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from octnas.cluster.slurm import SlurmSettings, batch_file, submit_file
from octnas.config import RunConfig
from octnas.data.batches import Part
from octnas.errors import RunDirectoryError
from octnas.io.credentials import redact
from octnas.io.files import write_text
from octnas.pipeline.fingerprints import whole_run
from octnas.pipeline.run import check_place, default_directory, load_experiment
from octnas.runtime.directory import ORIGINAL

JOBS = ("data", ORIGINAL, "supernet", "search", "retrain", "export", "report")
SUBMIT_FILE = "submit.sh"
_ON_GPU = (ORIGINAL, "supernet", "search", "retrain")


def write_jobs(
    experiment: Path,
    out: Path,
    settings: SlurmSettings,
    *,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    program: str = "",
) -> Path:
    """Write a batch file for every stage, and the script that submits them.

    The jobs run in the working directory of this process, so that relative paths in the
    experiment mean the same. Passwords in ``overrides`` are left out.

    Args:
        experiment: a YAML file, or the directory of an earlier run.
        out: folder for the files, and for what the jobs print; made if missing.
        settings: what the jobs ask for.
        overrides: ``section.key=value``.
        run_dir: where the run writes; by default ``runs/NAME`` or the run's own.
        program: octnas; by default the one beside this Python.

    Returns:
        The script that submits the jobs.

    Raises:
        ConfigError: a mistake in the experiment.
        RunDirectoryError: not a run directory; or ``out`` is inside the run directory.
        SettingError: a batch size that is not a multiple of the number of GPUs.
    """
    _, config = load_experiment(experiment, overrides)
    Part(0, max(1, settings.gpus)).check(config.supernet.recipe.batch_size)
    own = run_dir or default_directory(experiment, config)
    # Fail now, not hours later in the queue.
    check_place(own)
    if out.resolve().is_relative_to(own.resolve()):
        raise RunDirectoryError(f"{out}: is inside the run directory {own}; give another --out")
    given = [word for one in overrides for word in ("--set", redact(one))]
    jobs = [stage for stage in JOBS if stage in whole_run(config)]
    for stage in jobs:
        words = [program or _program(), stage, str(experiment.absolute())]
        words += ["--run-dir", str(own.absolute()), *given]
        text = batch_file(
            f"{config.name}-{stage}",
            [*words, *_device(config, settings, stage)],
            settings,
            folder=str(Path.cwd()),
            gpus=_gpus(settings, stage),
            processes=stage == "supernet" and settings.gpus > 0,
        )
        write_text(out / f"{stage}.sbatch", text)
    write_text(out / SUBMIT_FILE, submit_file(jobs))
    return out / SUBMIT_FILE


def _gpus(settings: SlurmSettings, stage: str) -> int:
    if stage == "supernet":
        return settings.gpus
    return min(1, settings.gpus) if stage in _ON_GPU else 0


def _device(config: RunConfig, settings: SlurmSettings, stage: str) -> list[str]:
    """The option that sets the device: the data stage, without a GPU, must not look for one."""
    if not settings.gpus or config.device == "auto":
        return []
    # In every job, since a run directory keeps the settings of its last command.
    return ["--set", f"device={config.device if stage in _ON_GPU else 'cpu'}"]


def _program() -> str:
    beside = Path(sys.executable).with_name("octnas")
    return str(beside) if beside.exists() else "octnas"
