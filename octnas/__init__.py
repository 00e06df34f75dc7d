"""octnas: find the octave ratio of every layer under a budget."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from octnas.nn.conv import OctaveConv2d as OctaveConv2d
    from octnas.nn.cost import cost as cost
    from octnas.nn.deploy import deploy as deploy
    from octnas.nn.load import load as load
    from octnas.nn.octave import OctaveTensor as OctaveTensor
    from octnas.nn.octavize import octavize as octavize
    from octnas.nn.search_space import search_space as search_space
    from octnas.space.architecture import Architecture as Architecture
    from octnas.space.search_space import SearchSpace as SearchSpace

# Looked up on first use, so that `import octnas` and `octnas --help` do not wait for torch.
_HOME = {
    "Architecture": "octnas.space.architecture",
    "OctaveConv2d": "octnas.nn.conv",
    "OctaveTensor": "octnas.nn.octave",
    "SearchSpace": "octnas.space.search_space",
    "cost": "octnas.nn.cost",
    "deploy": "octnas.nn.deploy",
    "load": "octnas.nn.load",
    "octavize": "octnas.nn.octavize",
    "search_space": "octnas.nn.search_space",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'octnas' has no attribute {name!r}")


# Former home of `octnas.space.latency`, which is looked up on first use, too.
latency = sys.modules[f"{__name__}.latency"] = ModuleType(f"{__name__}.latency")
latency.__getattr__ = lambda name: getattr(  # type: ignore[method-assign]
    import_module("octnas.space.latency"), name
)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
