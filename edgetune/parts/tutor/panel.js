"use strict";
// Prompts that the daemon keeps: what its tutor makes of them; seen and deleted.

ORIGINS.tutor = "From prompts";
$("folds").append($("kept")); // beside the other things to learn from
$("folds").after($("tutor"));
let wantedPrompts = MORE; // that are shown, if there are as many

/** What the tutor waits for, and what became of the rounds of its latest training. */
function showTutor(tutor) {
  $("tutor").hidden = !tutor;
  if (!tutor) return;
  const { kept, most, new: fresh } = tutor.prompts;
  put($("tutor-why"), sentence(tutor.state));
  put($("tutor-prompts"), `Prompts: ${kept} kept, ${most} at most; new: ${fresh} of the ${tutor.needed} that start it`);
  list($("rounds"), tutor.rounds, (round) => round.round, roundCard);
}

function roundCard({ round }) {
  const badge = el("span"), rate = el("span", { class: "small soft number" }), reason = el("p", { class: "small soft" });
  const card = el("li", {}, el("div", { class: "row" }, el("h4", { text: `Round ${round}` }), badge, rate), reason);
  card.show = ({ published, held_out: after, held_out_before: before, questions, reason: why }) => {
    put(badge, published ? "published" : "not published");
    badge.className = `badge ${published ? "good" : ""}`;
    const percent = (share) => `${Math.round(share * 100)} %`;
    put(rate, after === null ? "" : `${percent(after)} of ${questions} held-out prompts pass, ${percent(before)} before`);
    put(reason, sentence(why));
  };
  return card;
}

/** The latest, where any are kept and while somebody looks. */
async function showPrompts(most) {
  $("kept").hidden = !most;
  if (!most || !$("kept").open) return;
  const items = [];
  let page;
  do {
    const after = items.length ? `&after=${encodeURIComponent(items[items.length - 1].id)}` : "";
    page = await get(`v1/prompts?limit=${Math.min(wantedPrompts - items.length, 100)}${after}`);
    items.push(...page.data);
  } while (page.has_more && items.length < wantedPrompts);
  $("no-prompts").hidden = items.length > 0;
  $("forget").hidden = !items.length;
  $("more-prompts").hidden = !page.has_more;
  list($("prompts"), items, (item) => item.id, promptCard);
}

function promptCard({ id, question, created_at: at }) {
  const remove = el("button", { type: "button", text: "Delete", onclick: () => act(remove, () =>
    forget(`v1/prompts/${encodeURIComponent(id)}`)) });
  return el("li", {}, el("div", { class: "row apart" }, el("span", { class: "small soft", text: when(at) }),
    el("div", { class: "row small-buttons" }, remove)), el("p", { class: "said", text: question }));
}

async function forgetPrompts() {
  if (await sure("Delete all prompts?", "They are gone for good, and no training that begins later asks them.", "Delete"))
    await act($("forget"), () => forget("v1/prompts"));
}

/** Deletes, and says where the daemon still has something of it. */
async function forget(path) {
  const { remains } = await (await call(path, { method: "DELETE" })).json();
  if (remains) notice(sentence(remains));
  $("kept").querySelector("summary").focus();
}

panels.push(async ({ learning, keep_prompts: most }) => {
  showTutor(learning.tutor);
  await showPrompts(most);
});
$("kept").addEventListener("toggle", () => $("kept").open && look());
$("more-prompts").addEventListener("click", () => { wantedPrompts += MORE; act($("more-prompts"), () => {}); });
$("forget").addEventListener("click", forgetPrompts);
$("ask").addEventListener("click", () => act($("ask"), () => post("v1/learn", { prompts: true })));
