"""RayPool: workers as actors of Ray, here or on a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from gemmascope.errors import WorkersError, warn
from gemmascope.packages import requires_package
from gemmascope.workers.asked import AskedOfRay
from gemmascope.workers.host import Host
from gemmascope.workers.packing import PicklerClass
from gemmascope.workers.pool import Answered, Event, Failed, Lost, Ready, Waiting

RAY = "gemmascope[ray]"

# Seconds to look for a Ray at an address, and for workers before it is said what they wait for.
SECONDS_TO_CONNECT, SECONDS_TO_START = 10.0, 60.0

# How often a Ray is started here that does not come up in the half minute that it gives itself.
TRIES = 3

# Of a Ray that is started here. What goes through it are jobs and their numbers, and a harvest's rows, which Ray puts on the
# disk where they are more.
_OBJECT_STORE = 256 * 2**20


class RayPool:
    """See Pool. keep: keep the workers after a call, for the next one.

    Connects to Ray, or starts it: MissingPackageError or WorkersError.
    """

    def __init__(self, asked: AskedOfRay, keep: bool) -> None:
        self.n, self._keep = asked.n, keep
        self._ray, self._is_ours = _connected(asked)
        try:
            self.n_gpus = _gpus_of(asked, self._ray, self._is_ours)
        except BaseException:
            self.close()
            raise
        self._n_cpus = asked.cpus_per_worker
        options = {"num_cpus": asked.cpus_per_worker, "num_gpus": self.n_gpus, "max_restarts": 0, "max_task_retries": 0}
        self._class = self._ray.remote(Host).options(**options)
        self._actors: dict[int, Any] = {}
        self._pending: dict[Any, tuple[int, bool]] = {}  # what an actor will give: its number, and whether it opens
        self._call: tuple[Any, Any] | None = None  # the model and the task, in Ray's store
        self._n_started, self._waited = 0, 0.0

    @property
    def pickler_class(self) -> PicklerClass:
        """A pickler of functions that no module has, such as a notebook's."""
        from ray import cloudpickle

        pickler: PicklerClass = cloudpickle.CloudPickler
        return pickler

    def start(self, model: bytes, task: bytes) -> Sequence[int]:
        self._call = self._ray.put(model), self._ray.put(task)
        self._waited = 0.0
        for _ in range(self.n - len(self._actors)):
            self._new()
        for worker in self._actors:
            self._open(worker)
        return list(self._actors)

    def replace(self, worker: int) -> int:
        self._end(worker)
        number = self._new()
        self._open(number)
        return number

    def drop(self, worker: int) -> None:
        self._end(worker)

    def give(self, worker: int, job: bytes) -> None:
        self._pending[self._actors[worker].run.remote(job)] = worker, False

    def wait(self) -> Event:
        done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=1.0)
        if not done:
            self._waited += 1.0
            return Waiting(self._lacking() if self._waited >= SECONDS_TO_START else "")
        worker, opens = self._pending.pop(done[0])
        try:
            outcome = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:  # the engine's own: a Host returns those of its work
            return Failed(worker, WorkersError(f"{type(error.cause).__name__}: {error.cause}"), str(error))
        except self._ray.exceptions.RayError as error:
            return Lost(worker, str(error).strip().splitlines()[0])
        if outcome[0] == "error":
            return Failed(worker, *outcome[1:])
        return Ready(worker, outcome[1]) if opens else Answered(worker, outcome[1])

    def finish(self) -> None:
        at_work = {worker for worker, _ in self._pending.values()}
        for worker in list(self._actors):
            if worker in at_work or not self._keep:
                self._end(worker)
        self._pending.clear()
        self._call = None

    def close(self) -> None:
        """End the workers, and Ray if it was started or connected to here."""
        for worker in list(getattr(self, "_actors", ())):
            self._end(worker)
        if self._is_ours:
            self._is_ours = False
            self._ray.shutdown()

    def _new(self) -> int:
        self._n_started += 1
        self._actors[self._n_started] = self._class.remote(self._n_cpus)
        return self._n_started

    def _open(self, worker: int) -> None:
        assert self._call is not None
        self._pending[self._actors[worker].open.remote(*self._call)] = worker, True

    def _end(self, worker: int) -> None:
        actor = self._actors.pop(worker)
        self._pending = {ref: of for ref, of in self._pending.items() if of[0] != worker}
        if self._ray.is_initialized():
            self._ray.kill(actor)

    def _lacking(self) -> str:
        has = self._ray.cluster_resources()
        return (
            f"each takes {self._n_cpus} cores and {self.n_gpus:g} GPUs, and Ray has {has.get('CPU', 0):g} cores and "
            f"{has.get('GPU', 0):g} GPUs in all, which others may use. Going on to wait"
        )


def _connected(asked: AskedOfRay) -> tuple[ModuleType, bool]:
    """The module ray, connected; and whether that was done here, so that it is also to be undone here."""
    with requires_package("gs.ray", "ray", install=RAY):
        import ray
    address = asked.address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        if asked.address not in (None, "auto", "local", ray.get_runtime_context().gcs_address):
            raise WorkersError(
                f"address={asked.address!r}, and this process is connected to the Ray at "
                f"{ray.get_runtime_context().gcs_address}: leave address out to use that, or call ray.shutdown() first"
            )
        if asked.init:
            warn("this process is connected to Ray already, and init= is not used: call ray.shutdown() first to use it")
        return ray, False
    _require_answer(address)
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to Ray's makers
        n_cpus = max(os.cpu_count() or 1, asked.n * asked.cpus_per_worker)
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE, "num_cpus": n_cpus}
    for tries_left in reversed(range(TRIES if address == "local" else 1)):
        if (error := _begun(ray, address, {**options, **asked.init})) is None:
            break
        if not tries_left or "timed out" not in str(error):  # a busy machine may start it at the next try
            where = "started on this machine" if address == "local" else f"reached at {address!r}"
            raise WorkersError(f"Ray cannot be {where}: {error}") from error
    return ray, True


def _begun(ray: ModuleType, address: str, options: dict[str, object]) -> Exception | None:
    """Connect to Ray; what it raised, if it did."""
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises many kinds, and Exception itself for a start that takes too long
        ray.shutdown()
        return error
    return None


def _require_answer(address: str) -> None:
    """WorkersError where nothing answers: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("local", "auto"):
        return
    if not colon or not host or not port.isdigit():
        raise WorkersError(f'an address of Ray is "auto", "host:port" or "ray://host:port"; given {address!r}')
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise WorkersError(
            f"no Ray answers at {address!r} ({error}): `ray start --head` starts one and prints its address; from outside a "
            'cluster it is "ray://host:10001"; without address= one is started on this machine'
        ) from error


def _gpus_of(asked: AskedOfRay, ray: ModuleType, is_ours: bool) -> float:
    """How many GPUs a worker gets. WorkersError where a machine of its own has too few; a cluster may still grow."""
    has = ray.cluster_resources().get("GPU", 0)
    n_gpus = (1 if has else 0) if asked.gpus_per_worker is None else asked.gpus_per_worker
    if is_ours and (asked.address in (None, "local")) and not os.environ.get("RAY_ADDRESS") and n_gpus * asked.n > has:
        raise WorkersError(
            f"{asked.n} workers with {n_gpus:g} GPUs each, and this machine has {has:g}: have fewer workers, or give "
            "gpus_per_worker=0, or a part such as 0.5"
        )
    return float(n_gpus)
