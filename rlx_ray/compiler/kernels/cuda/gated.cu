/* A gated feed-forward's middle (arXiv:2002.05202):  y[r][i] = act(gate[r][i]) * up[r][i]
 *
 *   for (int r = 0; r < ROWS; r++)
 *       for (int i = 0; i < N; i++) y[r * N + i] = ACT(gate[r * PITCH + i]) * up[r * PITCH + i];
 *
 * One product [rows, 2 n] of gate and up is read with PITCH = 2 N and up = gate + N.
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N, RLX_PITCH, RLX_SEQ; RLX_ACT, a function of math.cuh; RLX_BLOCK.
 * Arguments: gate, up, lengths, y (which may be gate where PITCH is N).
 * Launch: grid ceil(ROWS N / V / BLOCK), V = the widest access that divides N and PITCH. */
#include "math.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK)
    RLX_NAME(const RLX_T *gate, const RLX_T *up, const int *lengths, RLX_T *y) {
    constexpr int ONE = vector_width<RLX_T>(RLX_N), OTHER = vector_width<RLX_T>(RLX_PITCH);
    constexpr int V = ONE < OTHER ? ONE : OTHER, VECTORS = RLX_N / V;
    const int at = blockIdx.x * RLX_BLOCK + threadIdx.x;
    const int row = at / VECTORS, i = at % VECTORS * V;
    if (row >= RLX_ROWS || is_padding<RLX_SEQ>(lengths, row)) return;
    float g[V], u[V];
    load<V>(gate + (long)row * RLX_PITCH + i, g);
    load<V>(up + (long)row * RLX_PITCH + i, u);
#pragma unroll
    for (int j = 0; j < V; j++) g[j] = RLX_ACT(g[j]) * u[j];
    store<V>(y + (long)row * RLX_N + i, g);
}
