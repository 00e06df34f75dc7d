"""Settings that only a stage finds wrong: one line that says where they stand."""

from pathlib import Path

import pytest

from octnas.errors import ConfigError
from octnas.pipeline.stages import run_stages
from tests.pipeline.tiny import open_tiny


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=gpu9", "--set: device: found 'gpu9'"),
        ("space.backbone=resnet51", "--set: space.backbone: found 'resnet51'"),
        ("space.backbone_args.channels=[4, 8, -2]", "space.backbone_args: found"),
        ("space.backbone_args.channels=[5, 8, 8]", "space.channels: found (5, 8, 8)"),
        (
            "space.backbone_args.checkpoint_path=x.pth",
            "--set: space.backbone_args.checkpoint_path: found 'x.pth', allowed: arguments",
        ),
        (
            "space.backbone=resnet18",
            "allowed: arguments of resnet18 ('ResNet' object has no attribute",
        ),
        ("supernet.recipe.optimizer=sgdd", "--set: supernet.recipe.optimizer: found 'sgdd'"),
        ("retrain.recipe.optimizer=sgdd", "--set: retrain.recipe.optimizer: found 'sgdd'"),
        ("retrain.recipe.scheduler=cosin", "--set: retrain.recipe.scheduler: found 'cosin'"),
        ("retrain.recipe.batch_size=999", "--set: retrain.recipe.batch_size: found 999"),
    ],
)
def test_settings_that_turn_out_wrong_name_their_place_before_any_training(
    tmp_path: Path, override: str, message: str
) -> None:
    run = open_tiny(tmp_path, override, "tracking.enabled=false")
    with pytest.raises(ConfigError) as caught:
        run_stages(run)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "runs" / "tiny" / "supernet" / "weights.safetensors").exists()
    # And the mended experiment goes on in the same directory.
    run_stages(open_tiny(tmp_path, "tracking.enabled=false"), ("space",))
