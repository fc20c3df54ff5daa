"""Ranking a gallery for each query: distances, and counts of what lies within them."""
