"""The layers of a trace that ran again last, with the sites that were made: so that one read brings its neighbours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock

from torch import Tensor

# A re-run layer keeps all its sites if they are smaller than this, in bytes; else only the one asked for.
KEEP_WHOLE_LAYER = 256 * 2**20
KEPT_LAYERS = 4


class KeptLayers:
    """Sites by layer; None stands for what follows the last layer. Threads may share it: its lock is not held while a layer
    runs."""

    def __init__(self) -> None:
        self._sites: OrderedDict[int | None, dict[str, Tensor]] = OrderedDict()
        self._lock = Lock()

    def found(self, layer: int | None) -> dict[str, Tensor]:
        """What is kept of a layer."""
        with self._lock:
            if layer in self._sites:
                self._sites.move_to_end(layer)
            return self._sites.get(layer, {})

    def keep(self, layer: int | None, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep sites of a layer beside those kept before, which another thread may have made meanwhile."""
        with self._lock:
            found = self._sites[layer] = {**self._sites.get(layer, {}), **made}
            self._sites.move_to_end(layer)
            while len(self._sites) > KEPT_LAYERS:
                self._sites.popitem(last=False)
            return found

    def has_room_for(self, values: Mapping[str, Tensor]) -> bool:
        """Whether so much of one layer is kept."""
        return n_bytes(values.values()) <= KEEP_WHOLE_LAYER

    def sizes(self) -> list[int]:
        """The bytes that are kept of each layer."""
        with self._lock:
            return [n_bytes(sites.values()) for sites in self._sites.values()]


def n_bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
