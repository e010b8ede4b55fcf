/* Instructions that C++ has no words for, each a function; the emulation has its own of the same
 * names. Sources: PTX ISA, "mma.m16n8k16", "ldmatrix", "cp.async". */
#ifndef RLX_PTX_CUH
#define RLX_PTX_CUH

#ifndef RLX_EMULATED

/* 2^x, flushing denormals. Relative error <= 2^-22. */
RLX_DEVICE float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* What the launch asked for as dynamic shared memory, aligned to 16 bytes. */
RLX_DEVICE unsigned char *dynamic_shared() {
    extern __shared__ __align__(16) unsigned char rlx_dynamic[];
    return rlx_dynamic;
}

RLX_DEVICE unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory, past the registers and L1; zeros where not `there`. */
RLX_DEVICE void copy_async(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
}
RLX_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until all groups but the NEWEST have landed, for this thread: others need a barrier too. */
template <int NEWEST> RLX_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}

/* Four 8 x 8 matrices of 16-bit numbers; lane i names row i % 8 of matrix i / 8 in shared memory. */
RLX_DEVICE void load_matrices(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
RLX_DEVICE void load_matrices_transposed(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/* c[16][8] += a[16][16] b[16][8], sums in float32. With g = lane / 4 and t = lane % 4 a lane holds
 * a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the next; b: column g at rows
 * 2t and 2t + 8 and the next; c: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1. */
template <class T>
RLX_DEVICE void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
#define RLX_MMA(T, NAME) \
    template <> \
    __device__ __forceinline__ void mma<T>(float(&c)[4], const unsigned(&a)[4], unsigned b0, \
                                           unsigned b1) { \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0,%1,%2,%3}, " \
            "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
    }
RLX_MMA(__half, "f16")
RLX_MMA(__nv_bfloat16, "bf16")
#undef RLX_MMA

/* 16 bytes that are read once: they leave L1 to what is read again. */
RLX_DEVICE uint4 load_once(const void *p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(p)));
    return v;
}

#else

RLX_DEVICE float fast_exp2(float x) { return exp2f(x); }
RLX_DEVICE unsigned char *dynamic_shared() { return shim_dynamic; }
RLX_DEVICE void copy_async(void *to, const void *from, bool there) {
    shim_copy_start(to, from, there ? 16 : 0);
}
RLX_DEVICE void copy_commit() { shim_copy_commit(); }
template <int NEWEST> RLX_DEVICE void copy_wait() { shim_copy_wait(NEWEST); }
RLX_DEVICE void load_matrices(unsigned (&r)[4], const void *row) { shim_ldmatrix(r, row, false); }
RLX_DEVICE void load_matrices_transposed(unsigned (&r)[4], const void *row) {
    shim_ldmatrix(r, row, true);
}
template <class T> static float2 shim_pair(unsigned both) {
    const T low = shim_bits<T>((unsigned short)both), high = shim_bits<T>((unsigned short)(both >> 16));
    return {to_float(low), to_float(high)};
}
template <class T>
RLX_DEVICE void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    float x[8], y[4];
    for (int i = 0; i < 4; i++) {
        const float2 p = shim_pair<T>(a[i]);
        x[2 * i] = p.x, x[2 * i + 1] = p.y;
    }
    const float2 p = shim_pair<T>(b0), q = shim_pair<T>(b1);
    y[0] = p.x, y[1] = p.y, y[2] = q.x, y[3] = q.y;
    shim_mma(c, x, y);
}
RLX_DEVICE uint4 load_once(const void *p) { return *static_cast<const uint4 *>(p); }

#endif

/* e^x by 2^x: a relative error of 2^-22, and of |x| 2^-24 from the product. */
RLX_DEVICE float fast_exp(float x) { return fast_exp2(x * 1.44269504f); }

/* COUNT words (1, 2 or a multiple of 4) that are read once. */
template <int COUNT> RLX_DEVICE void read_words(unsigned *to, const void *from) {
    const unsigned *at = static_cast<const unsigned *>(from);
    if constexpr (COUNT == 1) {
        to[0] = __ldg(at);
    } else if constexpr (COUNT == 2) {
        const uint2 v = __ldg(reinterpret_cast<const uint2 *>(at));
        to[0] = v.x, to[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i += 4) {
            const uint4 v = load_once(at + i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    }
}

#endif
