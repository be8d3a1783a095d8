"use strict";
// Adapters: the active one, what the gate found, their names, and files to take away.

function showAdapters({ data, serving, history }) {
  called.clear();
  structured.clear();
  for (const { id, name, structured: holds } of data) {
    if (name) called.set(id, name);
    if (holds) structured.add(id);
  }
  $("no-adapters").hidden = data.length > 0;
  const of = (active) => data.filter(({ id }) => (id === serving) === active); // the active one comes first
  list($("adapters"), [...of(true), ...of(false)], (adapter) => adapter.id, adapterCard);
  $("back").disabled = history.length === 0;
  showChoices(data, serving);
}

function showChoices(data, serving) {
  const active = serving ? `Active adapter (${short(serving)})` : "Active adapter (none)";
  const choices = [[`${base}:latest`, active], [base, "Base model alone"],
    ...data.map((adapter) => [adapter.id, short(adapter.id)])];
  list($("model"), choices, ([value]) => value, ([value]) => {
    const option = el("option", { value });
    option.show = ([, text]) => put(option, text);
    return option;
  });
}

const STATES = { serving: ["active", "good"], candidate: ["candidate", "warm"], retired: ["retired", ""] };

function adapterCard(first) {
  const path = `v1/adapters/${encodeURIComponent(first.id)}`;
  const badge = el("span"), title = el("h3", { title: first.id });
  const promote = el("button", { type: "button", text: "Promote" });
  const download = fileLink("Download", `${path}/download`, { name: "adapter.zip", saved: true });
  const name = el("button", { type: "button", text: "Rename", onclick: () => rename() });
  const remove = el("button", { type: "button", text: "Delete", onclick: () => drop() });
  const facts = el("p", { class: "small soft number" }), reason = el("p", { class: "small" });
  const more = el("details", {}, el("summary", { class: "small soft", text: "Scores and files" }), reason,
    el("div", { class: "row small-buttons" }, download, name, remove));
  const card = el("li", {}, el("div", { class: "row apart" }, el("div", { class: "row" }, title, badge),
    el("div", { class: "small-buttons" }, promote)), el("div", { class: "row apart more" }, facts, more));
  card.show = (adapter) => {
    const [text, kind] = STATES[adapter.state] || [adapter.state, ""], verdict = adapter.verdict || {};
    put(title, short(adapter.id));
    put(badge, text);
    badge.className = `badge ${kind}`;
    promote.hidden = remove.hidden = adapter.state === "serving";
    const said = [verdict.reason, verdict.remembered].filter(Boolean).join("; ");
    put(reason, said ? `${judged(verdict, adapter.state)}: ${said}` : "");
    if (verdict.passed === false) card.append(reason); // is seen at once
    else if (!reason.isConnected) more.children[0].after(reason);
    if (verdict.new && !more.querySelector("table")) more.insertBefore(scoreTable(verdict), more.lastElementChild);
    put(facts, [`trained ${when(adapter.created_at)}`, rightOf(verdict)].filter(Boolean).join(" · "));
    promote.onclick = () => swap(promote, adapter);
  };
  function rename() {
    if (card.querySelector("form")) return;
    const box = el("input", { value: called.get(first.id) || "", maxLength: 64, autocomplete: "off" });
    card.append(editor({ box, label: "Name, which requests may use too; empty for none", verb: "Save name",
      save: (value) => call(path, { method: "PATCH", json: { name: value } }), closed: () => name.focus() }));
    box.focus();
  }
  async function drop() {
    const text = "It is gone for good, with its report. What it learned from is kept.";
    if (!(await sure(`Delete ${short(first.id)}?`, text, "Delete"))) return;
    await act(remove, () => call(path, { method: "DELETE" }));
    if (!card.isConnected) $("adapters-title").focus();
  }
  return card;
}

/** Right answers to test questions, as "24 of 30"; "" where answers were not compared. */
function rightOf({ new: now }) {
  return now && now.answered ? `${now.right} of ${now.answered} right` : "";
}

function judged(verdict, state) {
  if (!verdict.passed) return state === "serving" ? "Activated by a person, the gate did not" : "Not activated";
  return state === "candidate" ? "Not activated" : "Activated";
}

async function swap(button, adapter) {
  const failed = adapter.verdict.passed === false ? ` It did not pass: ${sentence(adapter.verdict.reason)}` : "";
  const text = `It answers from the next request on; answers being written end as they began.${failed}`;
  if (await sure(`Promote ${short(adapter.id)}?`, text, "Promote"))
    await act(button, () => post(`v1/adapters/${encodeURIComponent(adapter.id)}/promote`));
}

const SCORES = [["kept", "Corrected answers kept", share], ["exact", "Exact answers", share], ["loss", "Held-out loss", number],
  ["ended", "Finished answers", share], ["parsed", "Valid JSON", share],
  ["canary", "Perplexity of unrelated text", (value) => number(value, 1)],
  ["kl", "KL on unrelated text, nats per token", (value) => number(value, 3)]];

/** Scores of the active adapter then and of this one; unrelated text is compared with the base. */
function scoreTable({ old = {}, new: now, canary, corrected }) {
  if (canary) [old, now] = [{ ...old, canary: canary.base }, { ...now, canary: canary.new, kl: canary.kl }];
  if (corrected) now = { ...now, kept: corrected.kept / Math.max(corrected.rows, 1) };
  const known = SCORES.filter(([name]) => typeof now[name] === "number");
  const line = ([name, text, shown]) => el("tr", {}, el("th", { scope: "row", text }),
    el("td", { text: shown(old[name]) }), el("td", { text: shown(now[name]) }));
  const column = (text) => el("th", { scope: "col", text });
  const head = el("thead", {}, el("tr", {}, el("td"), column("before"), column("this one")));
  return el("table", { class: "number" }, head, el("tbody", {}, ...known.map(line)));
}
