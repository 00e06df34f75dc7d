"""Stage 1: which images there are, which can be used, and what for."""

from octnas.data.image_list import read_summary
from octnas.data.prepare import PROBLEMS_FILE, prepare_images
from octnas.pipeline.opening import Run


def prepare_data(run: Run) -> None:
    """Look at every image once; build the cache; write the list."""
    config, folder = run.config, run.directory.stage("data")
    with run.settings_of("data"):
        prepare_images(config.data, config.space.input_size, folder, run.progress)
    summary = read_summary(folder)
    counts = ", ".join(f"{count:,} {part}" for part, count in summary["counts"].items() if count)
    run.progress.say(f"data: {summary['classes']} classes, images: {counts}")
    if summary["problems"]:
        count, path = len(summary["problems"]), folder / PROBLEMS_FILE
        run.progress.say(f"data: images and folders that were skipped: {count}, see {path}")
