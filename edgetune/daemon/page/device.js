"use strict";
// What the daemon is doing.

const ACTIONS = { yield: "yielded", slower: "slowed down", pause: "paused", go: "continued" };

function showDevice(state) {
  const { memory, serving } = state;
  put($("board"), state.device.model || state.device.cpu);
  put($("memory"), size(memory.used));
  put($("budget"), `of ${size(memory.budget)}`);
  $("meter").value = memory.used / memory.budget;
  $("meter").classList.toggle("full", memory.used > 0.95 * memory.budget);
  const felt = typeof state.temperature === "number";
  put($("heat"), felt ? `${Math.round(state.temperature)} °C` : "–");
  put($("heat-note"), felt ? "" : "no sensor");
  put($("speed"), serving.tokens_per_s ? number(serving.tokens_per_s, 1) : "–");
  put($("working"), String(serving.working));
  put($("waiting"), `${serving.waiting} waiting`);
  const pauses = together(state.governor);
  $("calm").hidden = pauses.length > 0;
  $("pauses").classList.toggle("none", pauses.length === 0);
  showLines($("governor"), pauses);
  showLearning(state.learning);
}

/** How far it is to the next training, and why it waits where that does not say it. */
function showLearning({ mode, on, state, needed, new_rows: rows, unused, pairs }) {
  const counts = mode !== "off", missing = counts && rows < needed;
  put($("count"), counts ? `${Math.min(rows, needed)} of ${needed}` : String(rows));
  put($("count-of"), counts ? "corrections until the next training" : "corrections wait for a training");
  $("next").hidden = !counts;
  $("next").value = Math.min(rows / (needed || 1), 1);
  const waits = missing && /^waits for \d/.test(state) ? "" : sentence(state); // the bar says that already
  put($("why"), [waits, unused && sentence(unused)].filter(Boolean).join(" "));
  $("by-itself").hidden = !counts;
  if (!$("switch").disabled) $("switch").checked = on;
  if (pairs && !$("twice").dataset.set) $("twice").checked = true; // it learns from choices
  $("twice").dataset.set = "yes";
}

/** The governor's decisions, latest first, as lines; equal ones in one. */
function together(decisions) {
  const lines = [];
  for (const { at, action, cause } of decisions) {
    const last = lines[lines.length - 1];
    if (last && last.action === action && last.cause === cause) last.times += 1;
    else lines.push({ at, action, cause, times: 1 });
  }
  const often = (times) => (times > 1 ? ` ${times} times` : "");
  return lines.map(({ at, action, cause, times }) => [at, `${ACTIONS[action] || action}${often(times)}: ${cause}`]);
}

/** [seconds, text], latest first. */
function showLines(parent, lines) {
  const once = new Map(lines.map((line) => [line.join(" "), line])); // a list has each of its keys once
  const newest = [...once.values()].sort((a, b) => b[0] - a[0]).slice(0, 50);
  list(parent, newest, (line) => line.join(" "), ([at, text]) =>
    el("li", {}, el("time", { class: "soft number", text: when(at), dateTime: new Date(at * 1000).toISOString() }),
      el("span", { text })));
}

function showHealth(health) {
  const well = health.status === "ok";
  $("health").className = `badge ${well ? "good" : "warm"}`;
  put($("health"), well ? "running" : health.status);
  $("degraded").hidden = well;
  put($("degraded"), health.reasons.map(sentence).join(" "));
}
