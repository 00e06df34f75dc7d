"""A program of ``torch.export``: it needs torch to run, and nothing else."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from octnas.export.macs import program_macs
from octnas.export.source import Exported, Original

FILE = "model.pt2"


def _load(file: Path) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        # Of torch 2.11, about the bytes that it has read itself.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(file)


def export_pt2(original: Original, precision: str, folder: Path) -> Exported:  # noqa: ARG001
    """Write a program for any number of images at a time, batch norms folded, kernels split."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        original.deployed, (original.example,), dynamic_shapes=({0: batch},)
    )
    for node in program.graph.nodes:
        # With the paths of this machine.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, folder / FILE)
    written = _load(folder / FILE)
    module = written.module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return Exported((FILE,), run, program_macs(written))
