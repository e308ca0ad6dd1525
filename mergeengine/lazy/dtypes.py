"""Element types by name, without torch.

The names are torch's (``bfloat16``), which are also the plan's; the codes are those of the
safetensors format (``BF16``).
"""

from dataclasses import dataclass
from typing import Literal

Category = Literal["float", "integer", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: ``name`` as torch says it, ``code`` as safetensors says it."""

    name: str
    code: str
    itemsize: int
    category: Category

    @property
    def is_float(self) -> bool:
        return self.category == "float"

    def __str__(self) -> str:
        return self.name


BFLOAT16 = DType("bfloat16", "BF16", 2, "float")
FLOAT16 = DType("float16", "F16", 2, "float")
FLOAT32 = DType("float32", "F32", 4, "float")
FLOAT64 = DType("float64", "F64", 8, "float")
UINT8 = DType("uint8", "U8", 1, "integer")

_ALL = (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    DType("float8_e4m3fn", "F8_E4M3", 1, "float"),
    DType("float8_e5m2", "F8_E5M2", 1, "float"),
    DType("int8", "I8", 1, "integer"),
    DType("int16", "I16", 2, "integer"),
    DType("int32", "I32", 4, "integer"),
    DType("int64", "I64", 8, "integer"),
    UINT8,
    DType("uint16", "U16", 2, "integer"),
    DType("uint32", "U32", 4, "integer"),
    DType("uint64", "U64", 8, "integer"),
    DType("bool", "BOOL", 1, "bool"),
    DType("complex64", "C64", 8, "complex"),
)
BY_NAME = {dtype.name: dtype for dtype in _ALL}
BY_CODE = {dtype.code: dtype for dtype in _ALL}

# What a plan may ask of `output.dtype`.
OUTPUT_DTYPES = {dtype.name: dtype for dtype in (BFLOAT16, FLOAT16, FLOAT32, FLOAT64)}
