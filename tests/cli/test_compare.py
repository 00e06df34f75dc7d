"""Where a comparison goes, and what it is of."""

import os
import shutil
from pathlib import Path

from tests.cli.conftest import Octnas


def test_a_comparison_is_not_written_over_anything_else(
    octnas: Octnas, finished: Path, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        shutil.copytree(finished / "runs" / "tiny", tmp_path / name)
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    (tmp_path / "link").symlink_to("one")
    record = (tmp_path / "one" / "run.json").read_bytes()
    for place in ("one/run.json", "link/run.json", "other/../one/new/page.html"):
        refused = octnas("compare", other, one, "--out", str(tmp_path / place))
        assert refused.code == 2
        assert refused.err == (
            f"octnas: {tmp_path / place}: is inside {one}, one of the runs to compare; give "
            "another --out\n"
        )
    assert (tmp_path / "one" / "run.json").read_bytes() == record
    os.mkfifo(tmp_path / "pipe")
    for place, reason in (
        ("pipe", "not a regular file"),
        (".", "Is a directory"),
    ):
        refused = octnas("compare", one, other, "--out", str(tmp_path / place))
        assert refused.code == 2
        assert refused.err == f"octnas: {tmp_path / place}: {reason}\n"
    assert (tmp_path / "pipe").is_fifo()
