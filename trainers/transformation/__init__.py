"""Fitting a transformation to pairs: losses, training and closed forms, refinement, and the choice among methods."""
