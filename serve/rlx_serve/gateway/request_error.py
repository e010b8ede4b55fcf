"""A client's mistake, with what an HTTP answer says of it."""

from __future__ import annotations

from rlx_ray.errors import InputError


class RequestError(InputError):
    """A client's mistake.

    Args:
        message: what is wrong, naming the field and the value.
        remedy: what to do about it.
        param: the field.
        status: the HTTP status.
        code: a short word for programs.
    """

    def __init__(
        self,
        message: str,
        remedy: str = "",
        *,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
    ) -> None:
        super().__init__(message, remedy)
        self.param = param
        self.status = status
        self.code = code
