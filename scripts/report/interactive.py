"""The parts of the report's page that compute: the integer model in JavaScript, and its panels.

The page holds the scripts and their data. A content security policy lets these scripts alone run,
by their digest, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

SCRIPTS = ("integer_model.js", "tokenizers.js", "write_panel.js", "follow_panel.js", "start.js")


def scripts(interactive: Mapping[str, Any] | None) -> str:
    """Return the scripts and their data; nothing where the page holds no model."""
    if interactive is None:
        return ""
    # a text that ends a script element must not stand in one
    content = json.dumps(interactive, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="page-data">{content}</script>\n<script>{program()}</script>'


def policy() -> str:
    """Return the content security policy that lets the page's own script run."""
    digest = base64.b64encode(hashlib.sha256(program().encode()).digest()).decode()
    rules = f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    return f'<meta http-equiv="Content-Security-Policy" content="{escape(rules, quote=False)}">'


def program() -> str:
    """Return all scripts as one."""
    return source(*SCRIPTS)


def source(*names: str) -> str:
    """Return the text of scripts, one after the other."""
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


def write_form(prompt: str) -> str:
    """Return the form in which the integer model continues a prompt."""
    return (
        "<p>The integer model itself, in this page: the same prompt, temperature and seed give the tokens that "
        "<code>positron generate --quantized</code> and the circuit give, bit for bit. Temperature 0 takes the likeliest "
        "token.</p>"
        '<noscript><p class="missing">This part needs JavaScript.</p></noscript>'
        '<form id="write-form" class="panel" hidden>'
        f'<label class="wide">Prompt<textarea name="prompt" rows="2" spellcheck="false">{escape(prompt)}</textarea></label>'
        '<label>Temperature<input name="temperature" inputmode="decimal" value="0.8"></label>'
        '<label>Seed<input name="seed" inputmode="numeric" value="1"></label>'
        '<label>Tokens<input name="count" type="number" min="1" max="10000" value="200"></label>'
        '<span class="buttons"><button type="submit">Write</button><button type="button" data-stop>Stop</button></span>'
        '<blockquote class="wide" aria-label="what the integer model writes"><b data-prompt></b><span data-text></span>'
        '</blockquote><p class="note wide" role="status"></p></form>'
    )


def follow_form(follow: Mapping[str, Any], command: str) -> str:
    """Return the panel that follows one token through all tensors.

    Args:
        follow: Of `follow.followed`.
        command: What makes the circuit's cycles, in HTML.
    """
    views = "".join(
        f'<label><input type="radio" name="view" value="{view}"{" checked" if view == "integer" else ""}>{view}</label>'
        for view in ("integer", "float", "difference")
    )
    circuit = (
        f"Units and cycles are those of the decoder circuit for the token at position {int(follow['position'])}, counted "
        "from the token taken."
        if follow["cycles"]
        else f"The circuit’s units and cycles come with {command}."
    )
    return (
        "<p>Every tensor that a token makes, in the order of the computation, a cell for each channel. The integers are "
        "computed in this page, the floats are the trained model’s. A pointer, or the arrow keys in a tensor, choose a "
        f"cell. {circuit}</p>"
        '<form id="follow-form" hidden><fieldset class="tokens" data-tokens><legend>Token</legend></fieldset>'
        f'<fieldset class="views"><legend>Shown</legend>{views}</fieldset>'
        '<p class="scale" data-scale></p><p class="told" role="status" data-told>No cell is chosen.</p>'
        "<h3>Attention of this token, by layer and head</h3><div data-attention></div>"
        "<h3>Tensors of this token</h3><div data-tensors></div></form>"
    )
