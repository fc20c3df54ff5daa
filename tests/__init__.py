"""Tests, in the rooms of what they test; a package, so that they can share fakes."""
