/* Text to tokens and back, as Positron's five tokenizers do it. */
"use strict";

// Python's white space and its \w, which are not JavaScript's.
const SPACES = "\\t-\\r\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORD_PIECE = / ?[\p{L}\p{N}_]+|[^\p{L}\p{N}_]/gu;
const BPE_PIECE = piecePattern("\\p{L}\\p{Nl}\\p{No}", "\\p{Nd}", `${SPACES}\\x1c-\\x1f`);
const GPT2_PIECE = piecePattern("\\p{L}", "\\p{N}", SPACES);

/* Contractions; a word, number or run of marks with the space before it; the white space in between. */
function piecePattern(letter, number, space) {
  return new RegExp(
    `'(?:[sdmt]|ll|ve|re)| ?[${letter}]+| ?[${number}]+| ?[^${space}${letter}${number}]+|[${space}]+(?![^${space}])|[${space}]+`,
    "gu");
}

const utf8 = (text) => new TextEncoder().encode(text);

class CharacterTokenizer {
  constructor(content) {
    this.pieces = content.vocabulary;
    this.tokens = new Map(this.pieces.map((piece, token) => [piece, token]));
  }

  encode(text) {
    return Array.from(text, (character) => {
      if (!this.tokens.has(character))
        throw new RangeError(`The model knows no ${JSON.stringify(character)}; it was trained on: ${this.pieces.join("").trim()}`);
      return this.tokens.get(character);
    });
  }

  bytes(token) {
    return utf8(this.pieces[token]);
  }

  beginning() {
    return this.tokens.get("\n") || 0;
  }
}

class WordTokenizer extends CharacterTokenizer {
  encode(text) {
    return (text.match(WORD_PIECE) || []).map((piece) => this.tokens.get(piece) || 0);
  }
}

/* 256 bytes, merges in the order learned, special tokens; GPT-2's have numbers of their own. */
class BytePairTokenizer {
  constructor(content) {
    this.pattern = content.kind === "gpt2" ? GPT2_PIECE : BPE_PIECE;
    this.pieces = Array.from({ length: 256 }, (_, value) => Uint8Array.of(value));
    this.merged = new Map();
    for (const [first, second] of content.merges) {
      this.merged.set(`${first} ${second}`, this.pieces.length);
      this.pieces.push(Uint8Array.of(...this.pieces[first], ...this.pieces[second]));
    }
    this.special = new Map(content.special_tokens.map((text, index) => [text, this.pieces.length + index]));
    this.pieces.push(...content.special_tokens.map(utf8));
    this.numbers = content.numbers || this.pieces.map((_, token) => token);
    this.order = [];
    this.numbers.forEach((number, token) => (this.order[number] = token));
  }

  encode(text) {
    const escaped = [...this.special.keys()].sort((a, b) => b.length - a.length)
      .map((special) => special.replace(/[^\p{L}\p{N}]/gu, (mark) => `\\u{${mark.codePointAt(0).toString(16)}}`));
    const parts = escaped.length ? text.split(new RegExp(`(${escaped.join("|")})`, "u")) : [text];
    const tokens = parts.flatMap((part) => this.special.has(part)
      ? [this.special.get(part)]
      : (part.match(this.pattern) || []).flatMap((piece) => this.merge([...utf8(piece)])));
    return tokens.map((token) => this.numbers[token]);
  }

  /* Join everywhere the neighbours whose pair was learned first, until no pair is known. */
  merge(tokens) {
    for (;;) {
      let lowest = Infinity;
      for (let i = 1; i < tokens.length; i++)
        lowest = Math.min(lowest, this.merged.get(`${tokens[i - 1]} ${tokens[i]}`) ?? Infinity);
      if (lowest === Infinity) return tokens;
      for (let i = 0; i + 1 < tokens.length; i++)
        if (this.merged.get(`${tokens[i]} ${tokens[i + 1]}`) === lowest) tokens.splice(i, 2, lowest);
    }
  }

  bytes(token) {
    return this.pieces[this.order[token]];
  }

  beginning() {
    const between = this.numbers === undefined ? undefined : this.special.get("<|endoftext|>");
    if (this.pattern === GPT2_PIECE && between !== undefined) return this.numbers[between];
    return this.encode("\n")[0];
  }
}

/* llama2.c's: joins the neighbours whose joined spelling has the best score, the leftmost first. */
class ScoredTokenizer {
  constructor(content) {
    this.pieces = content.vocabulary;
    this.scores = content.scores;
    this.tokens = new Map(this.pieces.map((piece, token) => [piece, token]));
  }

  encode(text) {
    if (!text) return [1];
    const tokens = Array.from(` ${text}`).flatMap((character) => this.tokens.has(character)
      ? [this.tokens.get(character)]
      : Array.from(utf8(character), (value) => 3 + value));
    for (;;) {
      let best = null, score = -1e10, place = 0;
      for (let i = 1; i < tokens.length; i++) {
        const joined = this.tokens.get(this.pieces[tokens[i - 1]] + this.pieces[tokens[i]]);
        if (joined !== undefined && this.scores[joined] > score) [best, score, place] = [joined, this.scores[joined], i - 1];
      }
      if (best === null) return [1, ...tokens];
      tokens.splice(place, 2, best);
    }
  }

  /* The token that begins a text is left out, and so is the space of the token after it. */
  bytes(token, previous) {
    const piece = this.pieces[token];
    if (token === 1 && previous === undefined) return new Uint8Array(0);
    if (token >= 3 && token < 259) return Uint8Array.of(token - 3);
    return utf8(previous === 1 && piece.startsWith(" ") ? piece.slice(1) : piece);
  }

  beginning() {
    return 1;
  }
}

const TOKENIZERS = {
  character: CharacterTokenizer, word: WordTokenizer, bpe: BytePairTokenizer, gpt2: BytePairTokenizer, llama2c: ScoredTokenizer,
};

function makeTokenizer(content) {
  return new TOKENIZERS[content.kind](content);
}

/* Text of tokens that come one after the other; a character whose bytes are not all there waits. */
class TokenDecoder {
  constructor(tokenizer, previous) {
    this.tokenizer = tokenizer;
    this.previous = previous;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  decode(token) {
    const bytes = this.tokenizer.bytes(token, this.previous);
    this.previous = token;
    return this.decoder.decode(bytes, { stream: true });
  }

  end() {
    return this.decoder.decode();
  }
}
