"use strict";
// What is shown is asked for again and again; listeners of what page.html holds.

const EVERY = 2500; // ms between two looks at the daemon, while somebody sees the page
let looking = null, lost = false;
// the panels of parts that narrow screens show one at a time, as they do the page's own sections, each with its button
const tabs = [...document.querySelectorAll("section[data-tab]")].map((section) => {
  const button = el("button", { type: "button", text: section.dataset.tab, hidden: true });
  button.dataset.to = section.id;
  document.querySelector("nav").append(button);
  return [section, button];
});

/** Asks the daemon how things are, once at a time, and shows it. */
const look = () => (looking ||= lookNow().finally(() => (looking = null)));

async function lookNow() {
  try {
    const [device, adapters, jobs, health] = await Promise.all([get("v1/device"), get("v1/adapters"),
      fetchJobs(), get("healthz")]);
    base = device.model;
    showDevice(device);
    showAdapters(adapters);
    await showJobs(jobs);
    showLessons([...everyJob.values()], adapters.history);
    showJournal([...everyJob.values()], adapters.history, device.governor);
    await showFeedback();
    await showProposals(device.proposals);
    await showChecks(device.drawn, device.adapter);
    for (const show of panels) await show(device);
    for (const [section, button] of tabs) button.hidden = section.hidden;
    for (const [i, card] of [...$("jobs").children].entries()) await card.learn(jobs[i]);
    showHealth(health);
    if (lost) notice("");
    lost = false;
  } catch (error) {
    if (!lost) notice(error.message, true);
    lost = true;
    $("health").className = "badge bad";
    put($("health"), error.away ? "not reached" : "not working");
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) return answering.abort();
  const text = $("text").value.trim();
  if (!text) return $("text").focus();
  $("text").value = "";
  say(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!answering) $("say").requestSubmit();
});
$("anew").addEventListener("click", () => {
  if (answering) answering.abort();
  answering = null;
  put($("send"), "Send");
  turns = [];
  choosing = null;
  [...$("log").children].forEach((node) => (node.className === "empty" ? (node.hidden = false) : node.remove()));
  $("text").focus();
});
$("given").addEventListener("toggle", () => $("given").open && look());
$("proposed").addEventListener("toggle", () => $("proposed").open && look());
$("checks").addEventListener("toggle", () => $("checks").open && look());
$("more-checks").addEventListener("click", () => { wantedChecks += FEW; act($("more-checks"), () => {}); });
$("forget-drawn").addEventListener("click", forgetDrawn);
$("switch").addEventListener("change", () => act($("switch"),
  () => call("v1/learn", { method: "PATCH", json: { on: $("switch").checked } })));
$("more").addEventListener("click", () => { wanted += MORE; act($("more"), () => {}); });
for (const id of ["file", "held"]) $(id).addEventListener("change", checkRows);
$("method").addEventListener("change", showMethod);
$("train").addEventListener("submit", (event) => { event.preventDefault(); train(); });
$("learn").addEventListener("click", async () => {
  put($("learn"), "Beginning …"); // the first time it takes a while
  await act($("learn"), () => post("v1/learn"));
  put($("learn"), "Learn now");
});
$("back").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  if (await sure("Roll back?", "The adapter that was active before answers again from the next request on.", "Roll back"))
    await act(button, () => post("v1/adapters/rollback"));
});
$("notice").querySelector("button").addEventListener("click", () => notice(""));
document.addEventListener("visibilitychange", () => document.hidden || look());
for (const button of document.querySelectorAll("nav button"))
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.to;
    for (const [section] of tabs) section.classList.toggle("current", section.id === button.dataset.to);
    document.querySelectorAll("nav button").forEach((other) => other.removeAttribute("aria-current"));
    button.setAttribute("aria-current", "true");
    window.scrollTo(0, 0);
  });
showMethod();
watch();
