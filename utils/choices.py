"""Choices that keys of several rooms have, and what is said of them; free of torch, which configs are read without."""

from typing import Literal

Precision = Literal["auto", "bf16", "fp32"]
Processes = int | Literal["auto"]
PROCESSES_DOC = "processes, each with a GPU of its own; auto: one for each GPU that is visible, on CPUs one in all"
