"use strict";
// How answers look: JSON in colours, what was wrong and right, and who answered.

const TOKENS = /("(?:[^"\\]|\\.)*")(\s*:)?|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\b(?:true|false|null)\b/g;

function isJson(text) {
  if (!/^\s*[[{]/.test(text)) return false;
  try {
    return JSON.parse(text) !== undefined;
  } catch {
    return false;
  }
}

/** Shows an answer as text; keys and values of JSON in colours. */
function showAnswer(node, text) {
  const json = isJson(text);
  if (node.textContent === text && node.classList.contains("json") === json) return; // a selection in it stays
  node.classList.toggle("json", json);
  if (!json) return put(node, text);
  const parts = [];
  let done = 0;
  for (const found of text.matchAll(TOKENS)) {
    const [whole, quoted, colon] = found, word = quoted || whole;
    parts.push(text.slice(done, found.index));
    if (colon) parts.push(el("wbr")); // a line may end before a key
    parts.push(el("span", { class: colon ? "name" : quoted ? "string" : "value", text: word }));
    done = found.index + word.length;
  }
  node.replaceChildren(...parts, text.slice(done));
}

/** The wrong answer struck, the right one below it. */
function showCorrection(node, wrong, right) {
  const line = (tag, label, text) => {
    const said = el(tag, { class: "said" });
    showAnswer(said, text);
    return el("div", { class: `verdict ${tag}` }, el("span", { class: "hush", text: label }), said);
  };
  const old = node.querySelector(".corrected");
  if (old) old.remove();
  node.said.hidden = true;
  node.said.after(el("div", { class: "corrected" }, line("del", "Wrong: ", wrong), line("ins", "Right: ", right)));
}

/** What becomes of feedback that was given, as [badge, its colour]. */
function fate({ learns, held_out: held }) {
  if (!learns) return ["noted", ""];
  return held ? ["will test the next training", "good"] : ["will be learned", "good"];
}

/** Where an answer is from that the model did not write. */
const whence = ({ origin }) => (origin === "recall" ? "from a correction" : `from the ${origin}`);

/** The passages that stood before the question, a line each; none where no documents are asked. */
function sources({ sources: found }) {
  if (!found) return [];
  if (!found.length) return [el("p", { class: "small soft", text: "The documents have nothing about this." })];
  return [el("ol", { class: "small soft sources", "aria-label": "Sources" },
    ...found.map(({ source }) => el("li", { text: source })))];
}

function credit({ origin, model, finish, usage, seconds }) {
  if (origin) return ""; // its badge says so
  const parts = [`answered by ${model.startsWith("ft:") ? short(model) : "the base model"}`];
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  if (seconds) parts.push(`${seconds.toFixed(1)} s`);
  const ended = { length: "cut off at its longest", stopped: "stopped" }[finish];
  return ended ? [...parts, ended].join(" · ") : parts.join(" · ");
}

/** A mark on answers whose form a schema ensures; null for others. */
function validMark({ model, finish, text }) {
  if (!structured.has(model) || finish !== "stop" || !isJson(text)) return null;
  return el("span", { class: "mark small" }, icon("tick"), "valid");
}

function icon(name) {
  const drawn = draw("svg", { class: "icon", "aria-hidden": "true" });
  drawn.append(draw("use", { href: `#${name}` }));
  return drawn;
}
