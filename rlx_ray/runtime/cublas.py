"""Matrix products by cuBLAS, called through ctypes.

CuPy's binding of cuBLAS refuses to work on a stream that is being captured, and sets the stream
before each call, which takes a workspace away again. So the library is called here: on one stream,
with one workspace, which is what a capture without memory of its own needs.
"""

from __future__ import annotations

import ctypes
import weakref

from rlx_ray.artifact.launch_plan import GemmStep
from rlx_ray.dtype import DType
from rlx_ray.errors import DeviceError, DeviceMemoryError

WORKSPACE = 32 << 20
"""Bytes of workspace, as cuBLAS recommends for compute capability 9.0."""

_TYPES = {DType.F32: 0, DType.F16: 2, DType.BF16: 14}  # cudaDataType
_N, _T = 0, 1  # cublasOperation_t
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32 = 68, 77  # cublasComputeType_t
_DEFAULT = -1  # cublasGemmAlgo_t
_MATH_DEFAULT, _FULL_PRECISION_REDUCTION = 0, 16  # cublasMath_t
_ALLOC_FAILED = 3  # cublasStatus_t

_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_MATRIX = (_POINTER, _INT, _INT)
_GEMM = (_POINTER, *(_INT,) * 5, _POINTER, *_MATRIX, *_MATRIX, _POINTER, *_MATRIX, _INT, _INT)
_STRIDED = (
    *(_POINTER, *(_INT,) * 5, _POINTER),
    *(*_MATRIX, _LONG, *_MATRIX, _LONG, _POINTER, *_MATRIX, _LONG, _INT, _INT, _INT),
)
_SIGNATURES = {
    "cublasCreate_v2": (_POINTER,),
    "cublasDestroy_v2": (_POINTER,),
    "cublasSetStream_v2": (_POINTER, _POINTER),
    "cublasSetWorkspace_v2": (_POINTER, _POINTER, ctypes.c_size_t),
    "cublasSetMathMode": (_POINTER, _INT),
    "cublasGemmEx": _GEMM,
    "cublasGemmStridedBatchedEx": _STRIDED,
}


class Blas:
    """cuBLAS on one stream of the current device.

    Args:
        library: cuBLAS.
        stream: the stream's handle.
        workspace: address of WORKSPACE bytes of the device; the caller holds them.

    Raises:
        DeviceError: the library does not start; DeviceMemoryError: for want of memory.
    """

    def __init__(self, library: ctypes.CDLL, stream: int, workspace: int) -> None:
        self._library = library
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(handle))
        self._handle = handle.value
        self._finalizer = weakref.finalize(self, library.cublasDestroy_v2, self._handle)
        self._call("cublasSetStream_v2", self._handle, stream)
        self._call("cublasSetWorkspace_v2", self._handle, workspace, WORKSPACE)
        mode = _MATH_DEFAULT | _FULL_PRECISION_REDUCTION
        self._call("cublasSetMathMode", self._handle, mode)
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)

    def gemm(self, step: GemmStep, a: int, b: int, c: int) -> None:
        """Enqueue C = A B, or A B^T, of row-major matrices at three addresses.

        cuBLAS reads columns: what is a row-major X [r, c] here is X^T [c, r] there, with the same
        pitch. So it is asked for C^T [n, m] = op(B) A^T, with the factors in the other order:
        B^T [n, k] as it lies, or, where B holds its columns as rows, B [n, k] from its transpose.
        Sums are float32, also where parts of them are added up later; the factors 1 and 0 are
        read when the call is made, so a captured call holds them.

        Raises:
            DeviceError: cuBLAS refuses; DeviceMemoryError: for want of memory.
        """
        turn = _T if step.transposed else _N
        fast = step.tf32 and step.dtype is DType.F32
        compute = _COMPUTE_32F_FAST_TF32 if fast else _COMPUTE_32F
        kind, out = _TYPES[step.dtype], _TYPES[step.out]
        sizes = (self._handle, turn, _N, step.n, step.m, step.k)
        one, zero = ctypes.addressof(self._one), ctypes.addressof(self._zero)
        if step.batch == 1:
            x, w, y = (b, kind, step.ldb), (a, kind, step.lda), (c, out, step.ldc)
            self._call("cublasGemmEx", *sizes, one, *x, *w, zero, *y, compute, _DEFAULT)
            return
        first = (b, kind, step.ldb, step.stride_b)
        second = (a, kind, step.lda, step.stride_a)
        third = (c, out, step.ldc, step.stride_c)
        self._call(
            "cublasGemmStridedBatchedEx",
            *(*sizes, one, *first, *second, zero, *third, step.batch, compute, _DEFAULT),
        )

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status == _ALLOC_FAILED:
            raise DeviceMemoryError(f"{name} had no memory.", "Load fewer variants or models.")
        if status:
            raise DeviceError(f"{name} failed with status {status} of cublasStatus_t.")
