import torch

from octnas.measure.usage import memory_peak

CPU = torch.device("cpu")
SIZE = 300_000_000


def test_memory_that_is_given_back_counts() -> None:
    with memory_peak(CPU) as small:
        pass
    with memory_peak(CPU) as large:
        torch.ones(SIZE // 4)
    assert small.memory > 10_000_000
    assert large.memory >= small.memory + SIZE // 2 or large.memory >= SIZE
    assert small.gpu_memory == large.gpu_memory == 0
