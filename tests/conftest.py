"""What the tests share: reproducible hypothesis runs, and small search spaces without torch."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from hypothesis import strategies as st

from octnas.space.costs import ConvShape
from octnas.space.search_space import SearchSpace, Site

# The networks of the tests are too small for several threads, which wait for each other longer
# than they work when the machine is busy. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("octnas", deadline=None, derandomize=True, database=None)
settings.load_profile("octnas")


def hand_made_space(sites: list[Site], convs: list[ConvShape], other_macs: int = 0) -> SearchSpace:
    """A space of any sites and convolutions, which need not form a network."""
    return SearchSpace(
        backbone="hand_made",
        backbone_args={},
        input_size=(3, 8, 8),
        channel_multiple=1,
        stride_mode="timm",
        alphas=tuple(sorted({choice for site in sites for choice in site.choices})),
        sites=tuple(sites),
        convs=tuple(convs),
        other_macs=other_macs,
        params=1,
    )


@st.composite
def search_spaces(draw: st.DrawFn, max_sites: int = 5) -> SearchSpace:
    """Spaces of up to ``max_sites`` sites, tied in any pattern by convolutions on any maps."""
    sites = [draw(site(f"site{index}")) for index in range(draw(st.integers(1, max_sites)))]
    names = [site.name for site in sites]
    ends = st.tuples(st.sampled_from([None, *names]), st.sampled_from(names))
    drawn = draw(st.lists(ends, min_size=1, max_size=2 * max_sites))
    channels = {site.name: site.channels for site in sites}
    convs = [
        draw(
            conv_shape(f"conv{index}", channels.get(site_in), channels[site_out], site_in, site_out)
        )
        for index, (site_in, site_out) in enumerate(drawn)
    ]
    return hand_made_space(sites, convs, draw(st.integers(0, 1000)))


@st.composite
def site(draw: st.DrawFn, name: str) -> Site:
    """A site of a few channels with one to three choices."""
    channels = draw(st.integers(1, 6))
    low = draw(st.sets(st.integers(0, channels), min_size=1, max_size=3))
    choices = tuple(count / channels for count in sorted(low))
    return Site(name, channels, groups=1, choices=choices, depth=0.5)


@st.composite
def conv_shape(
    draw: st.DrawFn,
    name: str = "conv",
    in_channels: int | None = None,
    out_channels: int | None = None,
    site_in: str | None = "in",
    site_out: str = "out",
) -> ConvShape:
    """A convolution on a small map, even or odd, with all channels in one group."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3)]))
    return ConvShape(
        name=name,
        in_channels=in_channels or draw(st.integers(1, 12)),
        out_channels=out_channels or draw(st.integers(1, 12)),
        groups=1,
        kernel=kernel,
        out_size=(draw(st.integers(1, 7)), draw(st.integers(1, 7))),
        site_in=site_in,
        site_out=site_out,
    )


def counted_macs(conv: ConvShape, low_in: int, low_out: int) -> int:
    """MACs counted path by path from the paper's §3.3, in whole numbers of channels.

    H→H runs at full resolution, the paths that touch a low channel run at half.
    """
    taps = conv.kernel[0] * conv.kernel[1]
    height, width = conv.out_size
    full, half = height * width, ((height + 1) // 2) * ((width + 1) // 2)
    if conv.groups == conv.in_channels == conv.out_channels > 1:
        return taps * ((conv.out_channels - low_out) * full + low_out * half)
    if conv.site_in is None:
        low_in = 0
    high_in, high_out = conv.in_channels - low_in, conv.out_channels - low_out
    high_to_high = high_in * high_out * full
    others = (high_in * low_out + low_in * high_out + low_in * low_out) * half
    return taps * (high_to_high + others) // conv.groups


def low_count(share: float, channels: int) -> int:
    """The whole number of channels that a quantized share stands for."""
    count = Fraction(share).limit_denominator(channels) * channels
    assert count.denominator == 1
    return int(count)


def all_architectures(space: SearchSpace) -> Iterator[dict[str, float]]:
    """Every architecture of a space, α by site."""
    names = [site.name for site in space.sites]
    for shares in itertools.product(*(site.choices for site in space.sites)):
        yield dict(zip(names, shares, strict=True))


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """A folder that ``build`` has filled: once, however many processes run the tests.

    Each has a copy, since tests take a run's lock and MLflow's. Paths that MLflow keeps lead to the
    folder they were copied from.
    """
    own = factory.mktemp(name)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        build(own)
        return own
    shared = factory.getbasetemp().parent / f"built-{name}"
    done = shared.with_name(f"{shared.name}.done")
    with FileLock(f"{shared}.lock"):
        if not done.exists():
            shutil.rmtree(shared, ignore_errors=True)
            shared.mkdir()
            build(shared)
            done.touch()
    shutil.copytree(shared, own, symlinks=True, dirs_exist_ok=True)
    return own


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables, which take seconds to create."""
    from octnas.tracking.settings import TrackingSettings
    from octnas.tracking.tracker import Tracker

    def migrate(path: Path) -> None:
        settings = TrackingSettings(uri=f"sqlite:///{path}/mlflow.db")
        tracker = Tracker(settings, experiment="other", directory=path / "one")
        tracker.start("key", "name")
        tracker.close()

    return built_once(tmp_path_factory, "migrated", migrate) / "mlflow.db"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished tiny run, for tests that only read it."""
    from octnas.pipeline.stages import run_stages
    from tests.pipeline.tiny import open_tiny

    return built_once(tmp_path_factory, "finished", lambda path: run_stages(open_tiny(path)))
