"use strict";
// Typed questions: asked about a state, answered with a bar for each option, and corrected by a click.

const YES_NO = { false: "no", true: "yes" };
const FEW_OPTIONS = 5; // that are shown of an answer, the most probable ones
const MOST_NAMED = 20; // options that are named before anything is asked
let askedModel = null; // whose questions are shown
let learnedQuestions = [];

/** They are looked up again when another adapter answers. */
panels.push(async ({ adapter, model }) => {
  const current = adapter || model;
  if (askedModel === current) return;
  const found = await get("v1/decisions/questions");
  askedModel = current;
  learnedQuestions = found.data;
  $("decisions").hidden = !found.learns;
  $("no-questions").hidden = found.data.length > 0;
  $("decide").hidden = found.data.length === 0;
  list($("questions"), found.data, ({ type, instructions, criteria }) =>
    JSON.stringify([type, instructions, type === "score" && criteria]), questionCard);
});

/** [label, what it is called] of each option of a question, in its order. */
function optionsOf({ type, criteria }) {
  if (type === "noul") return Object.entries(YES_NO);
  if (type === "score") return criteria.map((text, i) => [String(i), text]);
  return Object.keys(criteria).map((name) => [name, name]);
}

function percentOf(p) {
  if (p === 0 || p === 1) return `${100 * p} %`; // by a correction
  return p > 0.999 ? "> 99.9 %" : p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
}

function questionCard() {
  const title = el("h3"), badge = el("span", { class: "badge", hidden: true });
  const options = el("ol", { class: "options", hidden: true });
  const facts = el("p", { class: "small soft", role: "status" });
  const more = el("button", { class: "quiet", type: "button", hidden: true, onclick: () => { all = true; draw(); } });
  const scores = el("details", {}, el("summary", { class: "small soft", text: "Tested answers" }));
  const card = el("li", {}, el("div", { class: "row apart" }, title, badge), options,
    el("div", { class: "row apart more small-buttons" }, facts, more, scores));
  let question, answer = null, right = "", told = false, all = false; // right: the label that counts now
  card.show = (item) => {
    question = item;
    put(title, item.instructions);
    if (!answer) put(facts, optionsOf(item).slice(0, MOST_NAMED).map(([, text]) => text).join(" · "));
    scores.hidden = !item.rows;
    scores.replaceChildren(scores.firstElementChild, ...(item.rows ? figures(item) : []));
  };
  /** found: {id, name, p: of each label, sure, recalled} */
  card.answer = (found) => {
    answer = found;
    right = Object.keys(found.p).reduce((a, b) => (found.p[b] > found.p[a] ? b : a));
    told = all = false;
    put(facts, "");
    mark(...(found.recalled ? ["from a correction", "good"] : found.sure ? ["sure", "good"] : ["not sure", "warm"]));
    draw();
  };
  function mark(text, colour) {
    put(badge, text);
    badge.className = `badge ${colour}`;
    badge.hidden = false;
  }
  function draw() {
    const ranked = optionsOf(question).filter(([label]) => label in answer.p) // more may be learned since
      .map(([label, text]) => ({ label, text, p: answer.p[label] })).sort((a, b) => b.p - a.p);
    const shown = ranked.filter(({ label }, i) => all || i < FEW_OPTIONS || label === right);
    list(options, shown, ({ label }) => label, optionLine);
    options.hidden = false;
    options.setAttribute("aria-label", question.instructions);
    more.hidden = shown.length === ranked.length;
    put(more, `Show all ${ranked.length}`);
  }
  function optionLine({ label }) {
    const name = el("span"), percent = el("span", { class: "number small" }), bar = el("span", { class: "now" });
    const button = el("button", { class: "option", type: "button", onclick: () => act(button, () => choose(label)) },
      name, el("span", { class: "score" }, bar), percent);
    const line = el("li", {}, button);
    line.show = ({ text, p }) => {
      put(name, text);
      put(percent, percentOf(p));
      bar.style.width = `${100 * p}%`;
      button.setAttribute("aria-pressed", String(label === right));
    };
    return line;
  }
  /** Says which option is right: the one that was answered, or another. */
  async function choose(label) {
    if (told && label === right) return;
    const given = label === right ? { rating: "up" } : { correction: label };
    const saved = await post("v1/feedback", { completion_id: answer.id, question: answer.name, ...given });
    right = label;
    told = true;
    mark(...fate(saved));
    put(facts, sentence(saved.reason));
    draw();
  }
  return card;
}

/** How well a question is answered, by rows that were not learned. */
function figures({ rows, accuracy, brier, calibration_error: off, calibration_error_by_chance: chance,
  decided_alone: alone }) {
  const line = (text, said) => el("tr", {}, el("th", { scope: "row", text }), el("td", { text: said }));
  const shares = alone.map(({ error, share: part, at_least: bound, missing }) =>
    line(`Alone at ≤ ${share(error)} error`, missing ? "none" : `${share(part)}, at least ${share(bound)}`));
  const why = alone.map(({ missing }) => missing).filter(Boolean).map(sentence);
  return [el("table", { class: "number" }, el("tbody", {}, line("Rows that were not learned", rows),
    line("Right", share(accuracy)), line("Brier score", number(brier)),
    line("Calibration error", number(off)), line("The same by chance", number(chance)), ...shares)),
  ...[...new Set(why)].map((text) => el("p", { class: "small soft", text }))];
}

async function decide() {
  const state = $("decide-state").value.trim();
  if (!state) return $("decide-state").focus();
  const questions = Object.fromEntries(learnedQuestions.map(({ type, instructions, criteria }, i) =>
    [`q${i}`, { type, instructions, criteria }]));
  put($("decide-wrong"), "");
  put($("decide-note"), "");
  try {
    const response = await call("v1/systemone", { method: "POST", json: { state, questions } });
    const header = (name) => response.headers.get(name);
    const { model, answers } = await response.json(), sureOnes = JSON.parse(header("x-edgetune-sure"));
    const recalled = JSON.parse(header("x-edgetune-recalled"));
    [...$("questions").children].forEach((card, i) => {
      const name = `q${i}`, { noul, probabilities } = answers[name];
      card.answer({ id: header("x-request-id"), name, p: probabilities || { true: noul, false: 1 - noul },
        sure: sureOnes.includes(name), recalled: recalled[name] });
    });
    put($("decide-note"), `answered by ${short(model)} · ${sureOnes.length} of ${learnedQuestions.length} sure`);
    $("decide-hint").hidden = false;
  } catch (error) {
    put($("decide-wrong"), error.message);
  }
}

$("decide").addEventListener("submit", (event) => {
  event.preventDefault();
  act($("decide-ask"), decide);
});
$("decide-state").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!$("decide-ask").disabled) $("decide").requestSubmit();
});
