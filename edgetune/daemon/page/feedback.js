"use strict";
// Feedback: seen, edited, deleted.

const WAITS = "will be learned";
const KINDS = { new: [WAITS, "warm"], used: ["learned", "good"], aside: ["set aside", "bad"],
  withdrawn: ["taken back", ""], counted: ["noted", ""] };
const MORE = 20;
let wanted = MORE; // pieces of feedback that are shown, if there are as many
const exported = fileLink("Export the right answers", "v1/feedback/rows", { name: "feedback.jsonl", saved: true });
$("under-feedback").append(exported);

/** The latest, while somebody looks. */
async function showFeedback() {
  if (!$("given").open) return;
  const items = [];
  let page;
  do {
    const after = items.length ? `&after=${encodeURIComponent(items[items.length - 1].id)}` : "";
    page = await get(`v1/feedback?limit=${Math.min(wanted - items.length, 100)}${after}`);
    items.push(...page.data);
  } while (page.has_more && items.length < wanted);
  $("no-feedback").hidden = items.length > 0;
  $("more").hidden = !page.has_more;
  exported.hidden = !items.length;
  list($("feedback"), items, (item) => item.id, feedbackCard);
}

function feedbackCard({ id, question }) {
  const path = `v1/feedback/${encodeURIComponent(id)}`;
  const badge = el("span"), time = el("span", { class: "small soft" });
  const asked = el("p", { class: "said small soft" }), answer = el("p", { class: "said" });
  const wrong = el("p", { class: "said small" });
  const reason = el("p", { class: "small soft" });
  const edit = el("button", { type: "button", text: "Edit", hidden: question === null, onclick: () => change() });
  const remove = el("button", { type: "button", text: "Delete", onclick: () => drop() });
  const card = el("li", {}, el("div", { class: "row apart" }, el("div", { class: "row" }, badge, time),
    el("div", { class: "row small-buttons" }, edit, remove)), asked, answer, wrong, reason);
  card.show = (item) => {
    const [text, kind] = item.held_out && ["new", "used"].includes(item.state) ? ["test question", "good"] : KINDS[item.state];
    put(badge, text);
    badge.className = `badge ${kind}`;
    put(time, when(item.created_at));
    put(asked, item.question || "");
    showAnswer(answer, item.answer || "");
    wrong.hidden = !item.rejected;
    wrong.replaceChildren(item.rating === "up" ? "Better than: " : "Not: ", el("del", { text: item.rejected || "" }));
    put(reason, text === WAITS ? "" : sentence(item.reason)); // the badge says it
  };
  async function change() {
    if (card.querySelector("form")) return;
    await act(edit, async () => {
      const { row } = await get(path);
      const said = row.messages ? row.messages[row.messages.length - 1].content : row.completion;
      const box = el("textarea", { rows: Math.min(Math.max(said.split("\n").length, 2), 8), value: said });
      const save = (value) => call(path, { method: "PATCH", json: { correction: value } });
      const form = editor({ box, save, closed: () => { answer.hidden = false; edit.focus(); } });
      answer.hidden = true;
      answer.after(form);
      box.focus();
    });
  }
  async function drop() {
    const text = "It is gone for good, and the next training is without it.";
    if (!(await sure("Delete this feedback?", text, "Delete"))) return;
    await act(remove, async () => {
      const { remains } = await (await call(path, { method: "DELETE" })).json();
      if (remains) notice(sentence(remains));
      $("given").querySelector("summary").focus();
    });
  }
  return card;
}
