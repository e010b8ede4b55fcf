/* Quantised weights W [n outputs][k terms] in blocks of 32 terms:  w = d * code + m
 *
 * One layout serves every format. A format is the bits of a code (2, 3, 4, 5, 6 or 8), whether each
 * half of a block has a scale of its own (`halves`), and whether there is an m (`offsets`); the
 * names b4, b4m, b6h and so on, and which scheme becomes which, are rlx_ray.weights.formats's. Codes are
 * stored with 2^(bits - 1) added, the centre; with m, or with 8 bits (signed), as they are.
 *
 * The matrix is cut into tiles of 16 outputs, a tile into chunks of 64 terms, one after the other;
 * outputs and terms behind the end are zero. A chunk is what the 32 lanes of a warp read at once, so
 * that its codes are the A operands of four m16n8k16 products (ptx.cuh): with g = lane / 4 and t =
 * lane % 4, product f takes from a lane the terms 16 f + 4 t + {0, 1, 2, 3} of outputs g and g + 8,
 * as four pairs: r = 0: terms 0, 1 of g; 1: of g + 8; 2: terms 2, 3 of g; 3: of g + 8.
 *
 *   facts   [g: 8][d, then m if any][g, g + 8][part] float16; parts are 2 blocks, or 4 halves
 *   codes   in planes of 8, 4, 2 or 1 bits, as the bits add up (6 = 4 + 2), the low bits first:
 *     8     [2][lane] 16 bytes: words 2f, 2f + 1 of f = 2 i, 2 i + 1; pairs r = 0, 1 and 2, 3
 *     4     [lane] word f for each product: pair r in bits 4 r and 16 + 4 r
 *     2     [lane] word f / 2: pair r in bits 2 i and 16 + 2 i, i = 4 (f % 2) + r
 *     1     [lane] one word: pair r in bits i and 16 + i, i = 4 f + r
 *
 * models/packing_cuda.py writes it. */
#ifndef RLX_BLOCKS_CUH
#define RLX_BLOCKS_CUH

#include "rlx.cuh"

/* Two codes of 16 bits each as exact numbers of T: u - centre, or of two's complement in 8 bits. The
 * code becomes the low bits of a number whose last place is worth 1, 1024 + u in half and 128 + u in
 * bfloat16; a bfloat16 of 8-bit codes takes their sign bit into what is added: -128 or -256. */
template <class T, int BITS, int CENTRE> struct Coded;
template <int BITS, int CENTRE> struct Coded<__half, BITS, CENTRE> {
    RLX_MEMBER static unsigned pair(unsigned u) {
        constexpr unsigned LESS = 0x6400u + (BITS == 8 ? 128 : CENTRE);
        if (BITS == 8) u ^= 0x00800080u;
        return bits_of(__hsub2(of_bits<__half2>(u | 0x64006400u), of_bits<__half2>(LESS * 0x10001u)));
    }
};
template <int BITS, int CENTRE> struct Coded<__nv_bfloat16, BITS, CENTRE> {
    RLX_MEMBER static unsigned pair(unsigned u) {
        constexpr unsigned LESS = 0xc300u + CENTRE; /* -(128 + centre) */
        const unsigned more = BITS == 8 ? 0xc300c300u | (u & 0x00800080u) : LESS * 0x10001u;
        if (BITS == 8) u &= 0x007f007fu;
        return bits_of(__hadd2(of_bits<__nv_bfloat162>(u | 0x43004300u), of_bits<__nv_bfloat162>(more)));
    }
};

/* What a lane has of a chunk. */
template <int BITS, bool HALVES, bool OFFSETS> struct BlockChunk {
    static constexpr int PARTS = HALVES ? 4 : 2, FACTS = (OFFSETS ? 4 : 2) * PARTS;
    static constexpr int HEAD = 16 * FACTS, BYTES = HEAD + 128 * BITS;
    static constexpr int CENTRE = OFFSETS || BITS == 8 ? 0 : 1 << (BITS - 1);
    static constexpr bool SCALED = true, OFFSET = OFFSETS;
    unsigned codes[BITS], facts[FACTS / 2];

    /* The first of the four terms that product f takes from lane t = lane % 4. */
    RLX_MEMBER static int term(int f, int t) { return 16 * f + 4 * t; }

    RLX_MEMBER void read(const unsigned char *chunk, int lane) {
        const unsigned char *at = chunk + HEAD;
        read_words<FACTS / 2>(facts, chunk + lane / 4 * FACTS * 2);
        if constexpr (BITS == 8) {
            read_words<4>(codes, at + lane * 16);
            read_words<4>(codes + 4, at + 512 + lane * 16);
        }
        if constexpr (BITS & 4) read_words<4>(codes, at + lane * 16), at += 512;
        if constexpr (BITS & 2) read_words<2>(codes + (BITS & 4), at + lane * 8), at += 256;
        if constexpr (BITS & 1) read_words<1>(codes + (BITS & 6), at + lane * 4);
    }

    /* Pair r of product f: two stored codes, in the halves of a word. */
    RLX_MEMBER unsigned pair(int f, int r) const {
        if constexpr (BITS == 8) return __byte_perm(codes[2 * f + r / 2], 0, r % 2 ? 0x4342 : 0x4140);
        unsigned u = 0;
        if constexpr (BITS & 4) u = codes[f] >> (4 * r) & 0x000f000fu;
        if constexpr (BITS & 2)
            u |= (codes[(BITS & 4) + f / 2] >> (8 * (f % 2) + 2 * r) & 0x00030003u) << (BITS & 4);
        if constexpr (BITS & 1) u |= (codes[BITS & 6] >> (4 * f + r) & 0x00010001u) << (BITS & 6);
        return u;
    }

    /* The A operand of product f, of codes alone. */
    template <class T> RLX_MEMBER void operand(int f, unsigned (&a)[4]) const {
#pragma unroll
        for (int r = 0; r < 4; r++) a[r] = Coded<T, BITS, CENTRE>::pair(pair(f, r));
    }

    /* Scale, or offset, of output g (row 0) or g + 8 (row 1) in a part. */
    RLX_MEMBER float fact(int kind, int row, int part) const {
        const int i = (kind * 2 + row) * PARTS + part;
        return to_float(of_bits<__half>((unsigned short)(facts[i / 2] >> (i % 2 * 16))));
    }

    /* The weights of product f: of outputs g and g + 8, four terms each. */
    RLX_MEMBER void weights(int f, float (&w)[2][4]) const {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const unsigned u = BITS == 8 ? pair(f, r) ^ 0x00800080u : pair(f, r);
            const int row = r % 2, part = HALVES ? f : f / 2;
            const float d = fact(0, row, part), m = OFFSETS ? fact(1, row, part) : 0.0f;
#pragma unroll
            for (int e = 0; e < 2; e++) { /* 2^23 + code, less that */
                const float code = __uint_as_float(0x4b000000u | (u >> (16 * e) & 0xffffu)) -
                                   (8388608.0f + (BITS == 8 ? 128 : CENTRE));
                w[row][r / 2 * 2 + e] = d * code + m;
            }
        }
    }
};

#endif
