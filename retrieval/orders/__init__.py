"""Backfilling orders."""
