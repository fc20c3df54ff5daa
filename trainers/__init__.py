"""Loops and their objectives: backbone, transformation."""
