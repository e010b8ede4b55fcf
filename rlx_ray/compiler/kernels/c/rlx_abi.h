/* The contract between a compiled variant, the thread pool and the runtime (version RLX_ABI).
 *
 * A variant exports one function,   int rlx_run(const rlx_frame *, rlx_runner, void *pool)
 * and its regions are run in order by the pool, with a barrier between two of them. A region is
 * cut into `tiles` independent pieces; thread t of T takes a contiguous share of them.
 */
#ifndef RLX_ABI_H
#define RLX_ABI_H

#define RLX_ABI 4

typedef struct {
    const float *const *params; /* packed weights, in the order of the binding manifest */
    char *arena;                /* shared by all threads, 64-byte aligned */
    char *scratch;              /* `scratch_stride` bytes for each thread, 64-byte aligned */
    long scratch_stride;
    long threads; /* of the pool: how many tiles are worth having may depend on it */
    char *cache;  /* pages of keys and values (decoder.h), 64-byte aligned; 0 for encoders */
} rlx_frame;

/* `own` is what sets a region apart from others that share its functions: its parameters' places in
 * the table and its layer. Equal layers are one function. */
typedef void (*rlx_tile)(const rlx_frame *frame, char *scratch, long tile, const int *own);
typedef void (*rlx_begin)(const rlx_frame *frame, char *scratch, const int *own);

typedef struct {
    rlx_tile run;
    long tiles;
    rlx_begin begin; /* each thread calls it once, before its first tile; 0 where there is none */
    const int *own;
} rlx_region;

typedef int (*rlx_runner)(void *pool, const rlx_region *regions, long count,
                            const rlx_frame *frame);

#endif
