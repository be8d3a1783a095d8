"use strict";
// Adapters: which one answers, what the gate found, their names, and files to take away.

function showAdapters({ data, serving, history }) {
  called.clear();
  for (const { id, name } of data) if (name) called.set(id, name);
  put($("name"), serving ? `${short(serving)} on ${base}` : base);
  $("no-adapters").hidden = data.length > 0;
  list($("adapters"), data, (adapter) => adapter.id, adapterCard);
  const lines = history.slice().sort((a, b) => b.at - a.at);
  $("past").hidden = lines.length === 0;
  $("back").disabled = lines.length === 0;
  showLines($("history"), lines.map((line) => [line.at, `${short(line.adapter)}: ${line.cause}`]));
  showChoices(data);
}

function showChoices(data) {
  const choices = [[`${base}:latest`, "What is in service"], [base, "Base model alone"],
    ...data.map((adapter) => [adapter.id, short(adapter.id)])];
  list($("model"), choices, ([value]) => value, ([value]) => {
    const option = el("option", { value });
    option.show = ([, text]) => put(option, text);
    return option;
  });
}

const STATES = { serving: ["in service", "good"], candidate: ["candidate", "warm"], retired: ["retired", ""] };

function adapterCard(first) {
  const path = `/v1/adapters/${encodeURIComponent(first.id)}`;
  const badge = el("span"), title = el("h3", { title: first.id });
  const promote = el("button", { type: "button", text: "Put into service" });
  const download = fileLink("Download", `${path}/download`, { name: "adapter.zip", saved: true });
  const name = el("button", { type: "button", text: "Rename", onclick: () => rename() });
  const remove = el("button", { type: "button", text: "Delete", onclick: () => drop() });
  const reason = el("p", { class: "small" }), made = el("p", { class: "small soft" });
  const scores = el("details", {}, el("summary", { class: "small soft", text: "Scores" }));
  const card = el("li", {}, el("div", { class: "row apart" }, el("div", { class: "row" }, title, badge),
    el("div", { class: "small-buttons" }, promote)), made, reason, scores,
  el("div", { class: "row small-buttons" }, download, name, remove));
  scores.open = first.state === "serving";
  card.show = (adapter) => {
    const [text, kind] = STATES[adapter.state] || [adapter.state, ""], verdict = adapter.verdict || {};
    put(title, short(adapter.id));
    put(badge, text);
    badge.className = `badge ${kind}`;
    promote.hidden = remove.hidden = adapter.state === "serving";
    const said = [verdict.reason, verdict.remembered].filter(Boolean).join("; ");
    put(reason, said ? `${judged(verdict, adapter.state)}: ${said}` : "");
    scores.hidden = !verdict.new;
    if (verdict.new && !scores.querySelector("table")) scores.append(scoreTable(verdict));
    put(made, `Trained ${when(adapter.created_at)}`);
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

function judged(verdict, state) {
  if (!verdict.passed) return state === "serving" ? "Activated by a person, the gate did not" : "Not activated";
  return state === "candidate" ? "Not activated" : "Activated";
}

async function swap(button, adapter) {
  const failed = adapter.verdict.passed === false ? ` It did not pass: ${sentence(adapter.verdict.reason)}` : "";
  const text = `The next request is answered by it; answers being written end as they began.${failed}`;
  if (await sure(`Put ${short(adapter.id)} into service?`, text, "Put into service"))
    await act(button, () => post(`/v1/adapters/${encodeURIComponent(adapter.id)}/promote`));
}

const SCORES = [["kept", "Corrected answers kept", share], ["exact", "Exact answers", share], ["loss", "Held-out loss", number],
  ["ended", "Answers that end", share], ["parsed", "Valid JSON", share],
  ["canary", "Perplexity of other text", (value) => number(value, 1)],
  ["kl", "Other text, nats a token from the base", (value) => number(value, 3)]];

/** Scores of what was in service and of the adapter, side by side; other text is compared with the base. */
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
