/* A worker's inner loop in C: read, compute, write, piece by piece inside the processor's cache.

   It runs the instructions that compiler/program.py makes of an expression, and gives the same
   bits as the operations of torch that execution/kernels.py calls. Called through ctypes, which
   lets other threads of the interpreter run meanwhile; it allocates nothing and keeps no state. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define STORED (1 << 20)
#define VECTOR 2048 /* elements of a register: three of them fit the first-level cache */
#define SAMPLE (1 << 15) /* elements at the beginning of every chunk whose rounding is measured */

/* A loop's result may lie in an operand's place: one element never depends on another. */
#if defined(__clang__)
#define SAME_PLACE_OR_APART _Pragma("clang loop vectorize(assume_safety)")
#else
#define SAME_PLACE_OR_APART _Pragma("GCC ivdep")
#endif

enum { BF16, F16, F32, F64, RAW };
enum { LOAD, ADD, SUB, MUL, DIV, GE, GT, EQ, NEG, ABSOLUTE, SQUARE_ROOT, WHERE,
       TO_BF16, TO_F16, TO_F32 };

typedef struct {
    /* Operands: a register, ~k for the number k, or STORED + k for source k as it is stored (bf16,
       in ADD, SUB and MUL of float arithmetic, apart from a number); LOAD: a source. */
    int32_t op, to, a, b, c;
} Instruction;

typedef struct {
    int32_t dtype, itemsize;
} Source;

typedef struct {
    int32_t dtype, itemsize;
    int32_t reg, after; /* the register that holds it once instruction `after` is done */
    int32_t copy;       /* a source whose bytes are the result as they are, or -1 */
    int32_t start;      /* what it is a sum upon: a register, STORED + k for source k, or -1 */
} Result;

typedef struct {
    int32_t compute, count, registers, source_count, results, reserved;
    const Instruction *instructions;
    const Source *sources;
    const Result *outputs;
    const double *numbers;
    const float *rounded;
} Program;

typedef struct {
    int32_t file, reserved;
    int64_t offset;
} Place;

typedef struct {
    int32_t kind, which, error, strange; /* kind: 0 done, 1 cannot read, 2 ends early, 3 cannot write */
    int64_t offset;
} Outcome;

static inline float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline double bits_to_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

static inline uint64_t double_to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return bits;
}

static inline float half_to_float(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7FFF) << 13;
    /* Multiplying by 2^112 moves the exponent and is exact, for subnormal numbers too. */
    uint32_t finite = float_to_bits(bits_to_float(magnitude) * bits_to_float(0x77800000));
    uint32_t bits = magnitude >= 0x0F800000 ? magnitude | 0x7F800000 : finite;
    return bits_to_float(bits | (uint32_t)(half & 0x8000) << 16);
}

static inline uint16_t float_to_half(float value) {
    uint32_t bits = float_to_bits(value), magnitude = bits & 0x7FFFFFFF;
    uint16_t sign = (uint16_t)(bits >> 16) & 0x8000;
    uint32_t normal = (magnitude + 0xFFF + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
    /* The units of numbers around 1/2 are those of subnormal halves: adding rounds to them. */
    uint32_t small = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000;
    uint32_t half = magnitude < 0x38800000 ? small : normal;
    half = magnitude >= 0x47800000 ? 0x7C00 : half;
    return magnitude > 0x7F800000 ? 0x7E00 : (uint16_t)(half | sign);
}

/* Rounded to odd, a double keeps in a float what a later rounding to 16 bits needs to know. */
static inline float double_to_odd(double value) {
    float nearest = (float)value;
    uint32_t bits = float_to_bits(nearest);
    double error = value - (double)nearest;
    int finite = (double_to_bits(value) & 0x7FF0000000000000) != 0x7FF0000000000000;
    int inexact = (error != 0) & finite & !(bits & 1);
    int outward = (error > 0) == (value > 0); /* in magnitude: +1 on the bits, whatever the sign */
    return bits_to_float(inexact ? (outward ? bits + 1 : bits - 1) : bits);
}

/* What a stored number of that type would be read as again: NaNs become one pattern. */
static inline float to_bf16_float(float value) {
    uint32_t bits = float_to_bits(value);
    uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000;
    return bits_to_float((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC00000 : rounded);
}

static inline float to_f16_float(float value) { return half_to_float(float_to_half(value)); }

static inline float to_f32_float(float value) {
    uint32_t bits = float_to_bits(value);
    return bits_to_float((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC00000 : bits);
}

static inline double to_bf16_double(double value) { return to_bf16_float(double_to_odd(value)); }
static inline double to_f16_double(double value) { return to_f16_float(double_to_odd(value)); }
static inline double to_f32_double(double value) { return to_f32_float((float)value); }

typedef struct {
    uint64_t sums[8];
    int64_t size;
    unsigned char end[64]; /* of the piece before */
} Digest;

static const unsigned char SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

static void begin(Digest *d) {
    static const uint64_t sums[8] = {0xC2B2AE3D,         0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F,
                                     0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x85EBCA77,
                                     0x27D4EB2F165667C5, 0x9E3779B1};
    memset(d, 0, sizeof *d);
    memcpy(d->sums, sums, sizeof sums);
}

static uint64_t folded(uint64_t a, uint64_t b) {
    uint64_t low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF), high = (a >> 32) * (b >> 32);
    uint64_t one = (a >> 32) * (b & 0xFFFFFFFF), two = (a & 0xFFFFFFFF) * (b >> 32);
    uint64_t middle = (low >> 32) + (one & 0xFFFFFFFF) + two;
    return ((low & 0xFFFFFFFF) | middle << 32) ^ (high + (one >> 32) + (middle >> 32));
}

static uint64_t merged(const uint64_t *sums, const unsigned char *secret, uint64_t result) {
    uint64_t key[8];
    memcpy(key, secret, 64);
    for (int i = 0; i < 8; i += 2)
        result += folded(sums[i] ^ key[i], sums[i + 1] ^ key[i + 1]);
    result = (result ^ result >> 37) * 0x165667919E3779F9;
    return result ^ result >> 32;
}

static void finish(const Digest *d, unsigned char *result) {
    const uint64_t size = (uint64_t)d->size;
    uint64_t low = merged(d->sums, SECRET + 11, size * 0x9E3779B185EBCA87);
    uint64_t high = merged(d->sums, SECRET + 117, ~(size * 0xC2B2AE3D27D4EB4F));
    for (int i = 0; i < 8; i++) {
        result[i] = (unsigned char)(high >> (56 - 8 * i));
        result[8 + i] = (unsigned char)(low >> (56 - 8 * i));
    }
}

#define LEVEL(name) name##_plain
#include "vector.h"
#include "digest.h"
#undef LEVEL

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define LEVELS 1
#define WIDE 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define LEVEL(name) name##_avx2
#include "vector.h"
#include "digest.h"
#undef LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define LEVEL(name) name##_avx512
#include "vector.h"
#include "digest.h"
#undef LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

typedef int Vector(const Program *, char *, const char *const *, char *const *, long, long,
                   double *);
typedef void Hash(Digest *, const unsigned char *, long, int, unsigned char *);

/* Raised with every change that whoever calls must know of: one that was built before is refused. */
int me_interface(void) { return 2; }

/* 0: plain C, 1: AVX2, 2: AVX-512. */
int me_level(void) {
#ifdef LEVELS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2"))
        return 1;
#endif
    return 0;
}

static Vector *vector_of(int level) {
#ifdef LEVELS
    if (level == 2)
        return vector_avx512;
    if (level == 1)
        return vector_avx2;
#endif
    return vector_plain;
}

static Hash *hash_of(int level) {
#ifdef LEVELS
    if (level == 2)
        return digest_avx512;
    if (level == 1)
        return digest_avx2;
#endif
    return digest_plain;
}

static int read_fully(int file, char *to, int64_t size, int64_t offset, Outcome *outcome) {
    while (size > 0) {
        ssize_t done = pread(file, to, (size_t)size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            outcome->kind = done < 0 ? 1 : 2;
            outcome->error = errno;
            outcome->offset = offset;
            return -1;
        }
        to += done;
        offset += done;
        size -= done;
    }
    return 0;
}

static int write_fully(int file, const char *from, int64_t size, int64_t offset, Outcome *outcome) {
    const int64_t start = offset, length = size;
    while (size > 0) {
        ssize_t done = pwrite(file, from, (size_t)size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            outcome->kind = 3;
            outcome->error = errno;
            outcome->offset = offset;
            return -1;
        }
        from += done;
        offset += done;
        size -= done;
    }
#ifdef SYNC_FILE_RANGE_WRITE
    (void)sync_file_range(file, start, length, SYNC_FILE_RANGE_WRITE);
#else
    (void)start, (void)length;
#endif
    return 0;
}

/* Workers share open files, and so their read-ahead: each says itself what it will read, unless the
   last byte is in the page cache already (asking for what is there costs a tenth of a warm run). */
static void announce(int file, int64_t offset, int64_t size) {
#if defined(POSIX_FADV_WILLNEED) && defined(RWF_NOWAIT)
    char last;
    struct iovec probe = {&last, 1};
    if (size > 0 && preadv2(file, &probe, 1, (off_t)(offset + size - 1), RWF_NOWAIT) < 0)
        (void)posix_fadvise(file, (off_t)offset, (off_t)size, POSIX_FADV_WILLNEED);
#else
    (void)file, (void)offset, (void)size;
#endif
}

static void announce_chunk(const Program *p, const Place *inputs, int64_t start, int64_t elements,
                           int64_t chunk) {
    const int64_t count = elements - start < chunk ? elements - start : chunk;
    for (int k = 0; count > 0 && k < p->source_count; k++) {
        const int32_t size = p->sources[k].itemsize;
        if (inputs[k].file >= 0)
            announce(inputs[k].file, inputs[k].offset + start * size, count * size);
    }
}

/* `elements` elements of every result, `piece` at a time. `inputs` and `outputs` are where they
   lie in files (an output's file may be -1: not written; an input's, too: then its offset is an
   address, where all of it is); `buffers` are the inputs' buffers of a piece each. `registers` hold
   the program's and one more.

   Without `digests`, `targets` take the results' elements. With `digests`, `targets` are of a piece
   each, used over and over, and what is left is the XXH3-128 of every `chunk` elements (a multiple
   of `piece`) of every result, chunk by chunk, where that is more than 240 bytes.

   `sums`, if any, take two sums of squares of each chunk's first SAMPLE elements of every result
   that is a sum upon something, chunk by chunk: of what rounding it changed, and of what was added
   to that. What is not finite counts as 0. */
int me_merge(const Program *p, int level, const Place *inputs, const Place *outputs,
           char *const *buffers, char *const *targets, char *registers, int64_t elements,
           int64_t piece, int64_t chunk, unsigned char *digests, double *sums, Outcome *outcome) {
    Vector *vector = vector_of(level);
    Hash *hash = hash_of(level);
    const char *from[p->source_count];
    char *moved[p->results];
    Digest states[p->results];
    memset(outcome, 0, sizeof *outcome);
    announce_chunk(p, inputs, 0, elements, chunk);
    for (int64_t start = 0; start < elements; start += piece) {
        const int64_t count = elements - start < piece ? elements - start : piece;
        const int64_t end = start + count, number = start / chunk;
        const int first_of_chunk = start % chunk == 0;
        const int last_of_chunk = end % chunk == 0 || end == elements;
        if (first_of_chunk)
            announce_chunk(p, inputs, start + chunk, elements, chunk);
        for (int k = 0; k < p->source_count; k++) {
            const int32_t size = p->sources[k].itemsize;
            if (inputs[k].file < 0) {
                from[k] = (const char *)(intptr_t)inputs[k].offset + start * size;
                continue;
            }
            from[k] = buffers[k];
            outcome->which = k;
            if (read_fully(inputs[k].file, buffers[k], count * size,
                           inputs[k].offset + start * size, outcome))
                return -1;
        }
        for (int r = 0; r < p->results; r++) {
            const Result *result = &p->outputs[r];
            moved[r] = targets[r] + (digests ? 0 : start * result->itemsize);
            if (result->copy >= 0)
                memcpy(moved[r], from[result->copy], (size_t)(count * result->itemsize));
        }
        for (long first = 0; first < count; first += VECTOR) {
            const long n = count - first < VECTOR ? count - first : VECTOR;
            double *sampled = sums && (start + first) % chunk < SAMPLE ? sums + number * p->results * 2 : 0;
            outcome->strange |= vector(p, registers, from, moved, first, n, sampled);
        }
        for (int r = 0; r < p->results; r++) {
            const int64_t size = p->outputs[r].itemsize;
            outcome->which = r;
            if (digests) {
                if (first_of_chunk)
                    begin(&states[r]);
                hash(&states[r], (const unsigned char *)moved[r], count * size, last_of_chunk,
                     digests + (number * p->results + r) * 16);
            }
            if (outputs[r].file >= 0 && write_fully(outputs[r].file, moved[r], count * size,
                                                    outputs[r].offset + start * size, outcome))
                return -1;
        }
    }
    return 0;
}
