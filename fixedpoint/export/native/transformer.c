/*
 * A decoder-only transformer in integer arithmetic: tokens in, tokens out, no floating point.
 *
 * This is the second implementation of the arithmetic that Positron's Python defines and its
 * circuits implement. It was written from the equations, not translated, and all three give the
 * same numbers, bit for bit. The model is compiled in: model.h holds it as constants.
 *
 *   cc -O3 -o transformer transformer.c
 *   echo "18 47 56" | ./transformer --tokens 20 --temperature 0.8 --seed 1
 *
 * Input: prompts, one a line, as token numbers. Output: a line of new tokens for each.
 *
 * A quantity is an integer i and a fraction f, and stands for i * 2^-f (Q-format). Multiplying adds
 * the fractions; only casting to fewer bits rounds, and every cast is the same: divide by a power
 * of two, half rounds up, saturate (`requantize`). Activations have at most 16 bits, weights at
 * most 8. No sum can overflow: the exporter derived its width from the model and refuses a model
 * that could.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * C11 leaves the right shift of a negative number to the compiler; those in use copy the sign,
 * which divides rounding down.
 */
_Static_assert((-3 >> 1) == -2, "this program needs arithmetic right shifts");

/* ---- What model.h is made of ---- */

/* A signed Q-format: `bits` wide, `fraction` of them behind the binary point. */
typedef struct {
    int bits, fraction;
} format;

/* Reciprocals (square roots) of mantissas, by their leading bits. */
typedef struct {
    int index_bits, mantissa_bits;
    const int32_t *entries;
} reciprocal_table;

/* (2^output_bits - 1) * 2^-(i / 2^table_bits), for i from 0 to 2^table_bits - 1. */
typedef struct {
    int table_bits, output_bits;
    const int32_t *entries;
} exponential_table;

/*
 * Rows of weights, each with a fraction of its own; biases count units of the products. Zeros
 * lengthen every row to whole vectors.
 */
typedef struct {
    format input, output;
    const int8_t *weight;   /* rows x padded columns */
    const int8_t *fraction; /* rows */
    const int32_t *bias;    /* rows */
} linear;

/* LayerNorm where it is centered, else RMSNorm, which has no shift. */
typedef struct {
    int centered;
    format input, normalized, scale_format, output;
    int64_t epsilon; /* in units of the variance below */
    reciprocal_table root;
    const int16_t *scale;
    const int64_t *shift; /* in units of normalized * scale */
} norm;

typedef struct {
    const int8_t *weight;   /* entries x channels */
    const int8_t *fraction; /* entries */
} embedding_table;

/* Attention between its projections. */
typedef struct {
    int index; /* of its cache */
    format query, key, value, output;
    reciprocal_table reciprocal;
} attention;

/* Cosines and sines with 14 fraction bits: positions x pairs of a head's channels. */
typedef struct {
    int channels;
    format input, output;
    const int16_t *cosine, *sine;
} rotation;

typedef struct {
    int channels;
    format first, second, output;
} product;

typedef struct {
    int channels, lowest;   /* of the input */
    const int16_t *entries; /* the function's value for every value of the input, from the smallest */
} activation;

/* What an operation computes: tensors of the token that stands at `position`, into another one. */
typedef void function(const void *parameters, const int16_t *const x[], int16_t *y, int position);
static function apply_norm, apply_activation, apply_attention, apply_residual_add;

typedef struct {
    function *function;
    const void *parameters;
    const int16_t *x[3];
    int16_t *y;
} operation;

/*
 * Sizes, `residual`, the tables and the layers; `tensors`; the operations from the embedding to the
 * norm before the logits in their order. VECTOR numbers are what a vector instruction of any
 * processor may take at once.
 */
#include "model.h"

enum {
    HEAD = CHANNELS / HEADS,
    FACTOR_FRACTION = 14, /* of cosines and sines */
    PADDED = (CONTEXT + VECTOR - 1) / VECTOR * VECTOR
};

/* ---- Rounding ---- */

/*
 * value / 2^shift, half rounding up; a negative shift multiplies. Needs |value| < 2^62 before and
 * after.
 */
static inline int64_t shift_right(int64_t value, int shift)
{
    if (shift <= 0)
        return value * ((int64_t)1 << -shift); /* shifting a negative number to the left is undefined */
    if (shift > 63)
        shift = 63; /* leaves 0, as any longer shift */
    return (value + ((int64_t)1 << (shift - 1))) >> shift;
}

static inline int64_t saturate(int64_t value, format to)
{
    const int64_t limit = (int64_t)1 << (to.bits - 1);
    return value < -limit ? -limit : value > limit - 1 ? limit - 1 : value;
}

static inline int64_t requantize_wide(int64_t value, int shift, format to)
{
    return saturate(shift_right(value, shift), to);
}

/*
 * The same in 32 bits and without a branch, so that a vector instruction takes many values. Adding
 * half a unit could overflow: the last bit that is shifted out is added instead. 15 doublings
 * saturate 16 bits as more of them do.
 */
static inline int16_t requantize(int32_t value, int shift, format to)
{
    const int32_t limit = (int32_t)1 << (to.bits - 1);
    const int right = shift < 1 ? 0 : shift > 32 ? 31 : shift - 1, left = shift > 0 ? 0 : shift < -15 ? 15 : -shift;
    int32_t rounded = value >> right;
    rounded = shift > 0 ? (rounded >> 1) + (rounded & 1) : rounded;
    rounded = rounded < -limit ? -limit : rounded > limit - 1 ? limit - 1 : rounded;
    rounded *= (int32_t)1 << left;
    return (int16_t)(rounded < -limit ? -limit : rounded > limit - 1 ? limit - 1 : rounded);
}

/* ---- Functions by table ---- */

/* mantissa * 2^-exponent */
typedef struct {
    int64_t mantissa;
    int exponent;
} scaled;

/* Position of the leading one of x >= 1. */
static int floor_log2(int64_t x)
{
    int position = 0;
    while (x >>= 1)
        position++;
    return position;
}

/*
 * The bits of x from position `top` down, `count` of them behind the leading one's; zeros follow a
 * short x.
 */
static int64_t leading_bits(int64_t x, int top, int count)
{
    return top >= count ? x >> (top - count) : x << (count - top);
}

/*
 * 1 / x for x = m * 2^e, 1 <= m < 2: the bits of m behind its one are the index, the entry is 1 / m
 * at the middle of its interval.
 */
static scaled reciprocal(const reciprocal_table *table, int64_t x)
{
    const int e = floor_log2(x);
    const int64_t index = leading_bits(x, e, table->index_bits) - ((int64_t)1 << table->index_bits);
    return (scaled){table->entries[index], e + table->mantissa_bits};
}

/*
 * 1 / sqrt(x) for x = m * 2^e, 1 <= m < 4 and e even, so that e / 2 is whole. The first quarter of
 * the codes does not occur.
 */
static scaled reciprocal_square_root(const reciprocal_table *table, int64_t x)
{
    const int e = floor_log2(x) & ~1;
    const int64_t index = leading_bits(x, e, table->index_bits - 2) - ((int64_t)1 << (table->index_bits - 2));
    return (scaled){table->entries[index], e / 2 + table->mantissa_bits};
}

/*
 * 2^-t for t >= 0 with `fraction` fraction bits, in units of 1 / (2^output_bits - 1): t's fraction
 * indexes a table, its integer part shifts.
 */
static inline int64_t exponential(const exponential_table *table, int64_t t, int fraction)
{
    const int zero_from = table->output_bits + 1; /* 2^-t is less than half a unit */
    const int64_t largest = (int64_t)zero_from << (fraction > 0 ? fraction : 0);
    const int64_t index = shift_right(t < largest ? t : largest, fraction - table->table_bits);
    const int64_t whole = index >> table->table_bits;
    const int64_t entry = table->entries[index & (((int64_t)1 << table->table_bits) - 1)];
    return shift_right(entry, (int)(whole < zero_from ? whole : zero_from));
}

/* ---- Layers ---- */

/*
 * y = requantize(W x + b). The compiler turns the loops into vector instructions, since it knows
 * how long they are: `model.h` names the shapes that there are, and each has a function of its own.
 */
static inline void multiply(const linear *layer, const int16_t *restrict x, int16_t *restrict y, int rows, int columns)
{
    static int32_t sums[WIDEST]; /* a large vocabulary would not fit the stack */
    for (int row = 0; row < rows; row++) {
        const int8_t *weight = layer->weight + (size_t)row * (size_t)columns;
        int32_t sum = layer->bias[row];
        for (int k = 0; k < columns; k++)
            sum += weight[k] * x[k];
        sums[row] = sum;
    }
    const int shift = layer->input.fraction - layer->output.fraction;
    for (int row = 0; row < rows; row++)
        y[row] = requantize(sums[row], shift + layer->fraction[row], layer->output);
}

#define DEFINE_LINEAR(rows, columns)                                                                                  \
    static void apply_linear_##rows##_##columns(const void *layer, const int16_t *const x[], int16_t *y, int position) \
    {                                                                                                                 \
        (void)position;                                                                                               \
        multiply(layer, x[0], y, rows, columns);                                                                      \
    }
LINEAR_SHAPES(DEFINE_LINEAR)

/*
 * LayerNorm without dividing: with S and Q the sums of x and x^2, (x - mean) / deviation = (C x -
 * S) / sqrt(C Q - S^2). RMSNorm has S = 0.
 */
static void apply_norm(const void *parameters, const int16_t *const inputs[], int16_t *y, int position)
{
    const norm *layer = parameters;
    const int16_t *x = inputs[0];
    (void)position;
    int64_t sum = 0, squares = 0;
    for (int c = 0; c < CHANNELS; c++) {
        sum += x[c];
        squares += (int64_t)x[c] * x[c];
    }
    if (!layer->centered)
        sum = 0;
    const int64_t variance = CHANNELS * squares - sum * sum + layer->epsilon;
    const scaled root = reciprocal_square_root(&layer->root, variance);
    const int fraction = layer->normalized.fraction;
    for (int c = 0; c < CHANNELS; c++) {
        const int64_t difference = (int64_t)CHANNELS * x[c] - sum;
        const int64_t normalized =
            requantize_wide(difference * root.mantissa, root.exponent - fraction, layer->normalized);
        const int64_t product = normalized * layer->scale[c] + (layer->centered ? layer->shift[c] : 0);
        y[c] = (int16_t)requantize_wide(product, fraction + layer->scale_format.fraction - layer->output.fraction, layer->output);
    }
}

/* Channel by channel, so that many tokens are read at once; zeros follow the last token. */
static int16_t key_cache[LAYERS][KV_HEADS][HEAD][PADDED], value_cache[LAYERS][KV_HEADS][HEAD][PADDED];

/* 2^-t by the integer and fraction of t that index `attention_exponential`; 0 from NOTHING on. */
enum { NOTHING = (ATTENTION_OUTPUT_BITS + 1) << ATTENTION_TABLE_BITS };
_Static_assert(NOTHING <= 1 << 15, "15 doublings of any distance must give no weight");
static int16_t powers[NOTHING + 1];

static void make_powers(void)
{
    for (int index = 0; index <= NOTHING; index++)
        powers[index] = (int16_t)exponential(&attention_exponential, index, ATTENTION_TABLE_BITS);
}

/* Weights 2^(score - largest) of scores with `fraction` fraction bits; returns their sum. */
static int32_t weigh(const int32_t *scores, int32_t largest, int fraction, int length, int16_t *weights)
{
    static uint16_t indices[PADDED];
    const int shift = fraction - ATTENTION_TABLE_BITS, left = shift < -15 ? 15 : -shift;
    for (int j = 0; j < length; j++) {
        const uint32_t distance = (uint32_t)largest - (uint32_t)scores[j]; /* may have 32 bits */
        uint32_t index = distance < NOTHING ? distance : NOTHING;
        if (shift > 0)
            index = ((distance >> (shift - 1)) + 1) >> 1;
        else
            index <<= left;
        indices[j] = (uint16_t)(index < NOTHING ? index : NOTHING);
    }
    int32_t total = 0;
    for (int j = 0; j < length; j++)
        weights[j] = powers[indices[j]];
    for (int j = 0; j < length; j++)
        total += weights[j];
    return total;
}

/*
 * Causal attention of one token to itself and those before it. log2(e) / sqrt(head size) is part of
 * the query's weights, so a score s is a base-2 logarithm: its weight is 2^(s - max s), and the sum
 * of the weighted values is divided by the sum of the weights at the end.
 * HEADS / KV_HEADS neighbouring query heads read the same keys and values.
 */
static void apply_attention(const void *parameters, const int16_t *const x[], int16_t *context, int position)
{
    static int16_t weights[PADDED];
    static int32_t scores[PADDED];
    const attention *layer = parameters;
    const int length = (position / VECTOR + 1) * VECTOR;
    const int shift = layer->value.fraction - layer->output.fraction;
    int16_t(*keys)[HEAD][PADDED] = key_cache[layer->index], (*values)[HEAD][PADDED] = value_cache[layer->index];
    for (int head = 0; head < KV_HEADS; head++)
        for (int c = 0; c < HEAD; c++) {
            keys[head][c][position] = x[1][head * HEAD + c];
            values[head][c][position] = x[2][head * HEAD + c];
        }
    for (int head = 0; head < HEADS; head++) {
        const int16_t *query = x[0] + head * HEAD;
        const int16_t(*key)[PADDED] = (const int16_t(*)[PADDED])keys[head / (HEADS / KV_HEADS)];
        const int16_t(*value)[PADDED] = (const int16_t(*)[PADDED])values[head / (HEADS / KV_HEADS)];
        for (int j = 0; j < length; j++) {
            int32_t sum = 0;
            for (int c = 0; c < HEAD; c++)
                sum += query[c] * key[c][j];
            scores[j] = sum;
        }
        int32_t largest = INT32_MIN;
        for (int j = 0; j <= position; j++)
            largest = scores[j] > largest ? scores[j] : largest;
        const int32_t total = weigh(scores, largest, layer->query.fraction + layer->key.fraction, position + 1, weights);
        memset(weights + position + 1, 0, (size_t)(length - position - 1) * sizeof *weights);
        const scaled inverse = reciprocal(&layer->reciprocal, total);
        for (int c = 0; c < HEAD; c++) {
            int32_t sum = 0;
            for (int j = 0; j < length; j++)
                sum += weights[j] * value[c][j];
            context[head * HEAD + c] =
                (int16_t)requantize_wide(sum * inverse.mantissa, inverse.exponent + shift, layer->output);
        }
    }
}

static void apply_activation(const void *parameters, const int16_t *const x[], int16_t *y, int position)
{
    const activation *table = parameters;
    (void)position;
    for (int c = 0; c < table->channels; c++)
        y[c] = table->entries[x[0][c] - table->lowest];
}

#ifdef USES_ROTATION
/*
 * Channels 2i and 2i + 1 of each head are a point of the plane; it is turned by the angle of its
 * position and of i.
 */
static void apply_rotation(const void *parameters, const int16_t *const x[], int16_t *y, int position)
{
    const rotation *turn = parameters;
    const int16_t *cosine = turn->cosine + (size_t)position * (HEAD / 2), *sine = turn->sine + (size_t)position * (HEAD / 2);
    const int shift = turn->input.fraction + FACTOR_FRACTION - turn->output.fraction;
    for (int c = 0; c < turn->channels; c += 2) {
        const int i = c % HEAD / 2;
        const int32_t even = x[0][c], odd = x[0][c + 1];
        y[c] = requantize(even * cosine[i] - odd * sine[i], shift, turn->output);
        y[c + 1] = requantize(even * sine[i] + odd * cosine[i], shift, turn->output);
    }
}
#endif

#ifdef USES_PRODUCT
static void apply_product(const void *parameters, const int16_t *const x[], int16_t *y, int position)
{
    const product *layer = parameters;
    const int shift = layer->first.fraction + layer->second.fraction - layer->output.fraction;
    (void)position;
    for (int c = 0; c < layer->channels; c++)
        y[c] = requantize((int32_t)x[0][c] * x[1][c], shift, layer->output);
}
#endif

static void apply_residual_add(const void *parameters, const int16_t *const x[], int16_t *y, int position)
{
    (void)parameters, (void)position;
    for (int c = 0; c < CHANNELS; c++)
        y[c] = (int16_t)saturate((int64_t)x[0][c] + x[1][c], residual);
}

/* Run one token that stands at `position`; keys and values of those before it are in the caches. */
static void step(int token, int position)
{
    const int has_position = position_embedding.weight != NULL; /* else rotations tell positions */
    const int token_shift = token_embedding.fraction[token] - residual.fraction;
    const int position_shift = has_position ? position_embedding.fraction[position] - residual.fraction : 0;
    for (int c = 0; c < CHANNELS; c++) {
        int64_t sum = shift_right(token_embedding.weight[token * CHANNELS + c], token_shift);
        if (has_position)
            sum += shift_right(position_embedding.weight[position * CHANNELS + c], position_shift);
        embedded[c] = (int16_t)saturate(sum, residual);
    }
    for (int i = 0; i < OPERATIONS; i++)
        operations[i].function(operations[i].parameters, operations[i].x, operations[i].y, position);
}

/* ---- Sampling ---- */

static void fail(const char *message, const char *detail)
{
    fprintf(stderr, "error: %s%s\n", message, detail);
    exit(1);
}

/*
 * log2(e) / temperature as a multiplier of 16 bits and a shift, from logits to units of the noise;
 * 0: take the maximum.
 */
typedef struct {
    int64_t multiplier;
    int shift;
} sampler;

enum { NOISE_FRACTION = 11, UNITS = 1000000, HIGHEST_TEMPERATURE = 1000 };

/* A sampler of a temperature in millionths. */
static sampler make_sampler(uint64_t temperature)
{
    if (temperature == 0)
        return (sampler){0, 0};
    const uint64_t log2_e = UINT64_C(12690079782337); /* round(log2(e) * 2^43) */
    uint64_t quotient = log2_e * UNITS / temperature; /* log2(e) / T, 43 fraction bits; 33 bits or more */
    int shorten = 0;
    while (quotient >> shorten >= UINT64_C(1) << 16)
        shorten++;
    quotient = (quotient + (UINT64_C(1) << (shorten - 1))) >> shorten;
    if (quotient == UINT64_C(1) << 16) { /* rounded up to one bit more */
        quotient >>= 1;
        shorten++;
    }
    const int shift = logits.output.fraction - NOISE_FRACTION + 43 - shorten;
    if (shift < -28 || shift > 62)
        fail("the temperature does not suit these logits", "");
    return (sampler){(int64_t)quotient, shift};
}

/* A bijection of 32 bits in which each bit depends on all (MurmurHash3's finalizer). */
static uint32_t avalanche(uint32_t word)
{
    word = (word ^ word >> 16) * UINT32_C(0x85EBCA6B);
    word = (word ^ word >> 13) * UINT32_C(0xC2B2AE35);
    return word ^ word >> 16;
}

/* The first state of the generator of one sequence, never 0. */
static uint32_t mix(uint32_t seed, uint32_t sequence)
{
    const uint32_t golden_ratio = UINT32_C(0x9E3779B9);
    const uint32_t state = avalanche(avalanche(seed) + (sequence + 1) * golden_ratio);
    return state ? state : golden_ratio;
}

/* Marsaglia's generator of period 2^32 - 1. */
static uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* A round of the hash below. */
static inline uint32_t mixed(uint32_t word, uint32_t key, int left, int right)
{
    word ^= key;
    word += word << left;
    return word ^ word >> right;
}

/* The word of a token: a hash of the random number and the token's index. */
static inline uint32_t word_of(uint32_t random, uint32_t index)
{
    index = mixed(index, random, 13, 19);
    index = mixed(index, random << 4 | random >> 28, 15, 6);
    index = mixed(index, random << 13 | random >> 19, 5, 6);
    index = mixed(index, random << 20 | random >> 12, 11, 10);
    return mixed(index, random << 30 | random >> 2, 16, 8);
}

typedef struct {
    uint32_t word, zeros; /* shifted out so far */
} normalized;

/* Shift `bits` zeros out at the top, if there are so many. */
static inline normalized shifted(normalized x, int bits)
{
    const uint32_t empty = 0 - (((x.word >> (32 - bits)) - 1) >> 31); /* all ones, or 0 */
    return (normalized){x.word ^ ((x.word ^ x.word << bits) & empty), x.zeros + ((uint32_t)bits & empty)};
}

/*
 * Where a word lies: its highest bit, the zeros before the leading one of the rest (5 bits), and
 * the 12 bits below that. Without branches, so that the compiler takes many words at a time.
 */
static inline uint32_t place_of(uint32_t word)
{
    const uint32_t half = word >> 31;
    normalized odd = {(word ^ (0 - half)) << 1 | 1, 0};
    odd = shifted(shifted(shifted(shifted(shifted(odd, 16), 8), 4), 2), 1);
    return half << 17 | odd.zeros << 12 | (odd.word >> 19 & 4095);
}

/*
 * -log2(-log2(u)) for 1 - u = (word + 1/2) / 2^32, from a table of straight lines: 16 octaves of
 * 1 - u and 16 of u, 32 lines each, with the value in the middle and how far it falls, in fours.
 */
static inline int32_t gumbel_noise(uint32_t place)
{
    const int32_t half = (int32_t)(place >> 17), octave = place >> 12 & 31, rest = place & 127;
    const int32_t entry = noise_table[half << 9 | (octave < 15 ? octave : 15) << 5 | (int32_t)(place >> 7 & 31)];
    const int32_t size = (entry >> 5) - (((entry & 31) * (2 * rest - 127) + 32) >> 6);
    return half ? -size : size + (octave << NOISE_FRACTION);
}

/*
 * The lowest index of the maximum, of the logits or of their sums with Gumbel noise: a token drawn
 * with probability 2^(logit * log2(e) / T) / sum.
 */
static int choose(const sampler *how, const int16_t *values, uint32_t *random)
{
    static int64_t scores[VOCABULARY];
    int64_t largest = INT64_MIN;
    int best = 0;
    if (how->multiplier == 0) {
        for (int v = 0; v < VOCABULARY; v++)
            scores[v] = values[v];
    } else {
        static uint32_t places[VOCABULARY];
        const uint32_t number = next_random(random);
        for (int v = 0; v < VOCABULARY; v++)
            places[v] = place_of(word_of(number, (uint32_t)v));
        for (int v = 0; v < VOCABULARY; v++)
            scores[v] = shift_right(values[v] * how->multiplier, how->shift) + gumbel_noise(places[v]);
    }
    for (int v = 0; v < VOCABULARY; v++)
        largest = scores[v] > largest ? scores[v] : largest;
    while (scores[best] < largest)
        best++;
    return best;
}

/* ---- Generation ---- */

/* A token sequence that grows. */
typedef struct {
    int *tokens;
    size_t length, capacity;
} sequence;

static void append(sequence *text, int token)
{
    if (text->length == text->capacity) {
        text->capacity = 2 * text->capacity + CONTEXT;
        text->tokens = realloc(text->tokens, text->capacity * sizeof *text->tokens);
        if (text->tokens == NULL)
            fail("out of memory", "");
    }
    text->tokens[text->length++] = token;
}

/*
 * The first of `length` tokens that the next one depends on. When the context is full, a new one
 * begins with its newer half.
 */
static size_t context_start(size_t length)
{
    const size_t half = CONTEXT > 1 ? CONTEXT / 2 : 1, steps = CONTEXT - half + 1;
    return length <= CONTEXT ? 0 : length - half - (length - CONTEXT - 1) % steps;
}

/*
 * Lengthen a sequence by `count` tokens and print them. Positions count from the context's first
 * token, so a new context fills the caches anew.
 */
static void generate(sequence *text, size_t count, const sampler *how, uint32_t random)
{
    static int16_t values[VOCABULARY];
    size_t start = SIZE_MAX;
    for (size_t made = 0; made < count; made++) {
        const size_t first = context_start(text->length);
        for (size_t i = first == start ? text->length - 1 : first; i < text->length; i++)
            step(text->tokens[i], (int)(i - first));
        start = first;
        apply_logits(&logits, &last, values, 0);
        append(text, choose(how, values, &random));
        printf(made ? " %d" : "%d", text->tokens[text->length - 1]);
    }
    putchar('\n');
}

/* Print the logits after each token of a sequence that fits the context, a line a token. */
static void print_logits(const sequence *text)
{
    static int16_t values[VOCABULARY];
    if (text->length > CONTEXT)
        fail("--logits takes prompts no longer than the context", "");
    for (size_t i = 0; i < text->length; i++) {
        step(text->tokens[i], (int)i);
        apply_logits(&logits, &last, values, 0);
        for (int v = 0; v < VOCABULARY; v++)
            printf(v ? " %d" : "%d", values[v]);
        putchar('\n');
    }
}

/* ---- The command ---- */

/* Read a line of token numbers; 0 at the end of the input. */
static int read_prompt(FILE *file, sequence *text)
{
    int character, any = 0, number = -1;
    text->length = 0;
    while ((character = getc(file)) != EOF) {
        any = 1;
        if (character >= '0' && character <= '9') {
            number = (number < 0 ? 0 : number) * 10 + (character - '0');
            if (number >= VOCABULARY)
                fail("a prompt's token is outside the vocabulary", "");
            continue;
        }
        if (strchr(" \t\r\n", character) == NULL || character == 0)
            fail("prompts are token numbers with spaces between them, one prompt a line", "");
        if (number >= 0)
            append(text, number);
        number = -1;
        if (character == '\n')
            break;
    }
    if (number >= 0)
        append(text, number);
    if (ferror(file))
        fail("the prompts cannot be read", "");
    if (any && text->length == 0)
        fail("a prompt is empty; generation needs at least one token", "");
    return any;
}

/* A whole number from 0 to `largest`, or with `decimals` a decimal number times 10^decimals. */
static uint64_t parse_number(const char *option, const char *text, uint64_t largest, int decimals)
{
    uint64_t value = 0;
    int digits = 0, left = -1; /* decimals that may still come; none before the point */
    for (; text != NULL && *text; text++) {
        if (*text == '.' && left < 0 && decimals > 0) {
            left = decimals;
            continue;
        }
        if (*text < '0' || *text > '9' || left == 0 || value > largest)
            fail("not a number that this option takes: ", option);
        value = value * 10 + (uint64_t)(*text - '0');
        digits++;
        left -= left > 0;
    }
    for (int missing = left < 0 ? decimals : left; missing > 0 && value <= largest; missing--)
        value *= 10;
    if (digits == 0 || value > largest)
        fail("missing, or out of range: ", option);
    return value;
}

static int64_t nanoseconds(void)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int main(int count, char **words)
{
    uint64_t tokens = 100, temperature = 0, seed = 0;
    int show_logits = 0, show_time = 0;
    for (int i = 1; i < count; i++) {
        const char *word = words[i], *value = i + 1 < count ? words[i + 1] : NULL;
        if (strcmp(word, "--logits") == 0) {
            show_logits = 1;
        } else if (strcmp(word, "--time") == 0) {
            show_time = 1;
        } else if (strcmp(word, "--tokens") == 0) {
            tokens = parse_number(word, value, 1000000000, 0), i++;
        } else if (strcmp(word, "--temperature") == 0) {
            temperature = parse_number(word, value, (uint64_t)HIGHEST_TEMPERATURE * UNITS, 6), i++;
        } else if (strcmp(word, "--seed") == 0) {
            seed = parse_number(word, value, UINT32_MAX, 0), i++;
        } else {
            fprintf(stderr,
                    "usage: %s [--tokens N] [--temperature T] [--seed S] [--time] [--logits] < PROMPTS\n"
                    "Reads prompts of token numbers 0 to %d, one a line; prints N new tokens (default 100) for each.\n"
                    "  --temperature T  0 takes the likeliest token (default), else at most six decimals, up to %d\n"
                    "  --seed S         0 to 4294967295: the same seed gives the same tokens (default 0)\n"
                    "  --time           print tokens a second at the end, to stderr\n"
                    "  --logits         print the logits after each token of the prompts instead\n",
                    words[0], VOCABULARY - 1, HIGHEST_TEMPERATURE);
            return 2;
        }
    }
    const sampler how = make_sampler(temperature);
    make_powers();
    sequence text = {NULL, 0, 0};
    uint64_t sequences = 0;
    int64_t elapsed = 0;
    while (read_prompt(stdin, &text)) {
        const int64_t start = nanoseconds();
        if (show_logits)
            print_logits(&text);
        else
            generate(&text, (size_t)tokens, &how, mix((uint32_t)seed, (uint32_t)sequences));
        elapsed += nanoseconds() - start;
        sequences++;
    }
    free(text.tokens);
    if (fflush(stdout) != 0)
        fail("the tokens cannot be written", "");
    if (show_time) {
        const uint64_t made = tokens * sequences, time = elapsed > 0 ? (uint64_t)elapsed : 1;
        fprintf(stderr, "%llu tokens in %llu ns: %llu tokens/s\n", (unsigned long long)made, (unsigned long long)time,
                (unsigned long long)(made * 1000000000 / time));
    }
    return 0;
}
