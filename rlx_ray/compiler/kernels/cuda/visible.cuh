/* Which keys a query sees. A query row is a token and a head of the group that shares the keys: row r
 * is token r / GROUP, head r % GROUP. */
#ifndef RLX_VISIBLE_CUH
#define RLX_VISIBLE_CUH

#include "rlx.cuh"

/* The keys that a row of a tile sees are [low, high); a row that stands for nothing sees none. */
template <int GROUP, bool CAUSAL, int WINDOW> struct Visible {
    int past, length; /* of the sequence; `length` new tokens */
    int tile;         /* its first row */

    RLX_MEMBER int token(int row) const { return (tile + row) / GROUP; }
    RLX_MEMBER int high(int row) const {
        if (token(row) >= length) return 0;
        return CAUSAL ? past + token(row) + 1 : end();
    }
    RLX_MEMBER int low(int row) const { return WINDOW ? max(0, past + token(row) + 1 - WINDOW) : 0; }
    RLX_MEMBER int end() const { return past + length; } /* no key is there from here on */
};

#endif
