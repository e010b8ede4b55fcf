"""Element types of tensors."""

from __future__ import annotations

from enum import Enum

from rlx_ray.errors import ConfigError, nearest


class DType(Enum):
    """An element type: (name, bytes per element)."""

    F32 = ("f32", 4)
    F16 = ("f16", 2)
    BF16 = ("bf16", 2)
    F64 = ("f64", 8)
    I8 = ("i8", 1)
    U8 = ("u8", 1)
    I16 = ("i16", 2)
    I32 = ("i32", 4)
    I64 = ("i64", 8)
    BOOL = ("bool", 1)

    def __init__(self, text: str, size: int) -> None:
        self.text = text
        self.size = size

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> DType:
        """The type with a name such as `f32`.

        Raises:
            ConfigError: no such type.
        """
        found = _BY_TEXT.get(text)
        if found is not None:
            return found
        names = list(_BY_TEXT)
        raise ConfigError(
            f"dtype {text!r} is not known.", nearest(text, names) or f"Use one of {names}."
        )


_BY_TEXT = {one.text: one for one in DType}
