/* A token of each row of scores, drawn by chance:
 *
 *   x[i] as the row's changes make it (changes.cuh), for this draw alone
 *   p[i] ~ exp(x[i] / temperature), of which are kept, by falling score, equal ones by rising index:
 *     the first top_k tokens (0: all); of these the ones with p >= min_p times the largest; and of
 *     these, with p made to sum to 1, each whose predecessors' p sum to less than top_p.
 *
 *   order = stable argsort of -x;  w = exp((x[order] - x[order[0]]) / temperature)
 *   w = w[:top_k];  w = w[w >= min_p];  w = w[:1 + first(cumsum(w) / sum(w) >= top_p)]
 *   y = order[draw from w / sum(w)]
 *
 * and, where a row asks, how likely it was by the scores as they were given:
 *
 *   logs = x - max(x) - log(sum(exp(x - max(x))));  logprob = logs[y]
 *   likely = (stable argsort of -logs)[:reported - 1];  likely_logprobs = logs[likely]
 *
 * Temperature 0 takes the first token, and so does a score of infinity. Draws are Philox4x32-10 of the
 * row's seed at counter (step, attempt): the same seed, step, scores and changes give the same token in
 * any row of any batch.
 *
 * Constants: RLX_T; RLX_ROWS, RLX_N (at most 2^22); RLX_LIKELY: room for the likeliest, of each row;
 * RLX_BLOCK threads.
 * Arguments: x [rows, n], which is written to and holds the same bits behind; temperature float32,
 * top_k int32, top_p float32, min_p float32, seed uint64 and step int32, [rows] each; change_starts
 * int32 [rows + 1]: a row's changes are those from its start to the next row's, null: none; changes
 * [change_starts[rows]], of 16 bytes each, whose biases are lost; reported int32 [rows]: 0 for no
 * report, else 1 + how many of the likeliest, at most RLX_LIKELY or all, null: none; lengths int32
 * [rows]: rows of length 0 are skipped, null: none; y int32 [rows]; logprob float32 [rows], likely int32
 * and likely_logprobs float32 [rows, RLX_LIKELY]: what nobody asks for is not written.
 * Launch: grid ROWS; shared 8448 bytes. */
#include "changes.cuh"
#include "draw.cuh"
#include "report.cuh"

RLX_KERNEL __launch_bounds__(RLX_BLOCK, 1)
    RLX_NAME(RLX_T *x, const float *temperature, const int *top_k, const float *top_p,
             const float *min_p, const uint2 *seed, const int *step, const int *change_starts,
             Change *changes, const int *reported, const int *lengths, int *y, float *logprob,
             int *likely, float *likely_logprobs) {
    static_assert(RLX_N <= 1 << 22, "more scores than two digits count");
    __shared__ float part[32];
    const int row = blockIdx.x;
    if (lengths && lengths[row] == 0) return;
    RLX_T *scores = x + (long)row * RLX_N;
    int *digits = reinterpret_cast<int *>(dynamic_shared());
    const SampleRow<RLX_T, RLX_N, RLX_BLOCK> own = {scores, digits, digits + 2048};
    const Draw how = {temperature[row], top_k[row], top_p[row], min_p[row], seed[row], step[row]};
    const int first = change_starts ? change_starts[row] : 0;
    const int changed = change_starts ? change_starts[row + 1] - first : 0;

    if (changed > 0) {
        apply_changes<RLX_BLOCK>(scores, changes + first, changed);
        __syncthreads();
    }
    const int token = draw(own, how, part);
    __syncthreads(); /* part and the scores are read */
    if (changed > 0) {
        undo_changes<RLX_BLOCK>(scores, changes + first, changed);
        __syncthreads();
    }
    if (threadIdx.x == 0) y[row] = token;
    const int asked = reported ? reported[row] : 0;
    if (asked > 0)
        report<RLX_LIKELY>(own, token, asked - 1, part, logprob + row, likely + row * RLX_LIKELY,
                           likely_logprobs + row * RLX_LIKELY);
}
