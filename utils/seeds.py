"""Randomness as a function of named numbers, so that nothing depends on what ran before."""

import numpy as np
import torch


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator that is a function of `numbers` alone, e.g. of (seed, epoch).

    A run that resumes at an epoch, and a run on more processes, draw the same numbers as the run that did not.
    """
    return torch.Generator().manual_seed(seed_of(*numbers))


def seed_of(*numbers: int) -> int:
    """A 63-bit seed that is a function of `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
