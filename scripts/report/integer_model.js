/*
 * A decoder-only transformer in integer arithmetic, for a browser: tokens in, tokens out.
 *
 * This is the third implementation of the arithmetic that Positron's Python defines; the second is
 * in C. It was written from the equations and gives the same numbers, bit for bit.
 *
 * A quantity is an integer i with a fraction f and stands for i * 2^-f. JavaScript's numbers are
 * exact for integers up to 2^53, and for those times any power of two; whatever may exceed that is
 * a BigInt.
 */
"use strict";

/* ---- Stored tensors ---- */

/* Integers of `bits` bits, two's complement, packed without gaps from the lowest bit of base64. */
function unpack(stored) {
  const text = atob(stored.data);
  const bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  const count = stored.shape.reduce((product, size) => product * size, 1);
  const bits = stored.bits;
  const Values = bits <= 8 ? Int8Array : bits <= 16 ? Int16Array : bits <= 32 ? Int32Array : Float64Array;
  const values = new Values(count);
  const sign = 2 ** (bits - 1);
  let place = 0; // bits read so far
  for (let index = 0; index < count; index++) {
    let value = 0;
    for (let found = 0; found < bits; ) {
      const taken = Math.min(bits - found, 8 - (place & 7));
      value += ((bytes[place >> 3] >> (place & 7)) & ((1 << taken) - 1)) * 2 ** found;
      found += taken;
      place += taken;
    }
    values[index] = value >= sign ? value - 2 * sign : value;
  }
  return values;
}

/* `Qm.n`: the sign is one of the m bits before the point. */
function parseFormat(text) {
  const [, integer, fraction] = /^Q(-?\d+)\.(-?\d+)$/.exec(text).map(Number);
  return { text, bits: integer + fraction, fraction, limit: 2 ** (integer + fraction - 1) };
}

/* ---- Rounding ---- */

/*
 * value / 2^shift, half rounding up; a negative shift multiplies. Half a unit is added after all
 * but the last bit are gone, so that nothing exceeds `value`.
 */
function shiftRight(value, shift) {
  return shift <= 0 ? value * 2 ** -shift : Math.floor((Math.floor(value / 2 ** (shift - 1)) + 1) / 2);
}

function saturate(value, format) {
  return Math.max(-format.limit, Math.min(format.limit - 1, value));
}

function requantize(value, shift, format) {
  return saturate(shiftRight(value, shift), format);
}

/* The same of a product that may exceed 2^53. */
function requantizeProduct(a, b, shift, format) {
  const product = a * b;
  if (Number.isSafeInteger(product) || shift <= 0) return requantize(product, shift, format);
  const rounded = ((BigInt(a) * BigInt(b) >> BigInt(shift - 1)) + 1n) >> 1n;
  return saturate(Number(rounded), format);
}

/* ---- Functions by table ---- */

/* 1 / x for 1 <= x < 2^32 as mantissa and exponent: the bits behind the leading one index the table. */
function reciprocal(table, x) {
  const position = 31 - Math.clz32(x);
  const index = Math.floor(x * 2 ** (table.indexBits - position)) - 2 ** table.indexBits;
  return { mantissa: table.entries[index], exponent: position + table.mantissaBits };
}

/* 1 / sqrt(x) for a BigInt x = m * 4^h, 1 <= m < 4: m's leading bits index the table. */
function reciprocalSquareRoot(table, x) {
  const even = (x.toString(2).length - 1) & ~1;
  const dropped = even - (table.indexBits - 2);
  const leading = Number(dropped >= 0 ? x >> BigInt(dropped) : x << BigInt(-dropped));
  return { mantissa: table.entries[leading - 2 ** (table.indexBits - 2)], exponent: even / 2 + table.mantissaBits };
}

/* 2^-t for every t = index / 2^tableBits that does not round to 0, in units of 1 / (2^outputBits - 1). */
function powersOfTwo(tableBits, outputBits, entries) {
  const step = 2 ** tableBits;
  return Int32Array.from({ length: (outputBits + 1) * step + 1 }, (_, index) =>
    shiftRight(entries[index % step], Math.floor(index / step)));
}

/* ---- Operators: each makes a function of (inputs, y, position) from its entry of the manifest ---- */

const OPERATORS = {
  embedding(model, name, entry) {
    const part = (table) => `${table}_weight_bits` in entry && {
      weight: model.tensor(`${name}.${table}.weight`), fraction: model.tensor(`${name}.${table}.weight_fraction`),
    };
    const token = part("token"), place = part("position"), residual = model.residual;
    return ([tokens], y, position) => {
      const channels = y.length, row = tokens[0];
      for (let c = 0; c < channels; c++) {
        let sum = shiftRight(token.weight[row * channels + c], token.fraction[row] - residual.fraction);
        if (place)
          sum += shiftRight(place.weight[position * channels + c], place.fraction[position] - residual.fraction);
        y[c] = saturate(sum, residual);
      }
    };
  },

  linear(model, name, entry) {
    const weight = model.tensor(`${name}.weight`), fraction = model.tensor(`${name}.weight_fraction`);
    const bias = model.tensor(`${name}.bias`), input = parseFormat(entry.input), output = parseFormat(entry.output);
    return ([x], y) => {
      const columns = x.length;
      for (let row = 0, at = 0; row < y.length; row++) {
        let sum = bias[row]; // the exporter refuses sums beyond 32 bits
        for (let k = 0; k < columns; k++, at++) sum = (sum + Math.imul(weight[at], x[k])) | 0;
        y[row] = requantize(sum, input.fraction + fraction[row] - output.fraction, output);
      }
    };
  },

  /* With S and Q the sums of x and x^2: (C x - S) / sqrt(C Q - S^2 + epsilon); RMSNorm has S = 0. */
  norm(model, name, entry) {
    const centered = entry.kind === "layer";
    const scale = model.tensor(`${name}.scale`), shift = centered ? model.tensor(`${name}.shift`) : null;
    const normalized = parseFormat(entry.normalized), output = parseFormat(entry.output);
    const root = model.table("reciprocal_square_root", entry.reciprocal_square_root);
    const outputShift = normalized.fraction + parseFormat(entry.scale_format).fraction - output.fraction;
    return ([x], y) => {
      const channels = x.length;
      let sum = 0, squares = 0;
      for (const value of x) {
        if (centered) sum += value;
        squares += value * value;
      }
      const variance = BigInt(channels) * BigInt(squares) - BigInt(sum) * BigInt(sum) + BigInt(entry.epsilon);
      const { mantissa, exponent } = reciprocalSquareRoot(root, variance);
      for (let c = 0; c < channels; c++) {
        const whole = requantizeProduct(channels * x[c] - sum, mantissa, exponent - normalized.fraction, normalized);
        y[c] = requantize(whole * scale[c] + (centered ? shift[c] : 0), outputShift, output);
      }
    };
  },

  activation(model, name, entry) {
    const table = model.tensor(`${name}.table`), lowest = -parseFormat(entry.input).limit;
    return ([x], y) => {
      for (let c = 0; c < y.length; c++) y[c] = table[x[c] - lowest];
    };
  },

  /* Channels 2i and 2i + 1 of each head are a point, turned by the angle of its position and of i. */
  rotation(model, name, entry) {
    const cosine = model.tensor("rotation.cosine"), sine = model.tensor("rotation.sine");
    const output = parseFormat(entry.output), pairs = model.headChannels / 2;
    const shift = parseFormat(entry.input).fraction + 14 - output.fraction; // cosines have 14 fraction bits
    return ([x], y, position) => {
      for (let c = 0; c < y.length; c += 2) {
        const at = position * pairs + (c / 2) % pairs;
        y[c] = requantize(x[c] * cosine[at] - x[c + 1] * sine[at], shift, output);
        y[c + 1] = requantize(x[c] * sine[at] + x[c + 1] * cosine[at], shift, output);
      }
    };
  },

  product(model, name, entry) {
    const output = parseFormat(entry.output);
    const shift = parseFormat(entry.first).fraction + parseFormat(entry.second).fraction - output.fraction;
    return ([a, b], y) => {
      for (let c = 0; c < y.length; c++) y[c] = requantize(a[c] * b[c], shift, output);
    };
  },

  residual_add(model) {
    return ([stream, update], y) => {
      for (let c = 0; c < y.length; c++) y[c] = saturate(stream[c] + update[c], model.residual);
    };
  },

  /*
   * The query's weights hold log2(e) / sqrt(head size): a score s is a base-2 logarithm and weighs
   * 2^(s - max s). The sum of weighted values is divided by the sum of weights once, at the end.
   */
  attention(model, name, entry) {
    const { context_length: context, num_heads: heads, num_kv_heads: keyHeads } = entry;
    const { table_bits: tableBits, output_bits: outputBits, fraction } = entry.exponential;
    const size = entry.channels / heads, stride = keyHeads * size;
    const powers = powersOfTwo(tableBits, outputBits, model.table("exponential", entry.exponential).entries);
    const nothing = powers.length - 1, farthest = (outputBits + 1) * 2 ** Math.max(fraction, 0);
    const inverse = model.table("reciprocal", entry.reciprocal), output = parseFormat(entry.output);
    const shift = parseFormat(entry.value).fraction - output.fraction;
    const keys = new Int32Array(context * stride), values = new Int32Array(context * stride);
    const scores = new Float64Array(context), weights = new Int32Array(context);
    const attended = (model.attended[name] = { heads, weights: new Float64Array(heads * context) });
    return ([query, key, value], y, position) => {
      keys.set(key, position * stride);
      values.set(value, position * stride);
      for (let head = 0; head < heads; head++) {
        const first = head * size, shared = Math.floor(head / (heads / keyHeads)) * size;
        let largest = -Infinity, total = 0;
        for (let j = 0; j <= position; j++) {
          let sum = 0;
          for (let c = 0; c < size; c++) sum += query[first + c] * keys[j * stride + shared + c];
          scores[j] = sum;
          if (sum > largest) largest = sum;
        }
        for (let j = 0; j <= position; j++) {
          const distance = Math.min(largest - scores[j], farthest);
          weights[j] = powers[Math.min(shiftRight(distance, fraction - tableBits), nothing)];
          total += weights[j];
        }
        const { mantissa, exponent } = reciprocal(inverse, total);
        for (let j = 0; j <= position; j++) attended.weights[head * context + j] = weights[j] / total; // to look at
        for (let c = 0; c < size; c++) {
          let sum = 0;
          for (let j = 0; j <= position; j++) sum += weights[j] * values[j * stride + shared + c];
          y[first + c] = requantizeProduct(sum, mantissa, exponent + shift, output);
        }
      }
    };
  },
};

/* ---- The model ---- */

/*
 * What is computed, in its order, as { name, kind, inputs }: the manifest says which layers there
 * are, this says what each reads.
 */
function operationsOf(manifest) {
  const operations = [{ name: "embedding", kind: "embedding", inputs: ["tokens"] }];
  const add = (name, kind, ...inputs) => {
    operations.push({ name, kind, inputs });
    return name;
  };
  let stream = "embedding";
  for (let index = 0; index < manifest.num_layers; index++) {
    const block = `blocks.${index}.`, attention = `${block}attention.`, feed = `${block}feed_forward.`;
    const normed = add(`${block}attention_norm`, "norm", stream);
    let [query, key, value] = ["query", "key", "value"].map((part) => add(attention + part, "linear", normed));
    if (manifest.rotary)
      [query, key] = [["rotated_query", query], ["rotated_key", key]].map(([part, x]) => add(attention + part, "rotation", x));
    const context = add(`${attention}context`, "attention", query, key, value);
    const middle = add(`${block}attention_residual`, "residual_add", stream, add(`${attention}output`, "linear", context));
    const again = add(`${block}feed_forward_norm`, "norm", middle);
    const gate = manifest.gated && add(`${feed}gate`, "linear", again);
    const up = add(`${feed}up`, "linear", again);
    const activated = gate
      ? add(`${feed}activation`, "product", add(`${feed}gate_activation`, "activation", gate), up)
      : add(`${feed}activation`, "activation", up);
    stream = add(`${block}feed_forward_residual`, "residual_add", middle, add(`${feed}down`, "linear", activated));
  }
  add("logits", "linear", add("final_norm", "norm", stream));
  return operations;
}

class IntegerModel {
  /* `packed`: the manifest of an export, its tensors with their numbers, and `tables` of functions. */
  constructor(packed) {
    const { manifest } = packed;
    this.packed = packed;
    this.residual = parseFormat(manifest.residual);
    this.contextLength = manifest.context_length;
    this.vocabulary = packed.tensors["logits.bias"].shape[0];
    this.channels = packed.tensors["final_norm.scale"].shape[0];
    this.headChannels = this.channels / manifest.num_heads;
    this.logitsFormat = parseFormat(manifest.layers.logits.output);
    this.noise = { entries: unpack(packed.tables.noise), rounds: manifest.sampler.noise.rounds };
    this.unpacked = {};
    this.attended = {}; // operation -> the last token's weights: heads x context, to look at
    this.tensors = { tokens: [0] }; // of the last token, by name
    this.operations = operationsOf(manifest).map(({ name, kind, inputs }) => {
      const entry = manifest.layers[name] || {};
      const sizes = { embedding: () => this.channels, linear: () => packed.tensors[`${name}.bias`].shape[0] };
      const y = new Int32Array((sizes[kind] || (() => this.tensors[inputs[0]].length))());
      this.tensors[name] = y;
      return { name, kind, y, inputs: inputs.map((input) => this.tensors[input]), run: OPERATORS[kind](this, name, entry) };
    });
  }

  tensor(name) {
    return (this.unpacked[name] ||= unpack(this.packed.tensors[name]));
  }

  /* The entries of a function's table, with its widths. */
  table(kind, settings) {
    const widths = kind === "exponential" ? [settings.table_bits, settings.output_bits] : [settings.index_bits, settings.mantissa_bits];
    return { entries: unpack(this.packed.tables[[kind, ...widths].join(" ")]), indexBits: widths[0], mantissaBits: widths[1] };
  }

  /* The Q-format of a tensor. */
  formatOf(name) {
    const entry = this.packed.manifest.layers[name];
    return entry && entry.output ? parseFormat(entry.output) : this.residual;
  }

  /* Run one token at a position, after those before it; without logits where nobody needs them. */
  step(token, position, wantsLogits = true) {
    this.tensors.tokens[0] = token;
    for (const { name, inputs, y, run } of this.operations)
      if (wantsLogits || name !== "logits") run(inputs, y, position);
    return this.tensors.logits;
  }

  /*
   * The first of `length` tokens that the next one depends on: a full context begins anew with its
   * newer half.
   */
  contextStart(length) {
    const full = this.contextLength, kept = Math.max(1, Math.floor(full / 2));
    return length <= full ? 0 : length - kept - ((length - full - 1) % (full - kept + 1));
  }

  /* Yield one new token after the other, for ever, and append it to `tokens`. */
  *stream(tokens, temperature, seed, sequence = 0) {
    const sampler = new Sampler(this, temperature, seed, sequence);
    for (let start = -1; ; ) {
      const first = this.contextStart(tokens.length);
      for (let i = first === start ? tokens.length - 1 : first; i < tokens.length; i++)
        this.step(tokens[i], i - first, i === tokens.length - 1);
      start = first;
      tokens.push(sampler.choose(this.tensors.logits));
      yield tokens[tokens.length - 1];
    }
  }
}

/* ---- Sampling ---- */

/* x = mantissa * 2^exponent with 1/2 <= mantissa < 1, for x > 0. */
function mantissaAndExponent(x) {
  let exponent = 0;
  for (; x >= 1; x /= 2) exponent++;
  for (; x < 0.5; x *= 2) exponent--;
  return [x, exponent];
}

/* A bijection of 32 bits in which each bit depends on all (MurmurHash3's finalizer). */
function avalanche(word) {
  word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
  return (word ^ (word >>> 16)) >>> 0;
}

const NOISE_FRACTION = 11, GOLDEN_RATIO = 0x9e3779b9;

/* The largest logit at temperature 0; else the largest sum of logit * log2(e) / T and Gumbel noise. */
class Sampler {
  constructor(model, temperature, seed, sequence) {
    if (!(temperature >= 0 && temperature < Infinity)) throw new RangeError("The temperature must be 0 or a positive number.");
    if (!(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32))
      throw new RangeError("The seed must be a whole number from 0 to 4294967295.");
    this.noise = model.noise;
    this.state = avalanche(avalanche(seed) + Math.imul(sequence + 1, GOLDEN_RATIO)) || GOLDEN_RATIO;
    this.multiplier = 0;
    if (temperature === 0) return;
    const [mantissa, exponent] = mantissaAndExponent(temperature);
    const [quotient, extra] = mantissaAndExponent(Math.LOG2E / mantissa);
    this.multiplier = Math.floor(quotient * 65536 + 0.5);
    this.shift = model.logitsFormat.fraction - NOISE_FRACTION - (extra - exponent - 16);
    if (this.multiplier === 65536) {
      this.multiplier = 32768;
      this.shift -= 1;
    }
    if (this.shift < -28 || this.shift > 62) throw new RangeError("The temperature does not suit these logits.");
  }

  next() {
    let word = this.state;
    word ^= word << 13;
    word ^= word >>> 17;
    word ^= word << 5;
    return (this.state = word >>> 0);
  }

  /* -log2(-log2(u)) with 11 fraction bits, for the u that a hash of `random` and `index` stands for. */
  gumbel(random, index) {
    let word = index;
    for (const [turn, left, right] of this.noise.rounds) {
      word ^= (random << turn) | (turn && random >>> (32 - turn));
      word = (word + (word << left)) | 0;
      word ^= word >>> right;
    }
    const half = word >>> 31, odd = ((word ^ -half) << 1) | 1, octave = Math.clz32(odd), mantissa = odd << octave;
    const segment = (mantissa >>> 26) & 31, rest = (mantissa >>> 19) & 127;
    const entry = this.noise.entries[(half << 9) | (Math.min(octave, 15) << 5) | segment];
    const size = (entry >> 5) - (((entry & 31) * (2 * rest - 127) + 32) >> 6);
    return half ? -size : size + (octave << NOISE_FRACTION);
  }

  choose(logits) {
    const random = this.multiplier ? this.next() : 0;
    const wide = this.multiplier && this.shift < -20; // sums beyond 2^53
    let best = 0, largest = null;
    for (let index = 0; index < logits.length; index++) {
      let score = logits[index];
      if (this.multiplier) {
        const scaled = shiftRight(score * this.multiplier, this.shift), noise = this.gumbel(random, index);
        score = wide ? BigInt(scaled) + BigInt(noise) : scaled + noise;
      }
      if (largest === null || score > largest) {
        largest = score;
        best = index;
      }
    }
    return best;
  }
}
