/* The vector machine's inner loops for one level of the processor's instructions.

   Included by native.c once per level, with LEVEL(name) giving each function a name of its own.
   Plain C: the compiler turns the loops into vector instructions. Nothing here may be contracted
   to a fused multiply-add or reordered (-ffp-contract=off, no -ffast-math): the same bits come
   out on every processor. */

/* --- loads: stored elements to the arithmetic's type ------------------------------------ */

#define LOADS(NAME, REAL)                                                                          \
    static void LEVEL(load_##NAME)(int dtype, const void *from, REAL *to, long n) {                \
        switch (dtype) {                                                                           \
        case BF16: {                                                                               \
            const uint16_t *source = from;                                                         \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (REAL)bits_to_float((uint32_t)source[i] << 16);                            \
            break;                                                                                 \
        }                                                                                          \
        case F16: {                                                                                \
            const uint16_t *source = from;                                                         \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (REAL)half_to_float(source[i]);                                            \
            break;                                                                                 \
        }                                                                                          \
        case F32: {                                                                                \
            const float *source = from;                                                            \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (REAL)source[i];                                                           \
            break;                                                                                 \
        }                                                                                          \
        case F64: {                                                                                \
            const double *source = from;                                                           \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (REAL)source[i];                                                           \
            break;                                                                                 \
        }                                                                                          \
        }                                                                                          \
    }

LOADS(float, float)
LOADS(double, double)
#undef LOADS

/* --- operations: an operand is a register or, with a step of 0, one number ---------------- */

#define LOOP(REAL, EXPRESSION)                                                                     \
    SAME_PLACE_OR_APART                                                                            \
    for (long i = 0; i < n; i++) {                                                                 \
        REAL x = a[i * as], y = b[i * bs];                                                         \
        (void)y;                                                                                   \
        to[i] = (EXPRESSION);                                                                      \
    }                                                                                              \
    break

/* Steps are constants inside each case, so that the loops vectorise. */
#define STEPS(REAL, BODY)                                                                          \
    if (a_steps && b_steps) {                                                                      \
        enum { as = 1, bs = 1 };                                                                   \
        BODY                                                                                       \
    } else if (a_steps) {                                                                          \
        enum { as = 1, bs = 0 };                                                                   \
        BODY                                                                                       \
    } else if (!b_steps) {                                                                         \
        enum { as = 0, bs = 0 };                                                                   \
        BODY                                                                                       \
    } else {                                                                                       \
        enum { as = 0, bs = 1 };                                                                   \
        BODY                                                                                       \
    }

#define APPLY(NAME, REAL, ABS, SQRT)                                                               \
    static void LEVEL(apply_##NAME)(int op, const REAL *a, int a_steps, const REAL *b,             \
                                    int b_steps, const REAL *c, int c_steps, REAL *to, long n) {   \
        if (op == WHERE) {                                                                         \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++) {                                                         \
                REAL x = a[a_steps ? i : 0], y = b[b_steps ? i : 0], z = c[c_steps ? i : 0];       \
                to[i] = x != 0 ? y : z;                                                            \
            }                                                                                      \
            return;                                                                                \
        }                                                                                          \
        STEPS(REAL, switch (op) {                                                                  \
        case ADD: LOOP(REAL, x + y);                                                               \
        case SUB: LOOP(REAL, x - y);                                                               \
        case MUL: LOOP(REAL, x * y);                                                               \
        case DIV: LOOP(REAL, x / y);                                                               \
        case GE: LOOP(REAL, (REAL)(x >= y));                                                       \
        case GT: LOOP(REAL, (REAL)(x > y));                                                        \
        case EQ: LOOP(REAL, (REAL)(x == y));                                                       \
        case NEG: LOOP(REAL, -x);                                                                  \
        case ABSOLUTE: LOOP(REAL, ABS(x));                                                         \
        case SQUARE_ROOT: LOOP(REAL, SQRT(x));                                                     \
        case TO_BF16: LOOP(REAL, to_bf16_##NAME(x));                                               \
        case TO_F16: LOOP(REAL, to_f16_##NAME(x));                                                 \
        case TO_F32: LOOP(REAL, to_f32_##NAME(x));                                                 \
        })                                                                                         \
    }

APPLY(float, float, __builtin_fabsf, __builtin_sqrtf)
APPLY(double, double, __builtin_fabs, __builtin_sqrt)
#undef APPLY
#undef STEPS
#undef LOOP

/* The same, with operands as they are stored: a bfloat16 costs less to widen again than to keep. */

#define WIDENED(source) bits_to_float((uint32_t)(source) << 16)
#define FROM(OF_A, OF_B, A, B)                                                                     \
    {                                                                                              \
        const OF_A *x = a;                                                                         \
        const OF_B *y = b;                                                                         \
        switch (op) {                                                                              \
        case ADD:                                                                                  \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (A) + (B);                                                                 \
            break;                                                                                 \
        case SUB:                                                                                  \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (A) - (B);                                                                 \
            break;                                                                                 \
        case MUL:                                                                                  \
            SAME_PLACE_OR_APART                                                                    \
            for (long i = 0; i < n; i++)                                                           \
                to[i] = (A) * (B);                                                                 \
            break;                                                                                 \
        }                                                                                          \
    }

static void LEVEL(apply_stored)(int op, const void *a, int a_stored, const void *b, int b_stored,
                                float *to, long n) {
    if (a_stored && b_stored)
        FROM(uint16_t, uint16_t, WIDENED(x[i]), WIDENED(y[i]))
    else if (a_stored)
        FROM(uint16_t, float, WIDENED(x[i]), y[i])
    else
        FROM(float, uint16_t, x[i], WIDENED(y[i]))
}
#undef FROM
#undef WIDENED

/* --- stores: one rounding to nearest even; NaNs become one pattern ------------------------- */

/* Each returns whether a value is not finite. */

static int LEVEL(store_bf16)(const float *restrict from, uint16_t *restrict to, long n) {
    uint32_t most = 0;
    for (long i = 0; i < n; i++) {
        uint32_t u = float_to_bits(from[i]), magnitude = u & 0x7FFFFFFF;
        to[i] = (uint16_t)((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
        most = magnitude > most ? magnitude : most;
    }
    if (most > 0x7F800000) /* rare enough to look again */
        for (long i = 0; i < n; i++)
            to[i] = (float_to_bits(from[i]) & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : to[i];
    return most >= 0x7F7F8000; /* what rounds to infinity, too */
}

static int LEVEL(store_f16)(const float *restrict from, uint16_t *restrict to, long n) {
    uint16_t most = 0;
    for (long i = 0; i < n; i++) {
        uint16_t value = float_to_half(from[i]);
        uint16_t magnitude = value & 0x7FFF;
        to[i] = value;
        most = magnitude > most ? magnitude : most;
    }
    return most >= 0x7C00;
}

static int LEVEL(store_f32)(const float *restrict from, float *restrict to, long n) {
    uint32_t most = 0;
    for (long i = 0; i < n; i++) {
        uint32_t u = float_to_bits(from[i]);
        uint32_t magnitude = u & 0x7FFFFFFF;
        to[i] = bits_to_float(magnitude > 0x7F800000 ? 0x7FC00000 : u);
        most = magnitude > most ? magnitude : most;
    }
    return most >= 0x7F800000;
}

static int LEVEL(store_f64)(const double *restrict from, double *restrict to, long n) {
    uint64_t most = 0;
    for (long i = 0; i < n; i++) {
        uint64_t u = double_to_bits(from[i]);
        uint64_t magnitude = u & 0x7FFFFFFFFFFFFFFF;
        to[i] = bits_to_double(magnitude > 0x7FF0000000000000 ? 0x7FF8000000000000 : u);
        most = magnitude > most ? magnitude : most;
    }
    return most >= 0x7FF0000000000000;
}

static void LEVEL(to_odd)(const double *restrict from, float *restrict to, long n) {
    for (long i = 0; i < n; i++)
        to[i] = double_to_odd(from[i]);
}

static void LEVEL(narrow)(const double *restrict from, float *restrict to, long n) {
    for (long i = 0; i < n; i++)
        to[i] = (float)from[i];
}

static void LEVEL(widen)(const float *restrict from, double *restrict to, long n) {
    for (long i = 0; i < n; i++)
        to[i] = (double)from[i];
}

/* --- what rounding lost --------------------------------------------------------------------- */

/* By halving: the same additions whatever the width of the processor's vectors. */
static double LEVEL(halved)(double *values) {
    for (long half = VECTOR / 2; half; half /= 2)
        for (long i = 0; i < half; i++)
            values[i] += values[i + half];
    return values[0];
}

static void LEVEL(measure)(const void *value, int wide, const void *out, int out_dtype,
                           const void *base, int base_dtype, long n, double *sums) {
    double exact[VECTOR], lost[VECTOR] = {0}, added[VECTOR] = {0};
    if (wide) {
        memcpy(exact, value, (size_t)n * sizeof *exact);
        LEVEL(load_double)(base_dtype, base, added, n);
    } else {
        float seen[VECTOR]; /* the base as the arithmetic sees it */
        LEVEL(load_float)(base_dtype, base, seen, n);
        LEVEL(widen)(seen, added, n);
        LEVEL(widen)(value, exact, n);
    }
    LEVEL(load_double)(out_dtype, out, lost, n);
    for (long i = 0; i < n; i++) {
        double e = lost[i] - exact[i], d = exact[i] - added[i];
        int finite = (e - e == 0) & (d - d == 0);
        lost[i] = finite ? e * e : 0;
        added[i] = finite ? d * d : 0;
    }
    sums[0] += LEVEL(halved)(lost);
    sums[1] += LEVEL(halved)(added);
}

/* --- the machine ------------------------------------------------------------------------------ */

/* A register is VECTOR elements of the arithmetic's type. `sums` as in me_merge, of this chunk. */
static int LEVEL(vector)(const Program *p, char *registers, const char *const *sources,
                         char *const *targets, long first, long n, double *sums) {
    int strange = 0;
    const int wide = p->compute == F64;
    const long size = VECTOR * (wide ? 8 : 4);
#define REGISTER(index) (registers + (index) * size)
#define OPERAND(k) (k >= STORED ? (const void *)(sources[k - STORED] + first * 2)                   \
                    : k >= 0    ? (const void *)REGISTER(k)                                        \
                    : wide      ? (const void *)&p->numbers[~k]                                    \
                                : (const void *)&p->rounded[~k])
    for (int k = 0; k < p->count; k++) {
        const Instruction *i = &p->instructions[k];
        void *to = REGISTER(i->to);
        if (i->op == LOAD) {
            const Source *source = &p->sources[i->a];
            const char *from = sources[i->a] + first * source->itemsize;
            if (wide)
                LEVEL(load_double)(source->dtype, from, to, n);
            else
                LEVEL(load_float)(source->dtype, from, to, n);
        } else if (i->a >= STORED || i->b >= STORED)
            LEVEL(apply_stored)(i->op, OPERAND(i->a), i->a >= STORED, OPERAND(i->b),
                                i->b >= STORED, to, n);
        else if (wide)
            LEVEL(apply_double)(i->op, OPERAND(i->a), i->a >= 0, OPERAND(i->b), i->b >= 0,
                                OPERAND(i->c), i->c >= 0, to, n);
        else
            LEVEL(apply_float)(i->op, OPERAND(i->a), i->a >= 0, OPERAND(i->b), i->b >= 0,
                               OPERAND(i->c), i->c >= 0, to, n);
        for (int r = 0; r < p->results; r++) {
            const Result *result = &p->outputs[r];
            if (result->after != k)
                continue;
            char *out = targets[r] + first * result->itemsize;
            const void *value = REGISTER(result->reg);
            float *scratch = (float *)REGISTER(p->registers);
            if (wide && result->dtype != F64) {
                if (result->dtype == F32)
                    LEVEL(narrow)(value, scratch, n);
                else
                    LEVEL(to_odd)(value, scratch, n);
                value = scratch;
            } else if (!wide && result->dtype == F64) {
                LEVEL(widen)(value, (double *)scratch, n);
                value = scratch;
            }
            switch (result->dtype) {
            case BF16: strange |= LEVEL(store_bf16)(value, (uint16_t *)out, n) << r; break;
            case F16: strange |= LEVEL(store_f16)(value, (uint16_t *)out, n) << r; break;
            case F32: strange |= LEVEL(store_f32)(value, (float *)out, n) << r; break;
            case F64: strange |= LEVEL(store_f64)(value, (double *)out, n) << r; break;
            }
            if (sums && result->start >= STORED) {
                const int k = result->start - STORED;
                const Source *base = &p->sources[k];
                LEVEL(measure)(REGISTER(result->reg), wide, out, result->dtype,
                               sources[k] + first * base->itemsize, base->dtype, n, sums + 2 * r);
            } else if (sums && result->start >= 0) {
                LEVEL(measure)(REGISTER(result->reg), wide, out, result->dtype,
                               REGISTER(result->start), wide ? F64 : F32, n, sums + 2 * r);
            }
        }
    }
#undef OPERAND
#undef REGISTER
    return strange;
}
