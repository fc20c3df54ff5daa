"""Upgrading a gallery that is on disk: transform it, plan the re-embedding, apply it batch by batch, refit, roll back.

A gallery is a folder of arrays with a manifest (`gallery.py`). All changes to it after its making are transactions
(`transactions.py`): prepared beside it, committed by one rename, and finished by whoever comes next if their process
was killed.
"""
