"""The same numbers on a GPU."""

import copy

import pytest
import timm
import torch

from octnas import deploy, octavize
from tests.nn.reference import assert_sizeable, images, randomise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["resnet26", "seresnet50", "resnext50_32x4d"])
def test_logits_and_gradients_are_those_of_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=10)).double().eval()
    octavize(model, {"*": 0.5, "layer2": 1.0})
    twin = copy.deepcopy(model).cuda()
    x = images(2, 3, 64, 64, dtype=torch.float64)
    expected, found = model(x), twin(x.cuda())
    assert_sizeable(expected)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)
    expected.square().sum().backward()
    found.square().sum().backward()
    for mine, other in zip(twin.parameters(), model.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.cpu(), other.grad, rtol=1e-7, atol=1e-9)


def test_deployed_in_half_precision() -> None:
    torch.manual_seed(0)
    model = octavize(randomise(timm.create_model("resnet26", num_classes=10)).eval(), 0.5)
    x = images(4, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
    fast = deploy(model).cuda().bfloat16().to(memory_format=torch.channels_last)
    found = fast(x.cuda().bfloat16().to(memory_format=torch.channels_last)).float().cpu()
    assert_sizeable(expected)
    assert (found - expected).norm() / expected.norm() < 0.05
