"""gs.ray: which workers a call is shared among. Nothing of Ray is imported before they are used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemmascope.arguments import is_whole, short_repr, whole_number
from gemmascope.errors import WorkersError
from gemmascope.workers.asked import AskedOfRay

if TYPE_CHECKING:
    from gemmascope.workers.ray_pool import RayPool


@dataclass(repr=False)
class RayWorkers(AskedOfRay):
    """Workers on Ray, from gs.ray: what workers= takes. In a with statement they are kept from one call to the next.

    Attributes:
        address: Where Ray is; None: it is started here.
        n: How many workers.
        gpus_per_worker: How many GPUs each has; None: one, where there are any.
        cpus_per_worker: How many cores each has.
        init: Further arguments of ray.init.

    Examples:
        >>> workers = gs.ray(n=4)
        >>> workers.n
        4
    """

    _kept: RayPool | None = field(default=None, init=False, repr=False, compare=False)

    def __enter__(self) -> RayWorkers:
        """Connect to Ray, or start it, for several calls: each goes on with the workers of the last and their model."""
        if self._kept is not None:
            raise WorkersError("these workers are in a with statement already: give the same object to each call in it")
        self._kept = self._pool(keep=True)
        return self

    def __exit__(self, *_: object) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def __repr__(self) -> str:
        defaults = {"n": None, "gpus_per_worker": None, "cpus_per_worker": 1}
        given = {name: getattr(self, name) for name in defaults}
        parts = [repr(self.address)] if self.address is not None else []
        parts += [f"{name}={value!r}" for name, value in given.items() if value != defaults[name]]
        parts += [f"init={{{', '.join(f'{name!r}: ...' for name in self.init)}}}"] if self.init else []  # may hold a token
        return f"gs.ray({', '.join(parts)})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}

    def _pool(self, keep: bool) -> RayPool:
        from gemmascope.workers.ray_pool import RayPool

        return RayPool(self, keep)

    @contextmanager
    def pool(self) -> Iterator[RayPool]:
        """The workers for one call: those that are kept, or new ones, which end with it."""
        if self._kept is not None:
            yield self._kept
            return
        pool = self._pool(keep=False)
        try:
            yield pool
        finally:
            pool.close()


def ray(
    address: str | None = None,
    n: int = 2,
    *,
    gpus_per_worker: float | None = None,
    cpus_per_worker: int = 1,
    init: Mapping[str, object] | None = None,
) -> RayWorkers:
    """Workers on Ray for the argument workers= of gs.sweep and others: processes here, or on the machines of a cluster.

    Each worker loads the model once, by its source, which must be readable there: a hub id, a folder at the same path on
    every machine, or nano. Workers take parts of the work as they become free. A part whose worker is lost is given out
    again. Numbers and files are those of one process on such a device, bit for bit, because the parts are the passes that
    one process makes, one behind the other: what is one pass keeps one worker busy, and a smaller memory= makes more.

    Nothing happens before the workers are used. In a with statement Ray starts at once and the workers with the first call;
    they are kept from call to call, with their model. Otherwise all start with a call and end with it.

    Args:
        address: None: the Ray that this process is connected to, else the one that RAY_ADDRESS names, else one that is
            started on this machine. "auto": the cluster that this machine is part of. "host:6379": a cluster, from a
            machine in its network. "ray://host:10001": a cluster, from outside.
        n: How many workers. Of a cluster that has less room, as many as fit.
        gpus_per_worker: How many GPUs each has: a whole number, or a part of one, such as 0.5. None: one where Ray has GPUs,
            else none.
        cpus_per_worker: How many cores each has, and how many threads its products take. That rounds sums otherwise: give
            as many as the one process has, to compare bit for bit.
        init: Further arguments of ray.init, such as {"runtime_env": {"pip": ["gemmascope"]}}.

    Returns:
        The workers, as a value: RayWorkers.

    Raises:
        WorkersError: An argument is out of range. When they are used: no Ray is at the address, it has not what was asked
            for, or no worker can load the model.
        MissingPackageError: When they are used: Ray is not installed.

    Examples:
        >>> gs.ray(n=4)
        gs.ray(n=4)
        >>> gs.ray("ray://head:10001", n=64, gpus_per_worker=1)
        gs.ray('ray://head:10001', n=64, gpus_per_worker=1)

    References:
        Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", arXiv 1712.05889.
    """
    if address is not None and not (isinstance(address, str) and address.strip()):
        raise WorkersError(f'address is None, "auto", "host:port" or "ray://host:port"; given {short_repr(address)}')
    n = whole_number(n, "n, how many workers,", least=1, error=WorkersError)
    cpus = whole_number(cpus_per_worker, "cpus_per_worker", least=1, error=WorkersError)
    gpus = None if gpus_per_worker is None else _gpus(gpus_per_worker)
    if init is not None and not (isinstance(init, Mapping) and all(isinstance(name, str) for name in init)):
        raise WorkersError(f"init is a mapping of further arguments of ray.init; given {short_repr(init)}")
    return RayWorkers(None if address is None else address.strip(), n, gpus, cpus, dict(init or {}))


def _gpus(value: object) -> float:
    """Ray gives out a part of one GPU, or whole ones."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        if value == int(value) >= 0:
            return int(value)
        if 0 < value < 1:
            return float(value)
    raise WorkersError(f"gpus_per_worker is a whole number, or between 0 and 1; given {short_repr(value)}")


def chosen_workers(workers: object) -> RayWorkers | None:
    """What workers= says. A number: so many on this machine."""
    if workers is None or isinstance(workers, RayWorkers):
        return workers
    if is_whole(workers) and not isinstance(workers, bool):
        return ray(n=int(workers))
    raise WorkersError(f"workers is None, how many on this machine, or gs.ray(...); given {short_repr(workers)}")
