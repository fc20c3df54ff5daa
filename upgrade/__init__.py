"""Upgrading a gallery: transform it, plan the re-embedding, apply it batch by batch, push it to where it is served.

The state of an upgrade is one Lance table (`table.py`). The old embeddings come from an end (`ends/`), which is only
read until `push` and `cutover`. Every step that changes the table is one commit of Lance's.
"""

import os

# On three cores or less Lance computes by one thread, and one that waits for others of its pool may wait for ever.
os.environ.setdefault("LANCE_CPU_THREADS", "4")
