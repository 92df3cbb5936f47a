"""Loads what every training needs, before there is a training: torch, the families, the device, a first step.

The first step of a process is slow however small it is: optimizers and autograd load parts of torch when they are first
used.  Nothing here depends on a job, or leaves anything behind that a training could notice.
"""

import importlib
import os

import torch
from torch import nn

from headrace_server.trainers.catalogue import Families


def warm_up() -> None:
    """Load and use everything once."""
    importlib.import_module("headrace_server.trainers.training")
    for family in Families().list():
        importlib.import_module(family.code.partition(":")[0])
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, and needed by trainings that ask for it
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = torch.get_rng_state()
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), foreach=True)
    network(torch.zeros(2, 2, device=device)).sum().backward()
    optimizer.step()
    torch.set_rng_state(state)
