import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import octnas
from octnas import Architecture
from octnas.errors import SettingError
from octnas.nn.backbone import create_backbone
from octnas.settings import PRETRAINED

ARGS = {"num_classes": 10}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    torch.manual_seed(5)
    state = create_backbone("resnet18", ARGS).state_dict()
    folder = tmp_path_factory.mktemp("weights")
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pth")
    return state, folder


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_weights_of_a_file(trained: tuple[dict[str, torch.Tensor], Path], name: str) -> None:
    state, folder = trained
    model = create_backbone("resnet18", ARGS, weights=str(folder / name))
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert state["layer1.0.conv1.weight"].abs().max() > 0.01


def test_a_classifier_of_other_classes_and_other_images(
    trained: tuple[dict[str, torch.Tensor], Path],
) -> None:
    state, folder = trained
    args = {"num_classes": 7, "in_chans": 1}
    model = create_backbone("resnet18", args, weights=str(folder / "w.pth"))
    found = model.state_dict()
    assert found["fc.weight"].shape == (7, 512)
    assert torch.allclose(found["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(found["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def names() -> list[str]:
    return list(create_backbone("resnet18", ARGS).state_dict())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("open('/tmp/octnas-evil', 'w')",))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"nothing"), ""),
        (lambda path: torch.save({"fc.weight": torch.zeros(10, 512)}, path), "missing, such as"),
        (lambda path: torch.save({"model": Evil()}, path), "weights_only"),
        (lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)), "weights_only"),
        (lambda path: path.write_bytes(b""), "EOFError|Ran out of input"),
        (lambda path: path.write_bytes(b"junk"), ""),
        (lambda path: path.write_bytes(b"\x80\x02X\x01\x00\x00\x00\xe5q\x00."), ""),
        (lambda path: torch.save([1, 2], path), ""),
        (lambda path: torch.save(dict.fromkeys(names(), 1.0), path), "not all entries are tensors"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, write: object, reason: str) -> None:
    path = tmp_path / "w.pth"
    write(path)  # type: ignore[operator]
    with pytest.raises(SettingError, match=f"weights: found .*{reason}") as caught:
        create_backbone("resnet18", ARGS, weights=str(path))
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/octnas-evil").exists()


def test_a_model_without_weights_of_timms() -> None:
    args = {"layers": [1, 1], "channels": [4, 8]}
    with pytest.raises(SettingError, match="timm has no weights of this model"):
        create_backbone("thumbnail_resnet", args, weights=PRETRAINED)


FACTORY = (
    *("checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("pretrained_strict", "pretrained_filter_fn", "pretrained_model_args", "kwargs_filter"),
    *("features_only", "out_indices", "feature_cls", "feature_cfg", "model_cfg", "pruned"),
    *("device", "dtype", "scriptable", "exportable", "no_jit", "model_name"),
)


@pytest.mark.parametrize("name", FACTORY)
def test_arguments_of_the_factory_are_no_networks(name: str) -> None:
    """A checkpoint, say, would be the weights of every training from scratch."""
    allowed = "arguments of the network itself, .* remove it"
    expected = rf"^backbone_args\.{name}: found '.*', allowed: {allowed}"
    args = {**ARGS, name: "here.pth"}
    with pytest.raises(SettingError, match=expected):
        create_backbone("resnet18", args)
    with pytest.raises(SettingError, match=expected):
        octnas.search_space("resnet18", (3, 32, 32), (0.0, 0.5), backbone_args=args)
    document = Architecture("resnet18", (3, 32, 32), {}, backbone_args=args).to_dict()
    with pytest.raises(SettingError, match=expected):
        timm.create_model("octnas_network", architecture=document)


def test_a_caller_of_timm_may_name_a_device() -> None:
    document = Architecture("resnet18", (3, 32, 32), {"layer1": 0.5}).to_dict()
    for name, args in (("octnas_network", {"architecture": document}), ("oct_resnet18", {})):
        model = timm.create_model(name, device="meta", dtype=torch.float16, **args)
        found = {(value.device.type, value.dtype) for value in model.parameters()}
        assert found == {("meta", torch.float16)}


def test_what_is_the_networks_own_is_taken() -> None:
    own = {"drop_rate": 0.1, "drop_path_rate": 0.1, "drop_block_rate": 0.1, "in_chans": 1}
    args = {**ARGS, **own, "act_layer": "silu", "global_pool": "max", "stem_type": "deep"}
    assert create_backbone("resnet18", args, meta=True) is not None
