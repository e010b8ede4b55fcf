/* Runs one compiled variant on its thread pool, for emulated processors: reads the packed weights,
 * the parameters' offsets in them and an arena with the inputs in place, writes the arena back.
 *
 *     program WEIGHTS OFFSETS ARENA THREADS SCRATCH_STRIDE RUNS
 */
#include "bare.h"
#include "rlx_abi.h"

extern int rlx_run(const rlx_frame *, rlx_runner, void *);
extern long rlx_pool_abi(void);
extern long rlx_pool_bytes(long threads);
extern void rlx_pool_init(void *pool, int threads);
extern void rlx_pool_worker(void *pool, long thread);
extern int rlx_pool_run(void *, const rlx_region *, long, const rlx_frame *);

static void *pool;

static void worker(long thread) { rlx_pool_worker(pool, thread); }

static int run(int count, char **words) {
    if (count != 7 || rlx_pool_abi() != RLX_ABI) return 2;
    long weight_bytes, offset_bytes, image_bytes;
    const char *weights = contents(words[1], &weight_bytes);
    const long *offsets = contents(words[2], &offset_bytes);
    const char *image = contents(words[3], &image_bytes);
    const long threads = number(words[4]), stride = number(words[5]), runs = number(words[6]);

    const float **params = zeroed(offset_bytes);
    for (long i = 0; i < offset_bytes / 8; i++) params[i] = (const float *)(weights + offsets[i]);
    pool = zeroed(rlx_pool_bytes(threads));
    rlx_pool_init(pool, (int)threads);
    for (long t = 1; t < threads; t++) start(worker, t);

    char *arena = zeroed(image_bytes);
    const rlx_frame frame = {params, arena, zeroed(threads * stride), stride, threads};
    for (long i = 0; i < runs; i++) {
        /* Each run gets its inputs anew: a run may write over those that it has read. */
        for (long k = 0; k < image_bytes; k++) ((volatile char *)arena)[k] = image[k];
        if (rlx_run(&frame, rlx_pool_run, pool)) return 7;
    }
    keep(words[3], arena, image_bytes);
    return 0;
}
