/* Random bits by seed and index: those of every kernel set, so that a run repeats on every machine. */
#ifndef ET_RANDOM_CUH
#define ET_RANDOM_CUH

#include "kernel.h"

/* splitmix64's finaliser (Steele, Lea & Flood 2014) */
DEVICE uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A bijection of 32-bit words with low bias, after Wellons's hash-prospector */
DEVICE uint32_t mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

DEVICE uint32_t random_bits(uint64_t key, uint32_t i) {
    return mix32(mix32(i ^ (uint32_t)key) ^ (uint32_t)(key >> 32));
}

/* 2^14 values share a key, in which value i has the number i % ET_KEY_VALUES. */
#define ET_KEY_VALUES (1 << 14)
DEVICE uint64_t random_key(uint64_t seed, int64_t i) { return mix64(seed ^ mix64((uint64_t)i / ET_KEY_VALUES)); }

#endif
