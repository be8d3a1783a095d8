"use strict";
// Documents that answers may quote: the index of the daemon and the vector stores of its clients.

const READING = { in_progress: ["being read", "warm"], completed: ["ready", "good"], failed: ["failed", "bad"],
  cancelled: ["left out", ""] };
const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

panels.push(async ({ documents: { index, vector_stores: count } }) => {
  $("documents").hidden = !index && !count;
  const stores = count ? (await get("v1/vector_stores?limit=100")).data : [];
  list($("indexes"), [...(index ? [index] : []), ...stores], ({ id }) => id || "index", indexCard);
  for (const card of $("indexes").children) await card.look();
});

/** An index, or a vector store, which has an id. Its documents are fetched while somebody looks at them. */
function indexCard({ id }) {
  const title = el("h3"), badge = el("span"), facts = el("p", { class: "small soft number" });
  const files = el("ol", { class: "small stack tight", tabIndex: 0, "aria-label": "Documents" });
  const rest = el("p", { class: "small soft", hidden: true });
  const fold = el("details", { ontoggle: () => fold.open && look() },
    el("summary", { class: "small soft", text: "Names" }), files, rest);
  const card = el("li", {}, el("div", { class: "row" }, title, badge), facts, fold);
  card.show = (found) => {
    const counts = found.file_counts || { total: found.files, in_progress: 0, failed: 0, cancelled: 0 };
    const [state, colour] = READING[found.status || "completed"];
    put(title, found.name || id);
    put(badge, state);
    badge.className = `badge ${colour}`;
    const parts = [many(counts.total, "document")].concat(id ? [] : [many(found.passages, "passage")],
      ...["in_progress", "failed", "cancelled"].filter((name) => counts[name])
        .map((name) => `${counts[name]} ${READING[name][0]}`));
    put(facts, counts.total ? parts.join(", ") : id ? "No document yet: add a file to this vector store."
      : "No document: make the index of a folder that has some.");
    fold.hidden = !counts.total;
  };
  card.look = async () => {
    if (!fold.open || fold.hidden) return;
    const path = id ? `v1/vector_stores/${encodeURIComponent(id)}/files` : "v1/documents";
    const { data, has_more: more } = await get(`${path}?limit=100`);
    if (data.some((file) => file.status && !names.has(file.id)))
      for (const file of (await get("v1/files")).data) names.set(file.id, file.filename);
    list(files, data, (file) => `${file.id} ${file.status}`, documentLine);
    rest.hidden = !more;
    put(rest, more ? "The first 100 are shown." : "");
  };
  return card;
}

function documentLine({ id, status, last_error: wrong }) {
  const [state, colour] = READING[status || "completed"];
  const marks = state === "ready" ? [] : [el("span", { class: `badge ${colour}`, text: state })];
  const why = wrong ? [el("p", { class: "bad", text: wrong.message.replace(`${id}/`, "") })] : [];
  const name = el("span", { class: "said", text: names.get(id) || id });
  return el("li", {}, el("div", { class: "row" }, name, ...marks), ...why);
}
