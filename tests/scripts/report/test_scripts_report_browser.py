"""The report's page in a real browser: what its integer model writes, token by token.

A browser is Debian's Chromium, or what the environment variable CHROMIUM names.
"""

import os
import shutil

import numpy as np
import pytest

from fixedpoint.generation import generate_batch, generate_text
from fixedpoint.quantization.analysis import tensor_formats
from model.run import RunDirectory
from scripts import cli
from scripts.runs import load_quantized

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install 'positron[browser]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium, or set CHROMIUM")

PROMPTS, TOKENS = 100, 24  # a prompt's tokens and the new ones exceed the tiny run's context of 16
WRITE = """
({ prompts, count, temperature, seed }) => prompts.map((prompt, sequence) => {
  const tokens = [...prompt], stream = MODEL.stream(tokens, temperature, seed, sequence);
  while (tokens.length < prompt.length + count) stream.next();
  return tokens.slice(prompt.length);
})
"""


@pytest.fixture(scope="module")
def run(tiny_run_original):
    return RunDirectory(tiny_run_original)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The run's page, opened from its file in a narrow dark window, without a network."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    assert cli.main(["report", str(run.path), "--out", str(file)]) == 0
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark", offline=True)
        opened = context.new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        opened.on("request", lambda request: problems.append(request.url) if request.url[:4] == "http" else None)
        opened.goto(file.as_uri())
        yield opened
        browser.close()
        assert problems == []


def test_a_hundred_prompts_give_the_tokens_of_the_specification(page, run):
    quantized = load_quantized(run)
    random = np.random.default_rng(5)
    prompts = [random.integers(0, quantized.vocab_size, size=1 + index % 12).tolist() for index in range(PROMPTS)]
    for some, temperature in ((prompts[: PROMPTS // 4], 0.0), (prompts[PROMPTS // 4 :], 0.9)):
        settings = {"temperature": temperature, "seed": 7}
        expected = generate_batch(quantized, some, TOKENS, **settings)
        got = page.evaluate(WRITE, {"prompts": some, "count": TOKENS, **settings})
        for prompt, tokens, wanted in zip(some, got, expected, strict=True):
            assert tokens == wanted, (prompt, temperature)


def test_the_form_writes_the_text_of_the_specification(page, run):
    form = page.locator("#write-form")
    for prompt, temperature, seed in (("The cat", "0.7", "3"), ("", "0", "0")):
        form.get_by_label("Prompt").fill(prompt)
        form.get_by_label("Temperature").fill(temperature)
        form.get_by_label("Seed").fill(seed)
        form.get_by_label("Tokens").fill("40")
        form.get_by_label("Tokens").press("Enter")
        playwright.expect(form.get_by_role("status")).to_contain_text("40 tokens in")
        settings = {"temperature": float(temperature), "seed": int(seed)}
        written = generate_text(load_quantized(run), run.load_tokenizer(), prompt, 40, **settings)
        assert form.locator("[data-text]").evaluate("it => it.textContent") == written
    form.get_by_label("Prompt").fill("Zebra")
    form.get_by_role("button", name="Write").click()
    playwright.expect(form.get_by_role("status")).to_contain_text('The model knows no "Z"')


def test_a_followed_token_has_the_tensors_of_both_models(page, run):
    model, quantized, tokenizer = run.load_model(), load_quantized(run), run.load_tokenizer()
    tokens = np.array([tokenizer.encode(run.sample.read_text())[: quantized.context_length]])
    integers, floats = {}, {}
    quantized.forward(tokens, integers.__setitem__)
    model.forward(tokens, observe=floats.__setitem__)
    got = page.evaluate("FOLLOW.integers.map((one) => Object.entries(one).map(([name, x]) => [name, Array.from(x)]))")
    assert got == [[[name, x[0, at].tolist()] for name, x in integers.items()] for at in range(tokens.shape[1])]
    form = page.locator("#follow-form")
    form.locator("input[name=position]").nth(4).evaluate("it => it.click()")
    canvas = form.get_by_role("img", name="layer 2, feed_forward.up")
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft"):
        canvas.press(key)
    told = form.get_by_role("status").inner_text()
    name, channel = "blocks.1.feed_forward.up", 33
    form_of_it = tensor_formats(quantized)[name]
    integer, exact = int(integers[name][0, 4, channel]), float(floats[name][0, 4, channel])
    assert f"channel {channel} " in told
    assert f"integer {integer} = {integer * form_of_it.resolution:.5f}".rstrip("0") in told
    assert f"float {round(exact, 5):g}"[:12] in told
    assert f"format {form_of_it}" in told
    before = canvas.evaluate("it => it.toDataURL()")
    form.get_by_label("difference").check()
    assert canvas.evaluate("it => it.toDataURL()") != before
    weights = floats["blocks.1.attention.weights"][0, 3, 4]
    heads = page.evaluate("Array.from({length: 5}, (_, at) => FOLLOW.attentionPair(1, 3, at))")
    assert np.allclose([float_ for _, float_ in heads], weights[:5], atol=1e-6)
    assert np.allclose([fixed for fixed, _ in heads], weights[:5], atol=0.05)


def test_the_page_is_as_wide_as_the_window(page):
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [390, 390]
