/* The page's form: the integer model continues a prompt. */
"use strict";

const PIECE_OF_WORK = 25; // milliseconds between two chances for the browser to draw

/* A prompt's tokens; where there are none, the one that begins a text. */
function promptTokens(tokenizer, prompt) {
  const tokens = tokenizer.encode(prompt);
  return tokens.length ? tokens : [tokenizer.beginning()];
}

class WritePanel {
  constructor(form, model, tokenizer) {
    Object.assign(this, { form, model, tokenizer, running: 0 });
    this.prompt = form.querySelector("[data-prompt]");
    this.text = form.querySelector("[data-text]");
    this.status = form.querySelector("[role=status]");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.write();
    });
    form.querySelector("[data-stop]").addEventListener("click", () => this.running++);
    form.hidden = false;
  }

  value(name) {
    return this.form.elements[name].value;
  }

  async write() {
    const turn = ++this.running, prompt = this.value("prompt"), count = Number(this.value("count"));
    try {
      const temperature = Number(this.value("temperature")), seed = Number(this.value("seed"));
      if (!this.value("temperature").trim() || !this.value("seed").trim()) throw new RangeError("Give a temperature and a seed.");
      const tokens = promptTokens(this.tokenizer, prompt), decoder = new TokenDecoder(this.tokenizer, tokens[tokens.length - 1]);
      const stream = this.model.stream(tokens, temperature, seed);
      this.prompt.textContent = prompt;
      this.text.textContent = "";
      this.status.textContent = "Writing.";
      const began = performance.now();
      let made = 0;
      while (made < count && turn === this.running) {
        let text = "";
        for (const until = performance.now() + PIECE_OF_WORK; made < count && performance.now() < until; made++)
          text += decoder.decode(stream.next().value);
        this.text.textContent += text;
        await new Promise((resume) => setTimeout(resume));
      }
      if (made === count) this.text.textContent += decoder.end();
      if (turn > this.running - 1 || made < count) {
        const seconds = (performance.now() - began) / 1000;
        this.status.textContent = `${made} tokens in ${seconds.toFixed(2)} s: ${Math.round(made / seconds)} a second.`;
      }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.status.textContent = error.message;
    }
  }
}
