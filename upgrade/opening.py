"""Making and opening the table of an upgrade."""

import lance
import pyarrow as pa

from upgrade.durable import FOLDERS, Unsynced, lance_errors, local_folder, remove_torn_manifest
from upgrade.table import Table
from utils.errors import UserError, said


def table_exists(uri: str) -> bool:
    """Whether there is a Lance table at a place.

    Raises:
        UserError: there is something else.
    """
    folder = local_folder(uri)
    if folder is None:
        try:
            lance.dataset(uri)
        except ValueError:
            return False
        return True
    if any((folder / "_versions").glob("*.manifest")):
        return True
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"output: {folder} is a link or a file; name a new folder")
    if folder.is_dir() and {path.name for path in folder.iterdir()} - FOLDERS:
        raise UserError(f"output: {folder} holds other files; name a new folder")
    return False


def create_table(uri: str, schema: pa.Schema) -> Table:
    """A new table without rows.

    Raises:
        UserError: it cannot be made there.
    """
    folder = local_folder(uri)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output: {folder} cannot be written ({error.strerror})") from None
    unsynced = Unsynced(folder)
    with lance_errors(uri):
        empty = pa.Table.from_batches([], schema=schema)
        dataset = lance.write_dataset(empty, uri, mode="create")
    unsynced.sync_versions()
    return Table(uri, dataset, unsynced)


def open_table(uri: str, *, unfinished: bool = False) -> Table:
    """Open the newest version of an upgrade's table.

    Args:
        uri: a folder, or a place in an object store.
        unfinished: whether one will do whose transformation is not finished.

    Raises:
        UserError: there is none, it is not finished, is of a later Lance, or cannot be read.
    """
    if not table_exists(uri):
        raise UserError(f"output: {uri} is no upgraded gallery; run `upgrade_gallery.py transform` first")
    folder = local_folder(uri)
    if folder is not None:
        try:
            remove_torn_manifest(folder)
        except OSError as error:
            raise UserError(f"output: {folder} cannot be opened ({error.strerror})") from None
    unsynced = Unsynced(folder)
    try:
        dataset = lance.dataset(uri)
    except (OSError, ValueError, RuntimeError) as error:
        reason = said(error)
        later = "; it may be of a later Lance: pip install --upgrade pylance" if "upport" in reason else ""
        raise UserError(f"output: {uri} cannot be opened{later} ({reason})") from None
    table = Table(uri, dataset, unsynced)
    if table.state.stage != "ready" and not unfinished:
        raise UserError(f"output: {uri} is not fully transformed yet; run `upgrade_gallery.py transform` again")
    return table


def table_at(uri: str, version: int) -> Table:
    """A version of a table whose newest one another process has open."""
    return Table(uri, lance.dataset(uri, version=version), Unsynced(local_folder(uri)))
