"use strict";
// What the daemon is doing.

function showDevice(state) {
  const { memory, serving } = state;
  put($("name"), state.short_name);
  $("name").title = state.model;
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
  showLearning(state.learning);
}

const SAID = ["told", "time", "rows"]; // for what it waits, if when it learns and the count of rows say so

/** How far it is to the next training, when it learns, and why it waits where neither says it. */
function showLearning({ mode, on, learns, waits, state, needed, new_rows: rows, unused, pairs }) {
  const counts = mode !== "off";
  put($("count"), counts ? `${Math.min(rows, needed)} of ${needed}` : String(rows));
  put($("count-of"), counts ? "corrections until the next training" : "corrections wait for a training");
  $("next").hidden = !counts;
  $("next").value = Math.min(rows / (needed || 1), 1);
  const parts = [on || !counts ? learns : "", SAID.includes(waits) ? "" : state, unused];
  put($("why"), parts.filter(Boolean).map(sentence).join(" "));
  $("by-itself").hidden = !counts;
  if (!$("switch").disabled) $("switch").checked = on;
  if (pairs && !$("twice").dataset.set) $("twice").checked = true; // it learns from choices
  $("twice").dataset.set = "yes";
}

function showHealth(health) {
  const well = health.status === "ok";
  $("health").className = `badge ${well ? "good" : "warm"}`;
  put($("health"), well ? "running" : health.status);
  $("degraded").hidden = well;
  put($("degraded"), health.reasons.map(sentence).join(" "));
}
