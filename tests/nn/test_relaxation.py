import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octnas import octavize
from octnas.nn import activate, build_supernet
from octnas.nn.relaxation import Relaxed, choice_masks
from octnas.nn.search_space import search_space
from octnas.nn.supernet import make_switchable
from octnas.space.search_space import SearchSpace
from tests.nn.families import FAMILIES, arguments, create, size_of
from tests.nn.reference import assert_sizeable, randomise
from tests.nn.reference import images as single_images

CHOICES = (0.0, 0.25, 0.5, 0.75, 1.0)


def family_space(name: str, stride_mode: str = "paper") -> SearchSpace:
    backbone, args = arguments(name)
    size = (3, *size_of(name, training=True))
    return search_space(
        backbone,
        size,
        CHOICES,
        backbone_args=args,
        fixed={},
        stride_mode=stride_mode,  # type: ignore[arg-type]
    )


def images(*shape: int) -> Tensor:
    return single_images(*shape).double()


def random_switchable(model: nn.Module) -> nn.Module:
    """Switchable, with batch-norm values and path scales that all differ."""
    make_switchable(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "low_" in name or "path_scales" in name:
                noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.5 + noise)
    return model


def any_choice(space: SearchSpace, seed: int) -> dict[str, int]:
    generator = torch.Generator().manual_seed(seed)
    return {
        site.name: int(torch.randint(len(site.choices), (), generator=generator))
        for site in space.sites
    }


def alphas_of(space: SearchSpace, chosen: dict[str, int]) -> dict[str, float]:
    return {site.name: site.choices[chosen[site.name]] for site in space.sites}


def hard_masks(table: dict[str, Tensor], chosen: dict[str, int]) -> dict[str, Tensor]:
    return {site: masks[chosen[site]] for site, masks in table.items()}


@pytest.mark.parametrize(
    ("roles", "stride_mode"),
    [
        *((False, "paper"), (True, "timm")),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((False, "timm"), (True, "paper"))
        ),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_is_the_octave_network(name: str, roles: bool, stride_mode: str) -> None:
    """On odd maps, in training mode: every family, with masks of zeros and ones."""
    space = family_space(name, stride_mode)
    model: nn.Module = octavize(create(name), {"*": 0.0}, stride_mode=stride_mode)  # type: ignore[arg-type]
    model = (random_switchable(model) if roles else model).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) or "Drop" in type(module).__name__:
            module.eval()
    x = images(3, *space.input_size)
    relaxed, table = Relaxed(model), choice_masks(model, space)
    vanilla = model(x)
    samples = [any_choice(space, 1), dict.fromkeys(space.site, 0), dict.fromkeys(space.site, -1)]
    if name in ("thumbnail", "bottleneck", "D", "ResNeXt"):
        samples += [any_choice(space, seed) for seed in range(2, 5)]
    for chosen in samples:
        activate(model, alphas_of(space, chosen))
        expected = model(x)
        found = relaxed(x, hard_masks(table, chosen))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert_sizeable(vanilla, vanilla - expected)


def test_fixed_sites_need_no_masks() -> None:
    """The paper's rule: without masks for stem and last stage, maps stay plain there."""
    space = search_space("resnet18", (3, 64, 64), (0.0, 0.25, 0.5), stride_mode="paper")
    model = randomise(build_supernet(space, seed=0, switchable=True)).double().train()
    table = choice_masks(model, space)
    assert set(table) == {site.name for site in space.searchable}
    chosen = any_choice(space, 0)
    activate(model, alphas_of(space, chosen))
    x = images(3, 3, 64, 64)
    found = Relaxed(model)(x, hard_masks(table, chosen))
    torch.testing.assert_close(found, model(x), rtol=1e-9, atol=1e-9)


def tiny() -> tuple[nn.Module, SearchSpace]:
    args = {"num_classes": 4, "channels": (4, 6), "layers": (2, 1)}
    space = search_space(
        "thumbnail_resnet", (1, 9, 10), (0.0, 0.5, 1.0), backbone_args=args, fixed={}
    )
    model = random_switchable(build_supernet(space, seed=0))
    return randomise(model).double().train(), space


def loss_of(relaxed: Relaxed, masks: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(relaxed(images(4, 1, 9, 10), masks), torch.arange(4))


@pytest.mark.parametrize("hard", [True, False])
def test_the_gradient_of_the_masks_agrees_with_finite_differences(hard: bool) -> None:
    model, space = tiny()
    relaxed, table = Relaxed(model), choice_masks(model, space)
    masks = hard_masks(table, any_choice(space, 5))
    if not hard:
        masks = {site: 0.2 + 0.5 * mask for site, mask in masks.items()}
    masks = {site: mask.clone().requires_grad_() for site, mask in masks.items()}
    sites = list(masks)
    grads = torch.autograd.grad(loss_of(relaxed, masks), [masks[site] for site in sites])
    step = 1e-6
    for site, grad in zip(sites, grads, strict=True):
        for channel in range(len(grad)):
            ends = []
            for sign in (1, -1):
                moved = masks[site].detach().clone()
                moved[channel] += sign * step
                ends.append(loss_of(relaxed, masks | {site: moved}).item())
            slope = (ends[0] - ends[1]) / (2 * step)
            assert float(grad[channel]) == pytest.approx(slope, rel=1e-5, abs=1e-7), site
    assert sum(float(grad.abs().sum()) for grad in grads) > 0.1


def test_the_gradient_of_the_last_site_is_the_difference_of_its_versions() -> None:
    """What is read once is read linearly: the logits move from one version to the other evenly."""
    model, space = tiny()
    relaxed, table = Relaxed(model), choice_masks(model, space)
    masks = hard_masks(table, any_choice(space, 5))
    ends = [torch.zeros_like(masks["layer2"]), torch.ones_like(masks["layer2"])]
    low, middle, high = (
        relaxed(images(4, 1, 9, 10), masks | {"layer2": mask})
        for mask in (ends[0], 0.3 * ends[1], ends[1])
    )
    torch.testing.assert_close(middle, 0.7 * low + 0.3 * high)
    assert_sizeable(low - high)


def test_the_view_follows_the_weights_and_gives_them_no_gradients() -> None:
    model, space = tiny()
    relaxed, table = Relaxed(model), choice_masks(model, space)
    chosen = any_choice(space, 2)
    masks = {k: m.clone().requires_grad_() for k, m in hard_masks(table, chosen).items()}
    loss_of(relaxed, masks).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = loss_of(relaxed, masks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert abs((loss_of(relaxed, masks) - first).item()) > 1e-3
    model.load_state_dict(before)
    assert loss_of(relaxed, masks).item() == pytest.approx(first.item(), abs=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_groups_are_cut_as_the_convolutions_cut_them() -> None:
    model = octavize(timm.create_model("resnext50_32x4d", num_classes=3), {"*": 0.0})
    space = search_space("resnext50_32x4d", (3, 64, 64), (0.0, 0.5), backbone_args={})
    mask = choice_masks(model, space)["layer2.0.conv2"][1]
    assert mask.view(32, -1).tolist() == [[0.0] * 4 + [1.0] * 4] * 32
