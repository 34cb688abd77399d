/* What the page begins with: the model that it holds, and the panels that show it. */
"use strict";

const PAGE = JSON.parse(document.getElementById("page-data").textContent);
const MODEL = new IntegerModel(PAGE.model);
const TOKENIZER = makeTokenizer(PAGE.model.tokenizer);
new WritePanel(document.getElementById("write-form"), MODEL, TOKENIZER);
const FOLLOW = PAGE.follow && new FollowPanel(document.getElementById("follow-form"), new IntegerModel(PAGE.model), TOKENIZER, PAGE.follow);
