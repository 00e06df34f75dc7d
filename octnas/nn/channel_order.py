"""Sort the channels of a trained ResNet, so that those that lose least by it go low.

An octave network keeps the last channels of each site at half resolution, and training leaves
channels in any order. Permuting the channels of a site, in everything that writes or reads them,
changes nothing about what the network computes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d, EcaModule, EffectiveSEModule, SEModule
from timm.models.resnet import ResNet
from torch import Tensor, nn

from octnas.errors import ArchitectureError, DataError, require
from octnas.nn.conv import is_depthwise
from octnas.nn.octave import pool, upsample
from octnas.nn.octavize import ConvSite, modules_on_features, stages, supported_convs
from octnas.nn.weights import check_finite

Criterion = Literal["energy", "taylor"]
Batch = Tensor | tuple[Tensor, Tensor]
Orders = dict[str, Tensor]


def sort_channels(model: nn.Module, sensitivities: Mapping[str, Tensor]) -> Orders:
    """Sort the channels of every site by descending sensitivity, in place.

    The network computes what it computed before, and keeps its keys and parameters. What has been
    stored of the order of channels elsewhere, such as an optimizer's state, is void.

    Args:
        model: a timm ResNet, not yet an octave network.
        sensitivities: see `channel_orders`.

    Returns:
        Where each channel was before, see `channel_orders`.

    Raises:
        UnsupportedModelError: a model that `octnas.octavize` does not take.
        SettingError: sensitivities that do not fit the model; nothing has been changed then.
    """
    orders = channel_orders(model, sensitivities)
    take_channels(model, orders)
    return orders


def channel_orders(model: nn.Module, sensitivities: Mapping[str, Tensor]) -> Orders:
    """The order of each site's channels by descending sensitivity; equal ones keep their order.

    Sites whose maps are added share one order, by the sum of their sensitivities. Around a grouped
    convolution channels stay inside their group. Those of `kept_sites` keep their order.

    Args:
        model: a timm ResNet, not yet an octave network.
        sensitivities: by site, ``(C,)`` each, see `sensitivity`; missing sites add nothing.

    Returns:
        By site, ``(C,)`` int64 on the CPU: the present index of each channel to be.

    Raises:
        UnsupportedModelError: a model that `octnas.octavize` does not take.
        SettingError: an unknown site, other numbers of channels, or values that are not finite.
    """
    convs = supported_convs(model)
    leaders, kept = tied_sites(model), kept_sites(model)
    channels = {conv.site_out: _conv(model, conv).out_channels for conv in convs}
    groups = {conv.site_out: conv.split_groups for conv in convs}
    totals = {site: torch.zeros(count, dtype=torch.float64) for site, count in channels.items()}
    for site, values in sensitivities.items():
        require(site in leaders, "sensitivities", site, ", ".join(leaders))
        fits = values.shape == (channels[site],) and bool(values.isfinite().all())
        found = f"{site}: {tuple(values.shape)}"
        require(fits, "sensitivities", found, f"finite values of shape ({channels[site]},)")
        totals[leaders[site]] += values.detach().cpu().double()
    return {
        site: torch.arange(channels[site]) if site in kept else _order(totals[leader], groups[site])
        for site, leader in leaders.items()
    }


def _order(total: Tensor, groups: int) -> Tensor:
    within = total.view(groups, -1).sort(dim=1, descending=True, stable=True).indices
    return (within + torch.arange(groups)[:, None] * within.shape[1]).flatten()


def tied_sites(model: nn.Module) -> dict[str, str]:
    """For every site, the first of those that share its order.

    A stage that begins with an identity shortcut adds the stream before it to its own.
    """
    assert isinstance(model, ResNet)
    convs = {conv.name: conv for conv in supported_convs(model)}
    leaders = {conv.site_out: conv.site_out for conv in convs.values()}
    for stage, _ in stages(model):
        if not any(name.startswith(f"{stage}.0.downsample.") for name in convs):
            stream = convs[f"{stage}.0.conv1"].site_in
            assert stream is not None
            leaders[stage] = leaders[stream]
    return leaders


def kept_sites(model: nn.Module) -> dict[str, str]:
    """The sites whose channels cannot be permuted, each with the reason.

    Efficient channel attention convolves over neighbouring channels; a network without a classifier
    returns its channels. All sites tied to such a one are kept as well.
    """
    leaders, followers = tied_sites(model), list(_followers(model))
    reasons = {
        leaders[site]: f"{name} mixes neighbouring channels"
        for name, module, site in followers
        if isinstance(module, EcaModule)
    }
    if not any(isinstance(module, nn.Linear) for _, module, _ in followers):
        *_, (_, _, last) = followers
        reasons[leaders[last]] = "the network returns these channels"
    return {site: reasons[leader] for site, leader in leaders.items() if leader in reasons}


def _followers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The modules that follow convolutions, with the site whose channels they see.

    timm's classes register modules in the order of execution.
    """
    sites, current = {conv.name: conv.site_out for conv in supported_convs(model)}, ""
    for name, module in modules_on_features(model):
        if name in sites:
            current = sites[name]
        elif current:
            yield name, module, current


def first_channels(model: nn.Module, widths: Mapping[str, int]) -> Orders:
    """The first channels of every site, of each group where a convolution has groups.

    Args:
        model: a timm ResNet, not yet an octave network.
        widths: channels by site; others keep all.

    Raises:
        UnsupportedModelError: a model that `octnas.octavize` does not take.
        SettingError: an unknown site, or channels that it cannot have.
    """
    convs, leaders = supported_convs(model), tied_sites(model)
    full = {conv.site_out: _conv(model, conv).out_channels for conv in convs}
    groups = {conv.site_out: conv.split_groups for conv in convs}
    for site, width in widths.items():
        require(site in full, "widths", site, ", ".join(full))
        step, leader = groups[site], leaders[site]
        fits = type(width) is int and 0 < width <= full[site] and width % step == 0
        require(fits, f"widths.{site}", width, f"a multiple of {step} up to {full[site]}")
        same = widths.get(leader, full[leader])
        require(width == same, f"widths.{site}", width, f"{same}, as for {leader}")
    orders = {}
    for site, count in full.items():
        channels = torch.arange(count).view(groups[site], -1)
        width = widths.get(site, widths.get(leaders[site], count))
        orders[site] = channels[:, : width // groups[site]].flatten()
    return orders


@torch.no_grad()
def take_channels(model: nn.Module, orders: Mapping[str, Tensor]) -> None:
    """Leave a network these channels of every site, in this order, in place.

    Args:
        model: a timm ResNet, not yet an octave network.
        orders: by site, ``(n,)`` int64: indices of channels. They are the same for tied sites, see
            `tied_sites`; around a grouped convolution, as many of each group, group by group.

    Raises:
        UnsupportedModelError: a model that `octnas.octavize` does not take.
    """
    convs, followers = supported_convs(model), list(_followers(model))
    channels = {conv.site_out: _conv(model, conv).out_channels for conv in convs}
    for conv in convs:
        order_in = orders[conv.site_in] if conv.site_in else None
        _take_of_conv(_conv(model, conv), order_in, orders[conv.site_out])
    for _, module, site in followers:
        order = orders[site]
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                _take(module, name, order)
            module.num_features = len(order)
        elif isinstance(module, SEModule):
            _take(module.fc1, "weight", order, dim=1)
            _take(module.fc2, "weight", order)
            _take(module.fc2, "bias", order)
            module.fc1.in_channels = module.fc2.out_channels = len(order)
        elif isinstance(module, EffectiveSEModule):
            _take_of_conv(module.fc, order, order)
        elif isinstance(module, BlurPool2d) and module.channels is not None:
            _take(module, "filt", order)
            module.channels = len(order)
        elif isinstance(module, nn.Linear):
            # The pooled channels, once for each kind of pooling.
            kinds = module.in_features // channels[site]
            order = torch.cat([order + i * channels[site] for i in range(kinds)])
            _take(module, "weight", order, dim=1)
            module.in_features = len(order)
            break  # what follows sees classes


def _take_of_conv(conv: nn.Conv2d, order_in: Tensor | None, order_out: Tensor) -> None:
    weight, depthwise = conv.weight.detach(), is_depthwise(conv)
    if order_in is not None and not depthwise:
        # Of each group apart.
        columns = (order_in % weight.shape[1]).view(conv.groups, -1).to(weight.device)
        rows = weight.unflatten(0, (conv.groups, -1))
        weight = torch.cat([r.index_select(1, c) for r, c in zip(rows, columns, strict=True)])
    _put(conv, "weight", weight.index_select(0, order_out.to(weight.device)))
    _take(conv, "bias", order_out)
    if order_in is not None:
        conv.in_channels = len(order_in)
    conv.out_channels = len(order_out)
    conv.groups = len(order_out) if depthwise else conv.groups


def _take(module: nn.Module, name: str, order: Tensor, dim: int = 0) -> None:
    values = getattr(module, name)
    if values is not None:
        _put(module, name, values.detach().index_select(dim, order.to(values.device)))


def _put(module: nn.Module, name: str, values: Tensor) -> None:
    """Replace the values of a parameter or buffer, which remains itself if the shape does."""
    there = getattr(module, name)
    if there.shape == values.shape:
        there.copy_(values)
    elif isinstance(there, nn.Parameter):
        setattr(module, name, nn.Parameter(values, there.requires_grad))
    else:
        setattr(module, name, values)


def sensitivity(
    model: nn.Module, batches: Iterable[Batch], criterion: Criterion = "energy"
) -> dict[str, Tensor]:
    """What each channel's consumers would lose if it were at half resolution.

    A consumer is a convolution that takes the site's maps x. With d = x − upsample(pool(x)), what
    half resolution loses of them, and W the consumer's kernel, a channel has

    - ``"energy"``: the mean of d² over images and pixels, times the sum of squares of its weights
      in W;
    - ``"taylor"``: the first-order change of the cross entropy L: the mean over images of the
      absolute value of Σ ∂L/∂x · d, the sum over pixels (cf. arXiv 1611.06440, §2.2);

    summed over its consumers.

    Args:
        model: a timm ResNet, not yet an octave network. It is evaluated in eval mode; its training
            mode is restored.
        batches: of images ``(N, 3, H, W)`` or of images and labels ``(N,)``, on the model's device;
            ``"taylor"`` needs labels.
        criterion: one of those above.

    Returns:
        By site, ``(C,)`` float64 on the CPU, at least 0; 0 where a site has no consumer.

    Raises:
        SettingError: an unknown criterion, or no labels for ``"taylor"``.
        UnsupportedModelError: a model that `octnas.octavize` does not take.
        ArchitectureError: weights or outputs that are not finite.
        DataError: there are no images.
    """
    require(criterion in get_args(Criterion), "criterion", criterion, "energy, taylor")
    convs = supported_convs(model)
    check_finite(model, "the model")
    sums = {
        conv.site_out: torch.zeros(_conv(model, conv).out_channels, dtype=torch.float64)
        for conv in convs
    }
    consumers = {_conv(model, conv): conv.site_in for conv in convs if conv.site_in}
    count = 0
    with _evaluating(model):
        for batch in batches:
            images, labels = (batch, None) if isinstance(batch, Tensor) else batch
            count += len(images)
            if criterion == "energy":
                found = _energies(model, images, list(consumers))
            else:
                require(labels is not None, "criterion", criterion, "energy, without labels")
                assert labels is not None
                found = _taylor(model, images, labels, list(consumers))
            for conv, values in found.items():
                sums[consumers[conv]] += values.detach().cpu().double()
    if not count:
        raise DataError("found no images to measure the channels on")
    return {site: total / count for site, total in sums.items()}


def _energies(
    model: nn.Module, images: Tensor, convs: Sequence[nn.Conv2d]
) -> dict[nn.Conv2d, Tensor]:
    """The sum over images for each consumer, ``(C,)``."""
    found: dict[nn.Conv2d, Tensor] = {}

    def note(conv: nn.Conv2d, args: tuple[Tensor]) -> None:
        # Squares may overflow in half precision.
        energy = _detail(args[0]).float().square().mean((2, 3)).sum(0)
        # (groups, rows, columns, k, k)
        rows = conv.weight.float().unflatten(0, (conv.groups, -1))
        found[conv] = energy * rows.square().sum((1, 3, 4)).flatten()

    with torch.no_grad(), _before(convs, note):
        _logits(model, images)
    return found


def _taylor(
    model: nn.Module, images: Tensor, labels: Tensor, convs: Sequence[nn.Conv2d]
) -> dict[nn.Conv2d, Tensor]:
    """The sum over images for each consumer, ``(C,)``."""
    seen: dict[nn.Conv2d, Tensor] = {}

    def note(conv: nn.Conv2d, args: tuple[Tensor]) -> Tensor:
        # A view of its own: what else is done with the maps has no part in its gradient.
        seen[conv] = args[0].view_as(args[0])
        return seen[conv]

    with torch.enable_grad(), _before(convs, note):
        # Of the images, so that it does not matter which parameters are frozen.
        logits = _logits(model, images.detach().requires_grad_())
        loss = F.cross_entropy(logits, labels, reduction="sum")
        grads = torch.autograd.grad(loss, list(seen.values()))
    return {
        conv: (grad.float() * _detail(x.detach()).float()).sum((2, 3)).abs().sum(0)
        for (conv, x), grad in zip(seen.items(), grads, strict=True)
    }


def _detail(x: Tensor) -> Tensor:
    return x - upsample(pool(x), like=x)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    if not logits.isfinite().all():
        raise ArchitectureError("the model: its outputs on the given images are not all finite")
    return logits


def _conv(model: nn.Module, conv: ConvSite) -> nn.Conv2d:
    module = model.get_submodule(conv.name)
    assert isinstance(module, nn.Conv2d)
    return module


@contextmanager
def _before(convs: Iterable[nn.Conv2d], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    handles = [conv.register_forward_pre_hook(hook) for conv in convs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
