"""Whether a replica's device still works in its process."""

from __future__ import annotations

from rlx_ray.errors import DeviceLost, RlxError


class DeviceHealth:
    """Remembers that the device was lost: a process cannot have it back, a new one can."""

    def __init__(self) -> None:
        self._lost: DeviceLost | None = None

    def note(self, error: RlxError) -> None:
        """Take notice of an error: it may say that the device is lost."""
        if isinstance(error, DeviceLost):
            self._lost = error

    def check(self) -> None:
        """Nothing, while the device works.

        Raises:
            DeviceLost: nothing works on the device any more in this process.
        """
        if self._lost is not None:
            raise self._lost
