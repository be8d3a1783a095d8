"use strict";
// Chat: questions, answers as they come, thumbs, corrections, and which of two answers is better.

let turns = []; // {role, content} of the conversation
let answering = null; // the AbortController of the answer that is being written
let choosing = null; // takes the first of two answers, while the person has chosen none
const LIVELY = 0.8; // temperature of two answers, where the likeliest one alone is asked for

function bubble(role) {
  const said = el("div", { class: "said" });
  const who = el("span", { class: "hush", text: role === "user" ? "You: " : "Answer: " });
  const node = el("div", { class: `turn ${role}` }, who, said);
  node.said = said;
  const empty = $("log").querySelector(".empty");
  if (empty) empty.hidden = true;
  $("log").append(node);
  return node;
}

/** Follows what is written, unless the person has scrolled up to read. */
function follow(change) {
  const log = $("log"), below = log.scrollHeight - log.scrollTop - log.clientHeight;
  change();
  if (below < 48) log.scrollTop = log.scrollHeight;
}

async function say(text) {
  if (choosing) choosing();
  const system = $("system").value.trim(), talk = turns, control = (answering = new AbortController());
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...talk, { role: "user", content: text }]
    .map((turn) => ({ ...turn })); // as they are now: a turn may be corrected later
  bubble("user").said.textContent = text;
  const node = bubble("answer"), answers = drafts(node, $("twice").checked ? 2 : 1);
  const temperature = Number($("temperature").value) || (answers.length > 1 ? LIVELY : 0);
  node.classList.add("waiting");
  $("log").scrollTop = $("log").scrollHeight;
  $("log").setAttribute("aria-busy", "true");
  put($("send"), "Stop");
  let wrong = "";
  const began = performance.now();
  try {
    await Promise.all(answers.map((answer) => stream({ messages, temperature }, answer, control.signal,
      () => follow(() => put(answer.said, answer.text)))));
  } catch (error) {
    if (error.name === "AbortError") answers[0].finish = "stopped";
    else wrong = error.message;
    control.abort(); // the other one
  }
  for (const answer of answers) answer.seconds = (performance.now() - began) / 1000;
  node.classList.remove("waiting");
  if (answering === control) {
    answering = null;
    put($("send"), "Send");
    $("log").removeAttribute("aria-busy");
  }
  if (talk === turns) follow(() => (wrong ? fail(node, text, wrong) : choose(node, messages, answers)));
}

/** Answers to be written into `node`: one in its place, or two side by side. */
function drafts(node, count) {
  const answers = Array.from({ length: count }, () => ({ text: "", model: "", finish: null, usage: null }));
  answers[0].said = node.said;
  if (count === 1) return answers;
  answers.forEach((answer, i) => {
    answer.said = el("div", { class: "said" });
    answer.box = el("div", { class: "small-buttons", role: "group", "aria-label": `Answer ${i + 1}` }, answer.said);
  });
  node.pair = el("div", { class: "pair" }, ...answers.map((answer) => answer.box));
  node.said.hidden = true;
  node.append(node.pair);
  return answers;
}

/** Reads the answer to what was asked as it comes; `grown` after each piece. */
async function stream(asked, answer, signal, grown) {
  const json = { model: $("model").value, ...asked, stream: true, stream_options: { include_usage: true },
    max_tokens: Number($("longest").value) || 256 };
  const response = await call("v1/chat/completions", { method: "POST", json, signal });
  const reader = response.body.getReader(), decoder = new TextDecoder();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The answer broke off; the daemon went away.");
    });
    rest += decoder.decode(value, { stream: !done });
    const lines = rest.split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:") || line.slice(5).trim() === "[DONE]") continue;
      const chunk = JSON.parse(line.slice(5));
      if (chunk.error) throw new Error(sentence(chunk.error.message));
      take(answer, chunk);
    }
    grown();
    if (done) return;
  }
}

function take(answer, chunk) {
  answer.model = chunk.model;
  answer.origin = chunk.edgetune ? chunk.edgetune.source : "";
  answer.usage = chunk.usage || answer.usage;
  answer.sources = chunk.sources || answer.sources;
  for (const choice of chunk.choices) {
    answer.text += choice.delta.content || "";
    answer.finish = choice.finish_reason || answer.finish;
  }
}

function fail(node, text, wrong) {
  node.previousElementSibling.remove();
  node.replaceWith(el("p", { class: "small bad", text: wrong }));
  if (!$("text").value) $("text").value = text; // to be sent again
}

/** Lets the person pick the better of two answers, with which the conversation continues. Of one there is no choice. */
function choose(node, messages, answers) {
  const [first, second] = answers;
  const settle = (answer, ...said) => {
    choosing = null;
    if (node.pair) node.pair.remove();
    node.said.hidden = false;
    showAnswer(node.said, answer.text);
    return finish(node, messages, answer, ...said);
  };
  if (!second || first.finish === "stopped") return settle(first);
  if (first.text.trim() === second.text.trim()) return settle(first, "Both answers were the same.");
  choosing = () => settle(first);
  node.pair.prepend(el("h3", { class: "row", text: "Which is better?" }));
  answers.forEach((answer) => (answer.text ? showAnswer(answer.said, answer.text) : put(answer.said, "(no words)")));
  async function prefer(answer, { text }) {
    const given = { messages, answer: answer.text, rejected: text, model: answer.model };
    const saved = await post("v1/feedback", given);
    settle(answer, sentence(saved.reason), "up");
    $("text").focus();
  }
  const button = (text, onclick) => el("button", { type: "button", text, onclick });
  for (const [answer, other, text] of [[first, second, "The first is better"], [second, first, "The second is better"]])
    answer.box.append(button(text, (event) => act(event.currentTarget, () => prefer(answer, other))));
  const neither = button("Neither: correct it", () => settle(first).correct());
  node.pair.append(el("div", { class: "row small-buttons" }, neither));
}

/** Below an answer: thumbs, the way to correct it, who gave it. said, rated: if it was rated already. */
function finish(node, messages, answer, said, rated) {
  const turn = { role: "assistant", content: answer.text };
  turns.push(messages[messages.length - 1], turn);
  const badge = el("span", { class: "badge good", text: whence(answer), hidden: !answer.origin });
  const note = el("span", { class: "small soft", role: "status", text: said || credit(answer) });
  if (!answer.text) node.said.append(el("span", { class: "soft", text: "(no words)" }));
  const thumbs = ["up", "down"].map((rating) => el("button", { class: `quiet ${rating}`, type: "button",
    "aria-label": rating === "up" ? "Good answer" : "Wrong answer", "aria-pressed": String(rating === rated),
    onclick: (event) => act(event.currentTarget, () => rate(rating)) }, icon("thumb")));
  const edit = el("button", { class: "fix", type: "button", onclick: () => correct() }, icon("pencil"), "Correct");
  const valid = validMark(answer), under = el("div", { class: "row under small-buttons" }, ...thumbs, edit);
  node.append(el("div", { class: "row about small-buttons" }, ...(valid ? [valid] : []), badge, note),
    ...sources(answer), under);

  async function tell(given) {
    const saved = await post("v1/feedback", { messages, answer: answer.text, model: answer.model, ...given });
    put(note, saved.reason ? sentence(saved.reason) : saved.learns ? "Kept to learn from." : "Noted.");
    return saved;
  }
  async function rate(rating) {
    await tell({ rating });
    thumbs.forEach((button) => button.setAttribute("aria-pressed", String(button.classList.contains(rating))));
    if (rating === "down") correct();
  }
  function correct() {
    const rows = Math.min(Math.max(turn.content.split("\n").length, 2), 8);
    const box = el("textarea", { rows, value: turn.content, class: isJson(turn.content) ? "json" : "" });
    const save = async (value) => {
      const saved = await tell({ correction: value }), [text, colour] = fate(saved);
      if (saved.learns) put(note, "");
      turn.content = value;
      put(badge, text);
      badge.className = `badge ${colour}`;
      badge.hidden = false;
      note.before(edit); // it can be corrected again, and rated no more
      [under, ...(valid ? [valid] : [])].forEach((part) => part.remove());
      showCorrection(node, answer.text, value);
    };
    const rest = (hidden) => [under, edit].forEach((part) => (part.hidden = hidden));
    const form = editor({ box, save, closed: () => { rest(false); edit.focus(); } });
    follow(() => { rest(true); node.append(form); });
    box.focus();
  }
  return { correct };
}

/** A form around the box in which something is written: `save` keeps its text, `closed` is called when it is gone;
 *  what is wrong is said below the box. */
function editor({ box, label = "What it should have answered", verb = "Save correction", save, closed }) {
  const button = el("button", { class: "main", type: "submit", text: verb });
  const wrong = el("p", { class: "small bad", role: "alert" });
  const close = () => { form.remove(); closed(); };
  const form = el("form", { class: "stack", onkeydown: (event) => event.key === "Escape" && close(),
    onsubmit: (event) => {
      event.preventDefault();
      act(button, () => save(box.value).then(close, (error) => put(wrong, error.message)));
    } }, el("label", {}, label, box), wrong,
  el("div", { class: "row small-buttons" }, button,
    el("button", { type: "button", text: "Leave it", onclick: close })));
  return form;
}
