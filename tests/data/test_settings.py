"""Settings of images that no run can use."""

from math import inf, nan
from typing import Any

import pytest

from octnas.data.settings import CacheSettings, ImagesSettings
from octnas.errors import SettingError

CACHE = CacheSettings(enabled=True)


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("key", ["mean", "std"])
def test_numbers_that_are_none(key: str, place: int, value: float) -> None:
    """Every image would be lost by them."""
    values = [0.5, 0.5, 0.5]
    values[place] = value
    settings: dict[str, Any] = {key: tuple(values)}
    with pytest.raises(SettingError, match=f"^{key}: found .*, allowed: finite numbers"):
        ImagesSettings(**settings)


def test_an_evaluation_that_no_memory_would_hold() -> None:
    with pytest.raises(SettingError, match=r"crop_pct: found 0\.001, allowed: 0\.1 to 1"):
        ImagesSettings(crop_pct=0.001)


@pytest.mark.parametrize("name", ["", "hfds/", "wds", "wds/part", "torch/cifar10"])
def test_names_of_timm_that_say_nothing(name: str) -> None:
    """Nor is anything passed over: WebDataset shards have no name but their folder."""
    with pytest.raises(SettingError, match=r"allowed: wds/, in root, or hfds/PATH"):
        ImagesSettings(source="timm", name=name, cache=CACHE)


@pytest.mark.parametrize("name", ["wds/", "hfds/shards", "hfds/uoft-cs/cifar10"])
def test_names_of_timm(name: str) -> None:
    assert ImagesSettings(source="timm", name=name, cache=CACHE).name == name
