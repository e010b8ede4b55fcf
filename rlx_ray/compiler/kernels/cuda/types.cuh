/* Element types: conversion, and accesses of up to 16 bytes. */
#ifndef RLX_TYPES_CUH
#define RLX_TYPES_CUH

RLX_DEVICE float to_float(float x) { return x; }
RLX_DEVICE float to_float(__half x) { return __half2float(x); }
RLX_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> RLX_DEVICE T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

/* The largest power of two, at most `most`, that divides n. */
RLX_CONSTANT int common_power(int n, int most) {
    while (n % most) most /= 2;
    return most;
}

/* Elements of the widest access that divides n elements of T: a power of two, at most 16 bytes. */
template <class T> RLX_CONSTANT int vector_width(int n) {
    return common_power(n, 16 / (int)sizeof(T));
}

/* V elements that are read or written at once, or, beyond 16 bytes, 16 bytes at a time. */
template <class T, int V> struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Vector {
    T at[V];
};

template <int V, class T> RLX_DEVICE void load(const T *p, float (&x)[V]) {
    const Vector<T, V> v = *reinterpret_cast<const Vector<T, V> *>(p);
#pragma unroll
    for (int i = 0; i < V; i++) x[i] = to_float(v.at[i]);
}
template <int V, class T> RLX_DEVICE void add(const T *p, float (&x)[V]) {
    float y[V];
    load<V>(p, y);
#pragma unroll
    for (int i = 0; i < V; i++) x[i] += y[i];
}
/* V columns from i on, or, with STEP 0, the one value V times. */
template <int V, int STEP, class T> RLX_DEVICE void load_operand(const T *p, int i, float (&x)[V]) {
    if constexpr (STEP) {
        load<V>(p + i, x);
    } else {
        const float one = to_float(*p);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = one;
    }
}
template <int V, class T> RLX_DEVICE void store(T *p, const float (&x)[V]) {
    Vector<T, V> v;
#pragma unroll
    for (int i = 0; i < V; i++) v.at[i] = from_float<T>(x[i]);
    *reinterpret_cast<Vector<T, V> *>(p) = v;
}

/* The same bits as another type. */
template <class To, class From> RLX_DEVICE To of_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "another size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
template <class From> RLX_DEVICE unsigned bits_of(From from) { return of_bits<unsigned>(from); }

/* COUNT words, at once where they are 2 or 4. */
template <int COUNT> RLX_DEVICE void copy_words(unsigned *to, const void *from) {
    const Vector<unsigned, COUNT> v = *static_cast<const Vector<unsigned, COUNT> *>(from);
#pragma unroll
    for (int i = 0; i < COUNT; i++) to[i] = v.at[i];
}

/* Two numbers of T in a word, the first in the low half. */
template <class T> RLX_DEVICE unsigned pack(float x, float y);
template <> __device__ __forceinline__ unsigned pack<__half>(float x, float y) {
    return bits_of(__floats2half2_rn(x, y));
}
template <> __device__ __forceinline__ unsigned pack<__nv_bfloat16>(float x, float y) {
    return bits_of(__floats2bfloat162_rn(x, y));
}

/* f(number, place) for the numbers of a row of N that a thread of THREADS has, always in the same
 * order; of 16 bytes each, AHEAD accesses are under way before the first is used. */
template <int N, int THREADS, int AHEAD, class T, class F>
RLX_DEVICE void each_number(const T *row, int thread, F f) {
    constexpr int V = vector_width<T>(N), STEP = THREADS * V;
    for (int from = thread * V; from < N; from += AHEAD * STEP) {
        Vector<T, V> v[AHEAD];
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            if (from + n * STEP < N)
                v[n] = *reinterpret_cast<const Vector<T, V> *>(row + from + n * STEP);
#pragma unroll
        for (int n = 0; n < AHEAD; n++)
            if (from + n * STEP < N)
#pragma unroll
                for (int j = 0; j < V; j++) f(to_float(v[n].at[j]), from + n * STEP + j);
    }
}

/* Two neighbouring numbers of a row of N from an even place on; what lies behind the row is 0 when
 * read, and not written. */
template <int N, class T> RLX_DEVICE float2 read_pair(const T *row, int i) {
    float x[2] = {0, 0};
    if constexpr (N % 2 == 0) {
        if (i < N) load<2>(row + i, x);
    } else {
        if (i < N) x[0] = to_float(row[i]);
        if (i + 1 < N) x[1] = to_float(row[i + 1]);
    }
    return {x[0], x[1]};
}
template <int N> RLX_DEVICE void add_pair(const float *row, int i, float2 &x) {
    const float2 y = read_pair<N>(row, i);
    x.x += y.x, x.y += y.y;
}
template <int N, class T> RLX_DEVICE void write_pair(T *row, int i, float2 x) {
    const float both[2] = {x.x, x.y};
    if constexpr (N % 2 == 0) {
        if (i < N) store<2>(row + i, both);
    } else {
        if (i < N) row[i] = from_float<T>(x.x);
        if (i + 1 < N) row[i + 1] = from_float<T>(x.y);
    }
}

#endif
