"""Choices that keys of several rooms have; free of torch, as configs are read before it is imported."""

from typing import Literal

Precision = Literal["auto", "bf16", "fp32"]
