/* Rows of tables. */
#ifndef RLX_EMBED_CUH
#define RLX_EMBED_CUH

#include "rlx.cuh"

template <int EXTENT> RLX_DEVICE long known_row(int i) { return i >= 0 && i < EXTENT ? i : 0; }

/* x += columns [i, i + V) of a row of N / 32 float16 scales and N int8 codes, V within 32. */
template <int V, int N> RLX_DEVICE void add_coded(const void *table, long row, int i, float (&x)[V]) {
    constexpr int HEAD = N / 32 * 2, EACH = common_power(HEAD, V); /* codes read at once */
    const signed char *own = static_cast<const signed char *>(table) + row * (HEAD + N);
    const float scale = to_float(reinterpret_cast<const __half *>(own)[i / 32]);
#pragma unroll
    for (int j = 0; j < V; j += EACH) {
        const Vector<signed char, EACH> q =
            *reinterpret_cast<const Vector<signed char, EACH> *>(own + HEAD + i + j);
#pragma unroll
        for (int k = 0; k < EACH; k++) x[j + k] += scale * q.at[k];
    }
}

#endif
