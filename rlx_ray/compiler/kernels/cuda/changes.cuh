/* Scores of some tokens of a row, changed while a token is drawn, and put back. */
#ifndef RLX_CHANGES_CUH
#define RLX_CHANGES_CUH

#include "rlx.cuh"

/* x += bias; x = x > 0 ? x / penalty : x * penalty; x -= less. */
struct alignas(16) Change {
    int token;
    float bias, penalty, less;
};

/* Both are called by all threads of a block, with a barrier around each; a row's tokens differ. In
 * between the scores as they were lie in place of the biases. */
template <int BLOCK, class T> RLX_DEVICE void apply_changes(T *row, Change *changes, int count) {
    for (int i = threadIdx.x; i < count; i += BLOCK) {
        const Change own = changes[i];
        const T old = row[own.token];
        const float x = to_float(old) + own.bias;
        row[own.token] = from_float<T>((x > 0 ? x / own.penalty : x * own.penalty) - own.less);
        memcpy(&changes[i].bias, &old, sizeof old);
    }
}
template <int BLOCK, class T> RLX_DEVICE void undo_changes(T *row, const Change *changes, int count) {
    for (int i = threadIdx.x; i < count; i += BLOCK)
        memcpy(row + changes[i].token, &changes[i].bias, sizeof(T));
}

#endif
