/* XXH3-128 (seed 0) of a chunk that comes in pieces. After the algorithm's public specification
   (Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md); it says the same as the
   xxhash package for every input longer than 240 bytes, and shorter ones are left to that. All
   pieces but the last are multiples of 1024 bytes. */

#ifdef WIDE /* compilers do not see that a multiplication of halves is one instruction */
static void LEVEL(stripes)(uint64_t *restrict sums, const unsigned char *restrict from,
                           const unsigned char *restrict secret, long count) {
    __m256i sum[2];
    memcpy(sum, sums, 64);
    for (long stripe = 0; stripe < count; stripe++, from += 64, secret += 8)
        for (int i = 0; i < 2; i++) {
            const __m256i value = _mm256_loadu_si256((const __m256i *)from + i);
            const __m256i key = value ^ _mm256_loadu_si256((const __m256i *)secret + i);
            const __m256i product = _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32));
            const __m256i swapped = _mm256_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2));
            sum[i] = _mm256_add_epi64(sum[i], _mm256_add_epi64(product, swapped));
        }
    memcpy(sums, sum, 64);
}
#else
static void LEVEL(stripes)(uint64_t *restrict sums, const unsigned char *restrict from,
                           const unsigned char *restrict secret, long count) {
    for (long stripe = 0; stripe < count; stripe++, from += 64, secret += 8) {
        uint64_t value[8], key[8];
        memcpy(value, from, 64);
        memcpy(key, secret, 64);
        for (int i = 0; i < 8; i++)
            key[i] ^= value[i];
        for (int i = 0; i < 8; i++)
            sums[i] += value[i ^ 1] + (key[i] & 0xFFFFFFFF) * (key[i] >> 32);
    }
}
#endif

static void LEVEL(blocks)(uint64_t *restrict sums, const unsigned char *restrict from, long count) {
    uint64_t key[8];
    memcpy(key, SECRET + 128, 64);
    for (long block = 0; block < count; block++, from += 1024) {
        LEVEL(stripes)(sums, from, SECRET, 16);
        for (int i = 0; i < 8; i++)
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ key[i]) * 0x9E3779B1;
    }
}

static void LEVEL(digest)(Digest *d, const unsigned char *from, long size, int last,
                          unsigned char *result) {
    d->size += size;
    long whole = last ? (size - 1) / 1024 : size / 1024;
    LEVEL(blocks)(d->sums, from, whole);
    if (last) {
        unsigned char end[64];
        long rest = size - 1 - whole * 1024;
        LEVEL(stripes)(d->sums, from + whole * 1024, SECRET, rest / 64);
        long new = size < 64 ? size : 64; /* the last 64 bytes may begin in the piece before */
        memcpy(end, d->end + new, (size_t)(64 - new));
        memcpy(end + 64 - new, from + size - new, (size_t)new);
        LEVEL(stripes)(d->sums, end, SECRET + 121, 1);
        finish(d, result);
    } else
        memcpy(d->end, from + size - 64, 64);
}
