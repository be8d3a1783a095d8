"use strict";
// Adapters: which one answers, and what the gate found.

function showAdapters({ data, serving, history }) {
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
  list($("model"), choices, ([value]) => value, ([value, text]) => el("option", { value, text }));
}

const STATES = { serving: ["in service", "good"], candidate: ["candidate", "warm"], retired: ["retired", ""] };

function adapterCard(first) {
  const badge = el("span"), title = el("h3", { text: short(first.id), title: first.id });
  const promote = el("button", { type: "button", text: "Put into service" });
  const reason = el("p", { class: "small" }), made = el("p", { class: "small soft" });
  const scores = el("details", {}, el("summary", { class: "small soft", text: "Scores" }));
  const card = el("li", {}, el("div", { class: "row apart" }, el("div", { class: "row" }, title, badge),
    el("div", { class: "small-buttons" }, promote)), made, reason, scores);
  scores.open = first.state === "serving";
  card.show = (adapter) => {
    const [text, kind] = STATES[adapter.state] || [adapter.state, ""], verdict = adapter.verdict || {};
    const served = verdict.passed && adapter.state !== "candidate";
    put(badge, text);
    badge.className = `badge ${kind}`;
    promote.hidden = adapter.state === "serving";
    put(reason, verdict.reason ? `${served ? "Activated" : "Not activated"}: ${verdict.reason}` : "");
    scores.hidden = !verdict.new;
    if (verdict.new && !scores.querySelector("table")) scores.append(scoreTable(verdict));
    put(made, `Trained ${when(adapter.created_at)}`);
    promote.onclick = () => swap(promote, adapter);
  };
  return card;
}

async function swap(button, adapter) {
  const failed = adapter.verdict.passed === false ? ` It did not pass: ${sentence(adapter.verdict.reason)}` : "";
  const text = `The next request is answered by it; answers being written end as they began.${failed}`;
  if (await sure(`Put ${short(adapter.id)} into service?`, text, "Put into service"))
    await act(button, () => post(`/v1/adapters/${encodeURIComponent(adapter.id)}/promote`));
}

const SCORES = [["kept", "Corrected answers kept", share], ["exact", "Exact answers", share], ["loss", "Held-out loss", number],
  ["ended", "Answers that end", share], ["parsed", "Valid JSON", share],
  ["canary", "Perplexity of other text", (value) => number(value, 1)]];

/** Scores of what was in service and of the adapter, side by side; other text is compared with the base. */
function scoreTable({ old = {}, new: now, canary, corrected }) {
  if (canary) [old, now] = [{ ...old, canary: canary.base }, { ...now, canary: canary.new }];
  if (corrected) now = { ...now, kept: corrected.kept / Math.max(corrected.rows, 1) };
  const known = SCORES.filter(([name]) => typeof now[name] === "number");
  const line = ([name, text, shown]) => el("tr", {}, el("th", { scope: "row", text }),
    el("td", { text: shown(old[name]) }), el("td", { text: shown(now[name]) }));
  const column = (text) => el("th", { scope: "col", text });
  const head = el("thead", {}, el("tr", {}, el("td"), column("before"), column("this one")));
  return el("table", { class: "number" }, head, el("tbody", {}, ...known.map(line)));
}
