"""Training in channels-last memory where oneDNN's kernels of AVX2 spoil theirs.

In a process of its own: what they spoil is the heap, and they are chosen as it begins.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octnas.nn.conv import OctaveConv2d
from octnas.nn.layout import to_channels_last

PROGRAM = """
import sys, torch, torch.nn.functional as F
from octnas.nn.backbone import create_backbone
from octnas.nn.layout import to_channels_last
from octnas.nn.shapes import search_space
from octnas.nn.supernet import build

torch.set_num_threads(1)
torch.manual_seed(0)
size, args = (3, 16, 16), {"layers": [1, 1, 1], "channels": [4, 8, 8], "num_classes": 2}
space = search_space("thumbnail_resnet", size, (0, 0.5), backbone_args=args, stride_mode="timm")
if sys.argv[1] == "timm":
    network = create_backbone("thumbnail_resnet", args)
else:
    network = build(space.uniform(float(sys.argv[1])), seed=0)
network.train()
images, labels = torch.randn(6, *size), torch.tensor([0, 1, 0, 1, 0, 1])

def gradients(images):
    network.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    return [weight.grad.clone() for weight in network.parameters()]

with torch.backends.mkldnn.flags(enabled=False):
    expected = gradients(images)
assert max(float(one.abs().max()) for one in expected) > 1e-3
to_channels_last(network)
images = images.to(memory_format=torch.channels_last)
for _ in range(100):
    found = gradients(images)
for one, other in zip(expected, found, strict=True):
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
"""


@pytest.mark.parametrize("what", ["timm", "0", "0.5"])
def test_gradients_are_sound_with_few_channels(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_parts_of_kernels_have_gradients_in_bfloat16() -> None:
    """One channel of four is high: its kernel is what torch's own gradient refuses as it is."""
    torch.manual_seed(0)
    conv = OctaveConv2d(4, 4, 3, padding=1, alpha=0.75)
    to_channels_last(conv)
    x = torch.randn(6, 4, 8, 8).to(memory_format=torch.channels_last)

    def gradient(enabled: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = conv(x)
        total = y.high.float().square().sum() + y.low.float().square().sum()
        (found,) = torch.autograd.grad(total, [conv.weight])
        return found

    wanted = gradient(enabled=False)
    assert float(wanted.norm()) > 1
    assert (gradient(enabled=True) - wanted).norm() / wanted.norm() < 0.03
