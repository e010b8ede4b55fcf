/* A view of four axes as an array of its own: transpose, narrow and expand in one.
 *
 *   for (int i0 = 0; i0 < N0; i0++) for (int i1 = 0; i1 < N1; i1++)
 *       for (int i2 = 0; i2 < N2; i2++) for (int i3 = 0; i3 < N3; i3++)
 *           *y++ = x[SHIFT + i0 * S0 + i1 * S1 + i2 * S2 + i3 * S3];
 *
 * Constants: RLX_T; RLX_N0, RLX_N1, RLX_N2, RLX_N3; RLX_S0, RLX_S1, RLX_S2, RLX_S3, RLX_SHIFT;
 * RLX_BLOCK threads.
 * Arguments: x, y.
 * Launch: grid ceil(N0 N1 N2 N3 / BLOCK). */
#include "rlx.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK) RLX_NAME(const RLX_T *x, RLX_T *y) {
    const long at = (long)blockIdx.x * RLX_BLOCK + threadIdx.x;
    if (at >= (long)RLX_N0 * RLX_N1 * RLX_N2 * RLX_N3) return;
    const long i3 = at % RLX_N3, i2 = at / RLX_N3 % RLX_N2, i1 = at / (RLX_N3 * RLX_N2) % RLX_N1;
    const long i0 = at / ((long)RLX_N3 * RLX_N2 * RLX_N1);
    y[at] = x[RLX_SHIFT + i0 * RLX_S0 + i1 * RLX_S1 + i2 * RLX_S2 + i3 * RLX_S3];
}
