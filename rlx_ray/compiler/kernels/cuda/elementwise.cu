/* A fused elementwise region:  y[r][i] = f(operands at (r, i))
 *
 *   for (int row = 0; row < ROWS; row++)
 *       for (int i = 0; i < N; i++) {
 *           const float v0 = x0[at0(row) + step0 * i], v1 = x1[at1(row) + step1 * i];  ...
 *           y[row][i] = EXPR;
 *       }
 *
 * Constants: RLX_T of y; RLX_ROWS, RLX_N, RLX_SEQ; RLX_OPERANDS(X), which is X(k, type, at, step) for
 * each operand k: `at` is the element at which a row begins, an expression of `row`, and step is 1
 * (RLX_N columns) or 0 (one value for the row); RLX_EXPR, an expression of v0, v1, ... with the
 * functions of math.cuh; RLX_V elements at once: they divide N and every `at` whose step is 1;
 * RLX_BLOCK threads.
 * Arguments: x0, x1, ... as many as there are operands, lengths, y. y may be an operand of its shape.
 * Launch: grid ceil(ROWS N / V / BLOCK).
 *
 * A residual is added by two operands and v0 + v1. */
#include "math.cuh"

#define RLX_PARAMETER(k, T, at, step) const T *x##k,
#define RLX_READ(k, T, at, step) \
    float u##k[RLX_V]; \
    load_operand<RLX_V, step>(x##k + (at), i, u##k);
#define RLX_PICK(k, T, at, step) const float v##k = u##k[j];

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(RLX_OPERANDS(RLX_PARAMETER) const int *lengths, RLX_T *y) {
    constexpr int VECTORS = RLX_N / RLX_V;
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    const int row = at / VECTORS, i = at % VECTORS * RLX_V;
    if (row >= RLX_ROWS || is_padding<RLX_SEQ>(lengths, row)) return;
    RLX_OPERANDS(RLX_READ)
    float out[RLX_V];
#pragma unroll
    for (int j = 0; j < RLX_V; j++) {
        RLX_OPERANDS(RLX_PICK)
        out[j] = RLX_EXPR;
    }
    store<RLX_V>(y + (long)row * RLX_N + i, out);
}

#undef RLX_PARAMETER
#undef RLX_READ
#undef RLX_PICK
