from packaging.requirements import Requirement

from tests.matrix import DECISIVE, oldest


def test_the_oldest_versions_are_those_of_the_project() -> None:
    found = [Requirement(line) for line in oldest()]
    assert {one.name for one in found} == set(DECISIVE)
    assert all(not one.specifier.contains("999") for one in found)
