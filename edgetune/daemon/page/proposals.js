"use strict";
// Corrections that people made in a chat: accepted, perhaps with other words, or dismissed. None is learned unasked.

/** All that wait; hidden where there are none. count: how many the daemon has. */
async function showProposals(count) {
  $("proposed").hidden = !count;
  put($("proposed-count"), String(count));
  if (!count) return $("proposals").replaceChildren();
  if (!$("proposed").open) return;
  const { data } = await get("v1/proposals");
  list($("proposals"), data, (item) => item.id, proposalCard);
}

function proposalCard({ id, question, answer, remark, correction, created_at: at }) {
  const path = `v1/proposals/${encodeURIComponent(id)}`;
  const box = el("textarea", { rows: Math.min(Math.max(correction.split("\n").length, 1), 8), value: correction });
  const decide = (button, work) => act(button, async () => {
    await work();
    $("proposed").querySelector("summary").focus();
  });
  const accept = el("button", { type: "button", text: "Accept", onclick: () => decide(accept, () =>
    post(`${path}/accept`, { correction: box.value })) });
  const dismiss = el("button", { type: "button", text: "Dismiss", onclick: () => decide(dismiss, () =>
    call(path, { method: "DELETE" })) });
  return el("li", { class: "stack tight" },
    el("div", { class: "row apart" }, el("span", { class: "small soft", text: when(at) }),
      el("div", { class: "row small-buttons" }, accept, dismiss)),
    el("p", { class: "said small soft", text: question }),
    el("p", { class: "said small" }, "Answered: ", el("del", { text: answer })),
    el("p", { class: "said small" }, "Then: ", el("q", { text: remark })),
    el("label", { class: "small" }, "Right answer ", box));
}
