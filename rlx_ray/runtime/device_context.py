"""What the executables of one device share: the turn to run, one arena, the models' weights."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from rlx_ray.artifact.manifest import Binding
from rlx_ray.errors import DeviceError, DeviceMemoryError
from rlx_ray.runtime.device import Device, Memory
from rlx_ray.runtime.weights import Weights, offsets


class DeviceContext:
    """A device of this process and what lies on it.

    Runs are serial on a device's stream, so all executables share one arena, as large as the
    largest of them wants. It moves when that changes and is given back with the last.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.turn = threading.RLock()
        """Held by whoever enqueues work."""
        self.last: weakref.ref[object] | None = None
        """Whose run was the last that wrote to the arena, if it ended well."""
        self._arena: Memory | None = None
        self._wanted: list[int] = []
        """Bytes of each executable; whatever thread collects one takes its own out."""
        self._weights: weakref.WeakValueDictionary[str, DeviceWeights] = (
            weakref.WeakValueDictionary()
        )

    def join(self, holder: object, nbytes: int) -> None:
        """Keep an arena of at least `nbytes` bytes for as long as an object lives.

        Raises:
            DeviceError: the device has no room, or is lost.
        """
        with self.turn:
            self._wanted.append(nbytes)
            leave = weakref.finalize(holder, self._leave, nbytes)
            try:
                self.arena()
            except DeviceError:
                leave()  # the error's traceback may keep the holder alive
                raise

    def arena(self) -> int:
        """The arena's address; call with the turn held.

        Raises:
            DeviceMemoryError: the arena was given up for a larger one, which has no room.
        """
        self.fit()
        wanted = max(self._wanted)
        if self._arena is None or self._arena.nbytes < wanted:
            self.last = None
            try:
                self._arena = self.device.allocate(wanted)
            except DeviceMemoryError:
                if self._arena is None:
                    raise
                self._arena = None  # its room may be what lacks; nothing in it outlives a run
                self._arena = self.device.allocate(wanted)
        return self._arena.address

    def fit(self) -> None:
        """Give an arena back that is larger than any executable that is left wants.

        Call with the turn held, before anything is allocated.
        """
        if self._arena is not None and self._arena.nbytes > max(self._wanted, default=0):
            self._arena = self.last = None

    def upload(self, weights: Weights) -> DeviceWeights:
        """A weights blob on the device; the same object for the same blob while somebody holds it.

        Raises:
            DeviceMemoryError: the device has no room.
        """
        digest = weights.manifest.blob.sha256
        with self.turn:
            found = self._weights.get(digest)
            if found is None:
                self.fit()
                found = self._weights[digest] = DeviceWeights(self.device, weights)
            return found

    def _leave(self, nbytes: int) -> None:
        self._wanted.remove(nbytes)
        if not self._wanted:  # nobody is there to run
            self._arena = None


class DeviceWeights:
    """A weights blob in a device's memory, given back when nobody holds this object."""

    def __init__(self, device: Device, weights: Weights) -> None:
        self._manifest = weights.manifest
        self._memory = device.allocate(weights.nbytes)
        device.write(self._memory.address, weights.array())

    def addresses(self, params: Sequence[Binding]) -> tuple[int, ...]:
        """The address of each parameter, in the order of a binding manifest.

        Raises:
            ArtifactError: see `weights.offsets`.
        """
        return tuple(self._memory.address + at for at in offsets(self._manifest, params))
