"use strict";
// Answers that nobody rated, by which the next adapter is tested: a person says which are right.

const FEW = 5; // each takes the device an answer
const MOST_CHECKS = 100; // that the daemon lists
const LONG = /\n|.{160}/; // a question that may be shown shortened
let wantedChecks = FEW; // that are shown, if there are as many
let checkedBy = null; // the adapter that answers what is shown
let answeringChecks = null; // the promise of the answers that are being asked for

/** The first ones; hidden if there are none. One that is shown stays until it is rated, whatever is asked meanwhile.
 *  drawn: {days, kept, unrated, checked}; adapter: the active one. */
async function showChecks({ days, kept, unrated, checked }, adapter) {
  const shown = $("checks-list").children, count = Math.min(wantedChecks, unrated, MOST_CHECKS);
  $("checks").hidden = !unrated;
  put($("checks-count"), String(unrated));
  const which = unrated === 1 ? "1 answer that nobody rated decides" : `${unrated} answers that nobody rated decide`;
  const active = "whether the next adapter becomes active";
  put($("checks-why"), (checked ? `The ${checked} answers that you checked decide ${active}, and more make that surer. `
    + "Is each right? Those that you skip count as right. "
    : `${which} ${active}. Is each right? Unrated ones count as right. `)
    + `One in five questions is kept for ${days} days without its answer: ${kept} now.`);
  $("more-checks").hidden = [unrated, MOST_CHECKS].includes(count);
  if (!unrated) {
    $("checks").open = false; // no later question is answered unasked
    return $("checks-list").replaceChildren();
  }
  if (!$("checks").open) return;
  if (shown.length !== count || checkedBy !== adapter) {
    const { data } = await get(`v1/drawn?limit=${count}`);
    const stay = checkedBy === adapter && shown.length <= unrated ? [...shown].map((card) => card.row) : [];
    const rows = new Map([...stay, ...data].map((row) => [`${adapter} ${JSON.stringify(row)}`, row]));
    list($("checks-list"), [...rows].slice(0, count), ([key]) => key, ([, row]) => checkCard(row));
    checkedBy = adapter;
  }
  answeringChecks ||= answerChecks().finally(() => (answeringChecks = null)); // which takes longer than a look
}

/** Asks for the answers, one after the other, while somebody looks. */
async function answerChecks() {
  const next = () => [...$("checks-list").children].find((card) => card.waits);
  for (let card = next(); card && $("checks").open && !document.hidden; card = next())
    if (!(await card.answer())) return; // the next look tries again
}

function checkCard(row) {
  const text = row.messages ? wordsOf(row.messages[row.messages.length - 1]) : row.prompt;
  const whole = (row.messages || []).length < 2 ? text
    : row.messages.map((message) => `${message.role}: ${wordsOf(message)}`).join("\n\n");
  const said = el("p", { class: "said" }, el("span", { class: "small soft", text: "Waits for its answer …" }));
  const badge = el("span", { class: "badge", hidden: true }), note = el("span", { class: "small soft" });
  const right = el("button", { class: "fix", type: "button", disabled: true, onclick: () => act(right, () =>
    rate({ rating: "up" })) }, icon("tick"), "Right");
  const edit = el("button", { class: "fix", type: "button", disabled: true, onclick: () => correct() }, icon("pencil"),
    "Correct");
  const under = el("div", { class: "row small-buttons" }, right, edit, badge, note);
  const unfolded = el("details", { hidden: !LONG.test(whole) },
    el("summary", { class: "small soft", text: "All that was asked" }), el("p", { class: "said small", text: whole }));
  const card = el("li", { tabIndex: -1 }, el("p", { class: "said asked small soft", text }), unfolded, said, under);
  let given = null; // what feedback says of the question and its answer
  Object.assign(card, { row, waits: true, answer });

  /** Whether the daemon said something: the active adapter's answer, or why there is none. */
  async function answer() {
    const path = row.messages ? "v1/chat/completions" : "v1/completions";
    try {
      show(await post(path, { ...row, temperature: 0, store: false })); // a check is not drawn again, nor kept
    } catch (error) {
      if (error.away) return false;
      said.className = "small bad";
      put(said, error.message);
      given = { ...row, answer: "" };
    }
    edit.disabled = card.waits = false;
    return true;
  }
  function show({ id, model, choices: [choice], usage, edgetune }) {
    const { content, tool_calls: calls } = choice.message || { content: choice.text };
    const text = calls ? JSON.stringify(calls.map((call) => call.function)) : content || "";
    given = calls ? { completion_id: id } : { ...row, answer: text, model };
    card.text = text;
    showAnswer(said, text || "(no words)");
    const origin = edgetune ? edgetune.source : "";
    badge.hidden = !origin;
    put(badge, origin && whence({ origin }));
    put(note, credit({ origin, model, finish: choice.finish_reason, usage }));
    right.disabled = !text;
  }
  async function rate(judged) {
    await post("v1/drawn", { ...given, ...judged });
    await looking; // what it saw may be from before
    const next = card.nextElementSibling || card.previousElementSibling || $("learn-title");
    card.remove();
    next.focus();
  }
  function correct() {
    const value = card.text || "";
    const box = el("textarea", { rows: Math.min(Math.max(value.split("\n").length, 2), 8), value,
      class: isJson(value) ? "json" : "" });
    under.hidden = true;
    card.append(editor({ box, save: (correction) => rate({ correction }),
      closed: () => { under.hidden = false; edit.focus(); } }));
    box.focus();
  }
  return card;
}

/** The text of a message: whole, in parts, or of what it calls. */
function wordsOf({ content, tool_calls: calls }) {
  if (typeof content === "string" && content) return content;
  return Array.isArray(content) ? content.map((part) => part.text || "").join("") : JSON.stringify(calls || "");
}

async function forgetDrawn() {
  const text = "All questions that are kept to test adapters are gone for good, those that were rated too.";
  if (!(await sure("Delete these questions?", text, "Delete"))) return;
  await act($("forget-drawn"), () => call("v1/drawn", { method: "DELETE" }));
  if ($("checks").hidden) $("learn-title").focus();
}
