"""Embeddings on disk, in every form that they come in: opened to be read in parts, or read as a whole."""
