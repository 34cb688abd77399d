/*
 * A Llama in float32, as plainly as C allows: what the integer program's speed is compared with.
 *
 *   cc -Ofast -march=native -o float_llama float_llama.c -lm
 *   ./float_llama model.bin 1 255
 *
 * reads a model of llama2.c's format (version 0, as `positron export --format llama2c` writes it),
 * and prints the 255 likeliest tokens that follow token 1; on standard error, how long they took.
 */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int channels, hidden, layers, heads, kv_heads, vocabulary, context;

static void fail(const char *message)
{
    fprintf(stderr, "error: %s\n", message);
    exit(1);
}

static float *numbers(size_t count)
{
    float *memory = calloc(count, sizeof *memory);
    if (memory == NULL)
        fail("out of memory");
    return memory;
}

static float *read_numbers(FILE *file, size_t rows, int columns)
{
    const size_t count = rows * (size_t)columns;
    float *values = numbers(count);
    if (fread(values, sizeof *values, count, file) != count)
        fail("the model ends early");
    return values;
}

/* y = W x */
static void multiply(float *y, const float *weight, const float *x, int rows, int columns)
{
    for (int row = 0; row < rows; row++) {
        float sum = 0;
        for (int k = 0; k < columns; k++)
            sum += weight[(size_t)row * (size_t)columns + (size_t)k] * x[k];
        y[row] = sum;
    }
}

static void rms_norm(float *y, const float *x, const float *scale)
{
    float squares = 0;
    for (int c = 0; c < channels; c++)
        squares += x[c] * x[c];
    const float factor = 1 / sqrtf(squares / (float)channels + 1e-5f);
    for (int c = 0; c < channels; c++)
        y[c] = scale[c] * x[c] * factor;
}

static void rotate(float *x, int count, int head, const float *cosine, const float *sine)
{
    for (int c = 0; c < count; c += 2) {
        const int i = c % head / 2;
        const float even = x[c], odd = x[c + 1];
        x[c] = even * cosine[i] - odd * sine[i];
        x[c + 1] = even * sine[i] + odd * cosine[i];
    }
}

static void softmax(float *x, int count)
{
    float largest = x[0], total = 0;
    for (int j = 1; j < count; j++)
        largest = x[j] > largest ? x[j] : largest;
    for (int j = 0; j < count; j++)
        total += x[j] = expf(x[j] - largest);
    for (int j = 0; j < count; j++)
        x[j] /= total;
}

int main(int count, char **words)
{
    if (count != 4)
        fail("usage: float_llama MODEL FIRST_TOKEN COUNT");
    FILE *file = fopen(words[1], "rb");
    int32_t header[7];
    if (file == NULL || fread(header, sizeof *header, 7, file) != 7)
        fail("the model cannot be read");
    channels = header[0], hidden = header[1], layers = header[2], heads = header[3], kv_heads = header[4];
    vocabulary = abs(header[5]), context = header[6];
    const int head = channels / heads, kv_channels = kv_heads * head, tokens = atoi(words[3]);
    if (tokens < 1 || tokens > context)
        fail("the context does not hold so many tokens");
    const size_t n = (size_t)layers, square = n * (size_t)channels, narrow = n * (size_t)kv_channels;
    const float *embedding = read_numbers(file, (size_t)vocabulary, channels);
    const float *attention_scale = read_numbers(file, n, channels);
    const float *query_weight = read_numbers(file, square, channels);
    const float *key_weight = read_numbers(file, narrow, channels), *value_weight = read_numbers(file, narrow, channels);
    const float *output_weight = read_numbers(file, square, channels);
    const float *hidden_scale = read_numbers(file, n, channels);
    const float *gate_weight = read_numbers(file, n * (size_t)hidden, channels);
    const float *down_weight = read_numbers(file, square, hidden);
    const float *up_weight = read_numbers(file, n * (size_t)hidden, channels);
    const float *final_scale = read_numbers(file, 1, channels);
    read_numbers(file, (size_t)context, head / 2 * 2); /* cosines and sines, computed below instead */
    const float *logits_weight = header[5] > 0 ? embedding : read_numbers(file, (size_t)vocabulary, channels);
    fclose(file);

    float *x = numbers((size_t)channels), *normed = numbers((size_t)channels), *mixed = numbers((size_t)channels);
    float *query = numbers((size_t)channels), *update = numbers((size_t)channels);
    float *gate = numbers((size_t)hidden), *up = numbers((size_t)hidden), *logits = numbers((size_t)vocabulary);
    float *scores = numbers((size_t)context), *cosine = numbers((size_t)head), *sine = numbers((size_t)head);
    float *keys = numbers(narrow * (size_t)context), *values = numbers(narrow * (size_t)context);
    int token = atoi(words[2]);
    if (token < 0 || token >= vocabulary)
        fail("the first token is outside the vocabulary");
    struct timespec start, end;
    timespec_get(&start, TIME_UTC);
    for (int position = 0; position < tokens; position++) {
        memcpy(x, embedding + (size_t)token * (size_t)channels, (size_t)channels * sizeof *x);
        for (int i = 0; i < head / 2; i++) {
            const float angle = (float)position * powf(10000, -2 * (float)i / (float)head);
            cosine[i] = cosf(angle), sine[i] = sinf(angle);
        }
        for (int layer = 0; layer < layers; layer++) {
            const size_t l = (size_t)layer, c = (size_t)channels, k = (size_t)kv_channels, h = (size_t)hidden;
            float *key_rows = keys + l * (size_t)context * k, *value_rows = values + l * (size_t)context * k;
            rms_norm(normed, x, attention_scale + l * c);
            multiply(query, query_weight + l * c * c, normed, channels, channels);
            multiply(key_rows + (size_t)position * k, key_weight + l * k * c, normed, kv_channels, channels);
            multiply(value_rows + (size_t)position * k, value_weight + l * k * c, normed, kv_channels, channels);
            rotate(query, channels, head, cosine, sine);
            rotate(key_rows + (size_t)position * k, kv_channels, head, cosine, sine);
            for (int one = 0; one < heads; one++) {
                const float *q = query + one * head;
                const int first = one / (heads / kv_heads) * head;
                float *out = mixed + one * head;
                for (int j = 0; j <= position; j++) {
                    const float *key = key_rows + (size_t)j * k + first;
                    float sum = 0;
                    for (int i = 0; i < head; i++)
                        sum += q[i] * key[i];
                    scores[j] = sum / sqrtf((float)head);
                }
                softmax(scores, position + 1);
                memset(out, 0, (size_t)head * sizeof *out);
                for (int j = 0; j <= position; j++) {
                    const float *value = value_rows + (size_t)j * k + first;
                    for (int i = 0; i < head; i++)
                        out[i] += scores[j] * value[i];
                }
            }
            multiply(update, output_weight + l * c * c, mixed, channels, channels);
            for (int i = 0; i < channels; i++)
                x[i] += update[i];
            rms_norm(normed, x, hidden_scale + l * c);
            multiply(gate, gate_weight + l * h * c, normed, hidden, channels);
            multiply(up, up_weight + l * h * c, normed, hidden, channels);
            for (int i = 0; i < hidden; i++)
                gate[i] *= up[i] / (1 + expf(-gate[i]));
            multiply(update, down_weight + l * c * h, gate, channels, hidden);
            for (int i = 0; i < channels; i++)
                x[i] += update[i];
        }
        rms_norm(x, x, final_scale);
        multiply(logits, logits_weight, x, vocabulary, channels);
        token = 0;
        for (int v = 1; v < vocabulary; v++)
            token = logits[v] > logits[token] ? v : token;
        printf(position ? " %d" : "%d", token);
    }
    timespec_get(&end, TIME_UTC);
    putchar('\n');
    const long long spent = (long long)(end.tv_sec - start.tv_sec) * 1000000000 + (end.tv_nsec - start.tv_nsec);
    fprintf(stderr, "%d tokens in %lld ns\n", tokens, spent);
    return 0;
}
