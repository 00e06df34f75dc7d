import json
import math

import pytest

from octnas.results.networks import Network, Retrained, SeedResult
from octnas.space.architecture import Architecture
from octnas.space.costs import Cost

ARCHITECTURE = Architecture("resnet18", (3, 64, 64), {"layer1": 0.5})
COST = Cost(macs=1_000, params=20, activation_bytes=400)


def network(role: str = "searched", budget: str = "uniform α 0.5") -> Network:
    return Network(role, budget, ARCHITECTURE, COST)


def trained(*accuracies: float) -> Retrained:
    history = [{"epoch": 0, "train_loss": 2.5, "lr": 0.1, "time": 1.7e9}]
    runs = tuple(
        SeedResult(seed, {"val_top1": accuracy}, history)
        for seed, accuracy in enumerate(accuracies)
    )
    return Retrained(network(), runs)


@pytest.mark.parametrize(
    ("role", "budget", "name", "slug"),
    [
        ("searched", "uniform α 0.5", "searched, uniform α 0.5", "searched-uniform-0.5"),
        ("increasing", "0.4 of vanilla", "increasing, 0.4 of vanilla", "increasing-0.4-of-vanilla"),
        ("vanilla", "", "vanilla", "vanilla"),
        ("searched", "../../etc", "searched, ../../etc", "searched-..-..-etc"),
    ],
)
def test_names(role: str, budget: str, name: str, slug: str) -> None:
    made = network(role, budget)
    assert (made.name, made.slug) == (name, slug)
    assert set(made.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")


def test_mean_and_standard_deviation() -> None:
    retrained = trained(0.5, 0.6, 0.8)
    mean = (0.5 + 0.6 + 0.8) / 3
    squares = sum((value - mean) ** 2 for value in (0.5, 0.6, 0.8))
    assert retrained.values("val_top1") == [0.5, 0.6, 0.8]
    assert retrained.mean("val_top1") == pytest.approx(mean, rel=1e-12)
    assert retrained.std("val_top1") == pytest.approx(math.sqrt(squares / 2), rel=1e-12)


def test_one_seed_has_no_standard_deviation() -> None:
    assert trained(0.5).std("val_top1") is None
    assert trained(0.5).mean("val_top1") == 0.5


def test_round_trips() -> None:
    made = network()
    assert Network.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    retrained = trained(0.5, 0.6)
    assert Retrained.from_dict(json.loads(json.dumps(retrained.to_dict()))) == retrained


def test_roles_of_earlier_versions_are_mapped() -> None:
    document = {**network("increasing").to_dict(), "role": "growing"}
    assert Network.from_dict(document) == network("increasing")
    found = Retrained.from_dict({"network": document, "runs": [trained(0.5).runs[0].to_dict()]})
    assert found.network.role == "increasing"
    with pytest.raises(ValueError, match="role: found 'shrinking', allowed: searched"):
        Network.from_dict({**document, "role": "shrinking"})
