"""Tests."""

import copy
import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octnas.errors import ArchitectureError
from octnas.space.architecture import Architecture

ARCHITECTURE = Architecture(
    backbone="resnet50",
    input_size=(3, 224, 224),
    alphas={"layer2.0.conv1": 0.25, "layer1": 0.5},
    backbone_args={"in_chans": 3},
    channel_multiple=8,
    stride_mode="paper",
)
# Written by hand: keys in order, no blanks. An id that changes orphans what users have stored.
CANONICAL = (
    '{"alphas":{"layer1":0.5,"layer2.0.conv1":0.25},"backbone":"resnet50",'
    '"backbone_args":{"in_chans":3},"channel_multiple":8,"input_size":[3,224,224],"schema":1,'
    '"stride_mode":"paper"}'
)
ID = "58f3322e83e7"  # printf '%s' CANONICAL | sha256sum | cut -c 1-12

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
ARCHITECTURES = st.builds(
    Architecture,
    backbone=st.text(max_size=8),
    input_size=st.tuples(*[st.integers(1, 999)] * 3),
    alphas=st.dictionaries(st.text(max_size=8), st.floats(0, 1), max_size=5),
    backbone_args=st.dictionaries(
        st.text(max_size=8), st.integers() | st.lists(st.booleans(), max_size=3), max_size=3
    ),
    channel_multiple=st.integers(1, 64),
    stride_mode=st.sampled_from(["paper", "timm"]),
)


def changed(**values: Any) -> dict[str, Any]:
    return {**ARCHITECTURE.to_dict(), **values}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ARCHITECTURE.to_dict().items() if name != key}


def test_id_is_the_hash_of_the_canonical_document() -> None:
    assert hashlib.sha256(CANONICAL.encode()).hexdigest()[:12] == ID
    assert json.loads(CANONICAL) == ARCHITECTURE.to_dict()
    assert ARCHITECTURE.id == ID


def test_order_of_keys_does_not_matter() -> None:
    document = ARCHITECTURE.to_dict()
    backwards = dict(reversed(document.items()))
    backwards["alphas"] = dict(reversed(document["alphas"].items()))
    assert list(backwards) != list(document)
    other = Architecture.from_dict(backwards)
    assert (other.id, other, hash(other)) == (ID, ARCHITECTURE, hash(ARCHITECTURE))


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet18"},
        {"input_size": (3, 224, 225)},
        {"alphas": {"layer1": 0.5}},
        {"alphas": {"layer1": 0.5, "layer2.0.conv1": 0.5}},
        {"backbone_args": {}},
        {"channel_multiple": 4},
        {"stride_mode": "timm"},
    ],
)
def test_everything_that_makes_a_network_is_in_the_id(change: dict[str, Any]) -> None:
    other = replace(ARCHITECTURE, **change)
    assert other.id != ID
    assert other != ARCHITECTURE


@given(ARCHITECTURES)
def test_round_trips(architecture: Architecture) -> None:
    document = json.loads(json.dumps(architecture.to_dict()))
    for other in (
        Architecture.from_dict(document),
        pickle.loads(pickle.dumps(architecture)),
        copy.deepcopy(architecture),
    ):
        assert other == architecture
        assert hash(other) == hash(architecture)
        assert other.id == architecture.id


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    ARCHITECTURE.save(path)
    assert Architecture.load(path) == ARCHITECTURE
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"alphas": {"layer1": 0}}, {"alphas": {"layer1": 0.0}}),
        ({"alphas": {"layer1": -0.0}}, {"alphas": {"layer1": 0.0}}),
        ({"backbone_args": {"layers": (1, 2)}}, {"backbone_args": {"layers": [1, 2]}}),
        ({"backbone_args": {"a": 1}}, {"backbone_args": {"a": True}}),
        ({"input_size": [3, 8, 8]}, {"input_size": (3, 8, 8)}),
    ],
)
def test_equal_if_and_only_if_the_ids_are(left: dict[str, Any], right: dict[str, Any]) -> None:
    a, b = replace(ARCHITECTURE, **left), replace(ARCHITECTURE, **right)
    assert (a == b) == (a.id == b.id) == (hash(a) == hash(b))


def test_minus_zero_is_zero() -> None:
    assert replace(ARCHITECTURE, alphas={"a": -0.0}).id == replace(ARCHITECTURE, alphas={"a": 0}).id


def test_is_a_value() -> None:
    layers, alphas = [1, 1], {"layer1": 0.5}
    architecture = replace(ARCHITECTURE, backbone_args={"layers": layers}, alphas=alphas)
    before = architecture.id
    layers.append(9)
    alphas["layer1"] = 0.25
    architecture.to_dict()["backbone_args"]["layers"].append(9)
    architecture.to_dict()["alphas"]["layer1"] = 0.75
    assert architecture.id == before
    with pytest.raises(TypeError):
        architecture.alphas["layer1"] = 0.25  # type: ignore[index]
    with pytest.raises(TypeError):
        architecture.backbone_args["layers"] = []  # type: ignore[index]
    assert architecture != architecture.to_dict()
    assert len({architecture, copy.copy(architecture), ARCHITECTURE}) == 2


@pytest.mark.parametrize("alpha", [-0.001, 1.001, float("nan"), float("inf"), 10**400])
def test_alpha_outside_of_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ArchitectureError, match="α of site 'layer1'"):
        replace(ARCHITECTURE, alphas={"layer1": alpha})


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), float("inf"), b"x"])
def test_only_json_is_taken_as_backbone_arguments(value: object) -> None:
    with pytest.raises(ArchitectureError, match="backbone_args"):
        replace(ARCHITECTURE, backbone_args={"a": value})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "NoneType"),
        ([], "list"),
        ("resnet50", "str"),
        ({}, "schema: found None, allowed: 1"),
        (changed(schema=2), "schema: found 2, allowed: 1"),
        (changed(schema="1"), "schema: found '1'"),
        (changed(schema=True), "schema: found True"),
        (without("schema"), "schema: found None"),
        (without("alphas"), "alphas"),
        (changed(colour="red"), "unknown keys colour"),
        (changed(backbone=None), "'backbone'"),
        (changed(backbone_args=[]), "'backbone_args'"),
        (changed(input_size=224), "'input_size'"),
        (changed(input_size=[3, 224]), "'input_size'"),
        (changed(input_size=[3, 224, 0]), "'input_size'"),
        (changed(input_size=[3, 224, 224.0]), "'input_size'"),
        (changed(input_size=[3, 224, True]), "'input_size'"),
        (changed(alphas=[0.5]), "'alphas'"),
        (changed(alphas={"layer1": "0.5"}), "'alphas'"),
        (changed(alphas={"layer1": True}), "'alphas'"),
        (changed(alphas={"layer1": None}), "'alphas'"),
        (changed(alphas={"layer1": 2}), "α of site 'layer1': found 2"),
        (changed(channel_multiple=0), "channel_multiple: found 0"),
        (changed(channel_multiple=10**400), "0000, allowed: 1 to 65536"),
        (changed(input_size=[3, 224, 65_537]), "input_size: found 65537, allowed: 1 to 65536"),
        (changed(channel_multiple=1.0), "'channel_multiple'"),
        (changed(channel_multiple=None), "'channel_multiple'"),
        (changed(stride_mode="fast"), "stride_mode: found 'fast', allowed: paper, timm"),
        (changed(stride_mode=[]), "'stride_mode'"),
    ],
)
def test_malformed_documents_are_refused(document: Any, message: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_dict(document)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(JSON_VALUES)
def test_arbitrary_json_is_refused(document: Any) -> None:
    with pytest.raises(ArchitectureError):
        Architecture.from_dict(document)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ARCHITECTURE.to_dict(), JSON_VALUES)))
def test_arbitrary_values_are_refused_or_read_back(values: dict[str, Any]) -> None:
    try:
        architecture = Architecture.from_dict(changed(**values))
    except ArchitectureError:
        return
    assert Architecture.from_dict(architecture.to_dict()) == architecture


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}', b'"text"', b"1e5", b"9" * 5000],
)
def test_malformed_files_are_refused_with_their_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ArchitectureError, match=r"broken\.json"):
        Architecture.load(path)


def test_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError, match=r"nowhere\.json"):
        Architecture.load(tmp_path / "nowhere.json")
