/* The contract of these kernels with who launches them.
 *
 * A .cu file is a template. A unit includes it once for each instance, with RLX_NAME (the name of
 * the extern "C" __global__ function) and the file's constants defined before and undefined behind
 * it; macros of its own the file undefines. What each file wants is written at its top, and held by
 * ir/cuda_kernels.py (names and defaults of the constants, order of the arguments) and
 * ir/cuda_grids.py (grid, block, dynamic shared memory, and constants that follow from others).
 *
 *   RLX_T      element type of activations, weights and cache: float, __half or __nv_bfloat16.
 *              Sums are float32 throughout; gains, biases and rotary tables are float32 always.
 *   arguments  are pointers, whatever they point to: the launcher knows no kernel's types. One that
 *              an instance does not read may be null. Pointers are aligned to 16 bytes. No two may
 *              overlap but where a file says so.
 *   rows       of tokens are a rectangle [batch * seq, n], row-major. `lengths` int32 [batch] says
 *              how many of a sequence's seq rows count. Kernels skip the others: what stands there
 *              stays as it is, and is read by none. RLX_SEQ 0: all rows count, no lengths.
 *   ragged     rows are instead one run [rows, n], one sequence after the other: RLX_RAGGED is how many
 *              rows there is room for, and 0 for a rectangle. `starts` int32 [batch + 1] says where
 *              sequences begin and the last one ends (starts.cu). Kernels over rows know the run as
 *              one sequence: RLX_SEQ is its room, and `lengths` points to how many rows count.
 *   decoders   `past` int32 [batch]: tokens of a sequence that the cache holds before this step.
 *              `pages` int32 [batch, RLX_TABLE]: its page table, -1 for none. Token i lies in page
 *              pages[i / 32], slot i % 32. A page begins every RLX_PAGE_STRIDE elements; `cache`
 *              points to the layer's part of page 0, which is [kv_heads][K, V][32][dim] of RLX_T:
 *              what a head reads of a page is one run of memory, keys as values row by row, so that
 *              16 bytes are neighbouring numbers of one token. Free slots may hold anything.
 *   launches   Blocks are a multiple of 32 threads, all of one dimension; all lanes of a warp take
 *              part in what a warp does together. More than 48 KiB of shared memory must be asked
 *              for when the kernel is loaded. Counts that are known at run time bound no grid:
 *              blocks without work end early.
 *   bits       A row's bits do not depend on the other rows, on the order in which threads run, or
 *              on the launch; an instance with other constants may round otherwise. */
#ifndef RLX_CUH
#define RLX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define RLX_DEVICE static __device__ __forceinline__
#define RLX_MEMBER __device__ __forceinline__
#define RLX_CONSTANT static __host__ __device__ constexpr
#define RLX_KERNEL extern "C" __global__ void
#define RLX_PAGE 32 /* tokens of a page: rlx_ray.shape.PAGE */
#define RLX_ALL 0xffffffffu
#define RLX_INFINITY __int_as_float(0x7f800000)

/* The row is padding: it stands behind the end of its sequence. */
template <int SEQ> RLX_DEVICE bool is_padding(const int *lengths, int row) {
    if constexpr (SEQ > 0) return row % SEQ >= lengths[row / SEQ];
    return false;
}

RLX_CONSTANT int ceil_div(int a, int b) { return (a + b - 1) / b; }

#include "types.cuh"
#include "ptx.cuh"
#include "reduce.cuh"

#endif
