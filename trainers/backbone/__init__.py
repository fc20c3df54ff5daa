"""Training an embedding model: by classification, by SimCLR, or compatible with an old one."""
