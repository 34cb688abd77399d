/* The page's panel that follows one token: every tensor as cells, in integers, floats and their difference. */
"use strict";

const COLUMNS = 32; // cells of a row of a tensor

function unpackFloats(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer); // every machine with a browser is little-endian
}

/* A token's text with its white space made visible. */
function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* At most five digits, and as many as a difference needs to be seen. */
function shown(value) {
  return value === 0 ? "0" : Math.abs(value) >= 1e-4 && Math.abs(value) < 1e6 ? String(Number(value.toFixed(5))) : value.toExponential(2);
}

/*
 * Numbers as coloured cells. A pointer, or the arrow keys where the cells have the focus, choose one,
 * and `tell` is called with its index.
 */
class Cells {
  constructor(label, count, tell, letters = null) {
    Object.assign(this, { count, tell, letters, chosen: -1, values: [] });
    this.canvas = element("canvas", { tabindex: 0, role: "img", "aria-label": `${label}: ${count} values, arrow keys choose one` });
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * this.columns);
      const index = Math.floor(((event.clientY - box.top) / box.height) * this.rows) * this.columns + column;
      if (column >= 0 && index >= 0 && index < this.count && index !== this.chosen) this.choose(index);
    };
    this.canvas.addEventListener("pointermove", at);
    this.canvas.addEventListener("pointerdown", at);
    this.canvas.addEventListener("focus", () => this.choose(Math.max(0, this.chosen)));
    this.canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, Home: -this.count, End: this.count };
      if (!(event.key in steps)) return;
      event.preventDefault();
      this.choose(Math.max(0, Math.min(this.count - 1, this.chosen + steps[event.key])));
    });
  }

  choose(index) {
    if (Cells.last && Cells.last !== this) {
      Cells.last.chosen = -1;
      Cells.last.draw();
    }
    Cells.last = this;
    this.chosen = index;
    this.draw();
    this.tell(index);
  }

  /* `values` from −1 to 1: a colour's strength is the root of the magnitude, so that small ones show. */
  draw(values = this.values) {
    this.values = values;
    const width = this.canvas.parentElement.clientWidth, ratio = window.devicePixelRatio || 1;
    this.columns = Math.min(COLUMNS, this.count);
    this.rows = Math.ceil(this.count / this.columns);
    const size = width / (this.letters ? Math.max(this.count, 24) : COLUMNS), height = this.letters ? Math.max(size, 17) : size;
    this.canvas.width = size * this.columns * ratio;
    this.canvas.height = height * this.rows * ratio;
    this.canvas.style.width = `${size * this.columns}px`;
    this.canvas.style.height = `${height * this.rows}px`;
    const paint = this.canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    paint.scale(ratio, ratio);
    for (let index = 0; index < this.count; index++) {
      const x = (index % this.columns) * size, y = Math.floor(index / this.columns) * height, value = values[index] || 0;
      paint.globalAlpha = 1;
      paint.fillStyle = style.getPropertyValue("--sunk");
      paint.fillRect(x, y, size - 1, height - 1);
      paint.globalAlpha = Math.sqrt(Math.min(1, Math.abs(value)));
      paint.fillStyle = style.getPropertyValue(value < 0 ? "--negative" : "--positive");
      paint.fillRect(x, y, size - 1, height - 1);
      paint.globalAlpha = 1;
      if (this.letters) {
        paint.fillStyle = style.getPropertyValue("--ink");
        paint.font = `${Math.min(12, size)}px monospace`;
        paint.textAlign = "center";
        paint.fillText(this.letters[index], x + size / 2, y + height / 2 + 4, size);
      }
      if (index === this.chosen) {
        paint.strokeStyle = style.getPropertyValue("--ink");
        paint.lineWidth = 2;
        paint.strokeRect(x + 1, y + 1, size - 3, height - 3);
      }
    }
  }
}

class FollowPanel {
  constructor(form, model, tokenizer, data) {
    Object.assign(this, { form, model, data, count: data.tokens.length, integers: [], attended: [] });
    this.floats = Object.fromEntries(Object.entries(data.floats).map(([name, text]) => [name, unpackFloats(text)]));
    this.attention = unpackFloats(data.attention);
    this.labels = data.tokens.map((token) => visible(new TextDecoder().decode(tokenizer.bytes(token))));
    this.told = form.querySelector("[data-told]");
    this.scale = form.querySelector("[data-scale]");
    this.run();
    this.build();
    form.addEventListener("change", () => this.draw());
    form.addEventListener("submit", (event) => event.preventDefault());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    window.addEventListener("resize", () => this.draw());
    form.hidden = false;
    this.draw();
  }

  /* Run the integer model on all tokens and keep every tensor. */
  run() {
    this.data.tokens.forEach((token, position) => {
      this.model.step(token, position);
      this.integers.push(Object.fromEntries(this.model.operations.map(({ name, y }) => [name, y.slice()])));
      this.attended.push(Object.values(this.model.attended).map(({ weights }) => weights.slice()));
    });
  }

  build() {
    const places = this.form.querySelector("[data-tokens]");
    this.labels.forEach((label, position) => {
      const choice = element("input", { type: "radio", name: "position", value: position });
      choice.checked = position === this.count - 1;
      places.append(element("label", { class: "token" }, choice, element("span", {}, label)));
    });
    const tensors = this.form.querySelector("[data-tensors]");
    this.rows = this.model.operations.map(({ name, y }) => {
      const format = this.model.formatOf(name), place = this.place(name);
      const cells = new Cells(this.title(name), y.length, (index) => this.tell(name, index));
      const made = place ? ` · ${place}` : "";
      tensors.append(element("div", { class: "tensor" },
        element("p", {}, element("strong", {}, this.title(name)), ` ${y.length} × ${format.text}${made}`), cells.canvas));
      return { name, format, cells };
    });
    const attention = this.form.querySelector("[data-attention]"), { heads } = Object.values(this.model.attended)[0];
    this.heads = this.attended[0].flatMap((_, layer) => Array.from({ length: heads }, (_, head) => {
      const title = `layer ${layer + 1}, head ${head + 1}`;
      const cells = new Cells(`attention, ${title}`, this.count, (index) => this.tellAttention(layer, head, index), this.labels);
      attention.append(element("div", { class: "tensor" }, element("p", {}, element("strong", {}, title)), cells.canvas));
      return { layer, head, cells };
    }));
  }

  title(name) {
    return name.replace(/^blocks\.(\d+)\./, (_, block) => `layer ${Number(block) + 1}, `);
  }

  place(name) {
    const [unit, begin, end] = this.data.cycles[name] || [];
    return unit ? `${unit}, cycles ${begin} to ${end}` : "";
  }

  get position() {
    return Number(this.form.elements.position.value);
  }

  get view() {
    return this.form.elements.view.value;
  }

  /* A tensor's integer, and its float in the integer's units. */
  pair(name, index) {
    const integer = this.integers[this.position][name], { fraction } = this.model.formatOf(name);
    return [integer[index], this.floats[name][this.position * integer.length + index] * 2 ** fraction];
  }

  /* The attention of a head to a token: the integer model's and the float model's. */
  attentionPair(layer, head, index) {
    const weights = this.attended[this.position][layer], heads = weights.length / this.model.contextLength;
    const fixed = weights[head * this.model.contextLength + index];
    const float = this.attention[((layer * heads + head) * this.count + this.position) * this.count + index];
    return index <= this.position ? [fixed, float] : [0, 0];
  }

  draw() {
    const choose = { integer: ([i]) => i, float: ([, f]) => f, difference: ([i, f]) => i - f }[this.view];
    let largest = 1e-6; // difference, as a part of its format's range
    const drawn = this.rows.map(({ name, format, cells }) => {
      const values = Array.from({ length: cells.count }, (_, index) => choose(this.pair(name, index)));
      if (this.view === "difference") for (const value of values) largest = Math.max(largest, Math.abs(value) / format.limit);
      return { cells, values, limit: format.limit };
    });
    const difference = this.view === "difference";
    for (const { cells, values, limit } of drawn)
      cells.draw(values.map((value) => value / limit / (difference ? largest : 1)));
    for (const { layer, head, cells } of this.heads)
      cells.draw(this.labels.map((_, index) => choose(this.attentionPair(layer, head, index)) * (difference ? 10 : 1)));
    const part = `${(100 * largest).toFixed(1)} %`;
    const [low, high] = difference
      ? [`−${part} of a tensor’s largest value; attention −0.1`, `+${part}; attention +0.1`]
      : ["smallest value of a tensor’s format", "largest; attention 1"];
    this.scale.replaceChildren(low, element("i", {}), high);
    if (Cells.last) Cells.last.tell(Cells.last.chosen);
  }

  say(facts) {
    this.told.replaceChildren(...facts.flatMap(([name, value]) => [element("span", {}, `${name} `, element("b", {}, value)), " "]));
  }

  tell(name, index) {
    const [integer, float] = this.pair(name, index), format = this.model.formatOf(name), unit = 2 ** -format.fraction;
    this.say([
      [this.title(name), `channel ${index}`], ["float", shown(float * unit)], ["integer", `${integer} = ${shown(integer * unit)}`],
      ["difference", `${shown((integer - float) * unit)}, ${shown(Number((integer - float).toFixed(2)))} units`],
      ["format", format.text], ["circuit", this.place(name) || "not simulated yet"],
    ]);
  }

  tellAttention(layer, head, index) {
    const [fixed, float] = this.attentionPair(layer, head, index);
    this.say([
      [`layer ${layer + 1}, head ${head + 1}`, `from ${this.labels[this.position]} (${this.position}) to ${this.labels[index]} (${index})`],
      ["float", shown(float)], ["integer", shown(fixed)], ["difference", shown(fixed - float)],
    ]);
  }
}
