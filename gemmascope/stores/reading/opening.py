"""gs.open_store reads a store that gs.harvest wrote."""

from __future__ import annotations

import os

from gemmascope.errors import StoreError
from gemmascope.files.paths import user_path
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model
from gemmascope.stores.manifest import read_manifest, read_shards
from gemmascope.stores.reading.shards import Shards
from gemmascope.stores.reading.store import Store


def open_store(path: str | os.PathLike[str], *, model: Model | None = None) -> Store:
    """Open a store that gs.harvest wrote, finished or not.

    Args:
        path: The folder, "~" being the home folder.
        model: A model that the store must be of; None: any. A store is read without its model.

    Returns:
        The Store. Nothing is read but its two small files.

    Raises:
        StoreError: The folder is not a store, is damaged, or was harvested from another model (the error names both).

    Examples:
        >>> _ = gs.harvest(None, ["Mary and John", "The cat sat on the mat"], "resid_post", layers=3, out="acts")
        >>> store = gs.open_store("acts")
        >>> sum(len(batch) for batch in store.batches("resid_post", 3, batch_size=4, seed=1)), store.n_rows
        (11, 11)
    """
    folder = user_path(path, error=StoreError, what="a store")
    manifest, found = read_manifest(folder), read_shards(folder)
    shards = [line for line in found.lines if line.file]
    store = Store(folder, manifest, Shards(folder, shards, manifest.spec), len(found.lines) > len(shards))
    if model is not None:
        store.require_model(model_or_nano(model))
    return store
