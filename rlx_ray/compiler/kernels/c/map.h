/* Elementwise work over a [rows][cols] tile: c[r][i] = f(x, r, i), f printed from the MIR.
 *
 * The last part of a row is computed on a whole register (every buffer may be read one register
 * past its end) and stored by lane. */
#ifndef RLX_MAP_H
#define RLX_MAP_H

#include "vmath.h"
#include "gemm.h"

RLX_INLINE void map(const long rows, const long cols, float *c, rlx_epilogue f,
                    const float *const *x) {
    for (long r = 0; r < rows; r++) {
        long i = 0;
        for (; i + RLX_LANES <= cols; i += RLX_LANES) st(c + r * cols + i, f((vf){0}, x, r, i));
        if (i < cols) st_part(c + r * cols + i, f((vf){0}, x, r, i), cols - i);
    }
}

#endif
