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

#define VECTOR 2048 /* elements of a register: three of them fit the first-level cache */

enum { BF16, F16, F32, F64, RAW };
enum { LOAD, ADD, SUB, MUL, DIV, GE, GT, EQ, NEG, ABSOLUTE, SQUARE_ROOT, WHERE };

typedef struct {
    int32_t op, to, a, b, c; /* operands: a register, or ~k for the number k; LOAD: a source */
} Instruction;

typedef struct {
    int32_t dtype, itemsize;
} Source;

typedef struct {
    int32_t dtype, itemsize;
    int32_t reg, after; /* the register that holds it once instruction `after` is done */
    int32_t copy;       /* a source whose bytes are the result as they are, or -1 */
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

#define LEVEL(name) name##_plain
#include "vector.h"
#undef LEVEL

#if defined(__x86_64__) && defined(__GNUC__)
#define LEVELS 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define LEVEL(name) name##_avx2
#include "vector.h"
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
#undef LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

typedef int Vector(const Program *, char *, const char *const *, char *const *, long, long);

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

/* `elements` elements of every result, `piece` at a time. `inputs` and `outputs` are where they
   lie in files (an output's file may be -1: not written); `buffers` are the inputs' buffers of a
   piece each, `targets` the results' of all elements. `registers` hold the program's and one more. */
int me_run(const Program *p, int level, const Place *inputs, const Place *outputs,
           char *const *buffers, char *const *targets, char *registers, int64_t elements,
           int64_t piece, Outcome *outcome) {
    Vector *vector = vector_of(level);
    char *moved[p->results];
    memset(outcome, 0, sizeof *outcome);
    for (int k = 0; k < p->source_count; k++)
        announce(inputs[k].file, inputs[k].offset, elements * p->sources[k].itemsize);
    for (int64_t start = 0; start < elements; start += piece) {
        const long count = elements - start < piece ? elements - start : piece;
        for (int k = 0; k < p->source_count; k++) {
            const int32_t size = p->sources[k].itemsize;
            outcome->which = k;
            if (read_fully(inputs[k].file, buffers[k], count * size,
                           inputs[k].offset + start * size, outcome))
                return -1;
        }
        for (int r = 0; r < p->results; r++) {
            const Result *result = &p->outputs[r];
            moved[r] = targets[r] + start * result->itemsize;
            if (result->copy >= 0)
                memcpy(moved[r], buffers[result->copy], (size_t)(count * result->itemsize));
        }
        for (long first = 0; first < count; first += VECTOR) {
            const long n = count - first < VECTOR ? count - first : VECTOR;
            outcome->strange |= vector(p, registers, (const char *const *)buffers, moved, first, n);
        }
        for (int r = 0; r < p->results; r++) {
            outcome->which = r;
            if (outputs[r].file >= 0 &&
                write_fully(outputs[r].file, moved[r], count * p->outputs[r].itemsize,
                            outputs[r].offset + start * p->outputs[r].itemsize, outcome))
                return -1;
        }
    }
    return 0;
}
