"""Workers of Ray that meet: all at once, all again if one dies, and failures in one line."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from octnas.cluster.ranks import _on_its_node, interface_of, run_ranks
from octnas.cluster.start import local_cluster
from octnas.errors import ClusterError, DataError
from octnas.training.distributed import joined

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_cluster(2):
        yield


def meet(folder: Path, rank: int, ranks: int, meeting: str) -> None:
    """Write the mean of the ranks' numbers, as every rank sees it."""
    with joined("cpu", rank=rank, processes=ranks, rendezvous=meeting) as together:
        mean = torch.tensor([float(rank), 10.0 * rank])
        together.average(mean)
        told = together.broadcast({"from": rank})
        (folder / f"{rank}").write_text(f"{mean.tolist()} {told}")


EXPECTED = "[0.5, 5.0] {'from': 0}"


def test_needs_ray(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="Ray does not run"):
        run_ranks(meet, tmp_path, workers=2, restarts=0, folder=tmp_path)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") == ""


def test_ranks_meet_on_the_interface_by_which_others_know_their_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(folder: Path, *_: object) -> None:
        (folder / "met").write_text(os.environ["GLOO_SOCKET_IFNAME"])

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "203.0.113.7")
    with pytest.raises(ClusterError, match=r"203\.0\.113\.7: no network interface"):
        _on_its_node(work, tmp_path, 0, 1, "")
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    _on_its_node(work, tmp_path, 0, 1, "")
    assert (tmp_path / "met").read_text() == interface_of("127.0.0.1") == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"


@pytest.mark.usefixtures("cluster")
class TestRanks:
    def test_more_than_the_cluster_has_room_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not some of them, which would wait for the others for ever; and room is left again."""
        monkeypatch.setattr("octnas.cluster.ranks._ROOM", 1.0)
        with pytest.raises(ClusterError, match=r"processes: found 3, .* the cluster has 2 CPUs"):
            run_ranks(meet, tmp_path, workers=3, restarts=0, folder=tmp_path)
        assert not list(tmp_path.glob("[012]"))
        run_ranks(meet, tmp_path, workers=2, restarts=0, folder=tmp_path / "meeting")
        assert (tmp_path / "0").read_text() == EXPECTED

    def test_they_meet(self, tmp_path: Path) -> None:
        run_ranks(meet, tmp_path, workers=2, restarts=0, folder=tmp_path / "meeting")
        assert [(tmp_path / rank).read_text() for rank in "01"] == [EXPECTED] * 2
        assert list((tmp_path / "meeting").iterdir()) == []

    def test_if_one_dies_all_begin_again(self, tmp_path: Path) -> None:
        def work(folder: Path, rank: int, ranks: int, meeting: str) -> None:
            (folder / f"life-{rank}-{os.getpid()}").touch()
            if rank == 1 and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            meet(folder, rank, ranks, meeting)

        run_ranks(work, tmp_path, workers=2, restarts=1, folder=tmp_path / "meeting")
        assert [(tmp_path / rank).read_text() for rank in "01"] == [EXPECTED] * 2
        assert len(list(tmp_path.glob("life-*"))) >= 3

    def test_one_that_keeps_dying_is_one_line(self, tmp_path: Path) -> None:
        def work(folder: Path, rank: int, ranks: int, meeting: str) -> None:
            if rank == 1:
                raise RuntimeError("broken\nhere")
            meet(folder, rank, ranks, meeting)

        with pytest.raises(ClusterError, match=r"failed \(.*broken here") as caught:
            run_ranks(work, tmp_path, workers=2, restarts=1, folder=tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_users_mistake_is_not_tried_again(self, tmp_path: Path) -> None:
        def work(folder: Path, rank: int, ranks: int, meeting: str) -> None:
            (folder / f"{rank}-{os.getpid()}").touch()
            raise DataError("no images")

        with pytest.raises(DataError, match=r"^no images$"):
            run_ranks(work, tmp_path, workers=2, restarts=3, folder=tmp_path / "meeting")
        assert 1 <= len(list(tmp_path.glob("[01]-*"))) <= 2
