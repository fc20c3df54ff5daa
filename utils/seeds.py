"""Randomness as a function of named numbers, so that nothing depends on what ran before."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What numbers are drawn for. A stream keeps its value for good: what was drawn by it could not be drawn again."""

    SHUFFLE = 0  # the order of an epoch
    AUGMENT = 1  # random views
    COLOURS = 2  # of contrastive views
    MIXUP = 3
    HELD_OUT = 4  # items that are not trained on
    CLUSTERS = 5  # where k-means begins
    SUBSET = 6  # items of an evaluation
    BOOTSTRAP = 7  # resamples of a prediction
    CALIBRATION = 8  # mixed galleries to choose a calibration by
    EARLIER_UPGRADE = 9  # items that a model in between has re-embedded
    THINNED = 10  # training images that are left out
    DROPOUT = 11  # what a network draws in a step of its training


def generator(seed: int, stream: Stream, epoch: int = 0, *more: int) -> torch.Generator:
    """A CPU generator that is a function of its arguments alone.

    A run that resumes at an epoch, and a run on more processes, draw the same numbers as the run that did not.
    """
    return torch.Generator().manual_seed(seed_of(seed, stream, epoch, *more))


def seed_of(seed: int, stream: Stream, epoch: int = 0, *more: int) -> int:
    """A 63-bit seed that is a function of its arguments: with one `seed`, no two that differ in another are alike.

    Args:
        seed: of the run.
        stream: what is drawn; also what has no epochs has a stream of its own.
        epoch: from 0.
        more: which of several in an epoch: an image, a process.
    """
    # NumPy fills entropy up with zeros, so that (s, 2) and (s, 2, 0) are one seed: a spawn key is set off from it.
    sequence = np.random.SeedSequence((seed, epoch, stream), spawn_key=more)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
