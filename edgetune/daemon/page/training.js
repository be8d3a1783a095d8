"use strict";
// A training on a file: its method, a check of its rows, its start.

const METHODS = { // what a job calls it: [what we call it, the columns of its rows]
  supervised: ["sft: learn right answers", "prompt and completion; or messages, a conversation; or text."],
  dpo: ["dpo: prefer the better answer", "prompt, chosen (the better answer) and rejected (the worse one)."],
  orpo: ["orpo: learn and prefer it", "prompt, chosen (the better answer) and rejected (the worse one)."],
  kto: ["kto: good and bad answers", "prompt, completion and label, which is true or false."],
};
const UNJUDGED = ["kto"]; // whose rows cannot test an adapter

$("method").append(...Object.entries(METHODS).map(([value, [text]]) => el("option", { value, text })));

function showMethod() {
  const method = $("method").value, needs = UNJUDGED.includes(method);
  put($("columns"), `Each row has ${METHODS[method][1]}`);
  put($("held-note"), needs ? "Required: rows of prompt and completion, or of chosen and rejected."
    : "Optional: without them a fifth of the rows is held out.");
  $("held").required = needs;
  checkRows();
}

let latest = null; // rows that are being checked

/** What the daemon finds in the rows that are chosen, before anything is learned. */
async function checkRows() {
  const file = $("file").files[0], held = $("held").files[0];
  put($("checked"), "");
  latest = null;
  if (!file) return;
  put($("checked"), `Checking ${file.name} …`);
  const body = new FormData();
  body.append("method", $("method").value);
  body.append("file", file);
  if (held) body.append("validation_file", held);
  const asked = (latest = body); // another file may be chosen before the answer comes
  const found = await call("v1/files/check", { method: "POST", body })
    .then((answer) => answer.json(), (error) => error);
  if (asked !== latest) return;
  if (found instanceof Error) $("checked").replaceChildren(finding({ fatal: true, text: found.message }));
  else showCheck(found);
}

function showCheck({ rows, usable, longest, findings }) {
  const lines = findings.map(({ what, hint, lines: at, fatal }) => {
    const named = at.slice(0, 5).join(", ") + (at.length > 5 ? ", …" : "");
    const places = at.length ? ` (line${at.length > 1 ? "s" : ""} ${named})` : "";
    return finding({ fatal, text: `${sentence(what + places)} ${sentence(hint)}` });
  });
  const well = findings.some(({ fatal }) => fatal) ? "" : "good";
  const count = `${usable} of ${rows} rows usable`;
  const head = el("p", { class: "row" }, el("span", { class: `badge ${well}`, text: count }),
    el("span", { class: "soft", text: longest ? `the longest has ${longest} tokens` : "" }));
  $("checked").replaceChildren(head, ...lines);
}

const finding = ({ fatal, text }) => el("p", { class: fatal ? "bad" : "warm", text });

async function train() {
  const note = (text, bad) => {
    put($("train-note"), text);
    $("train-note").classList.toggle("bad", Boolean(bad));
    if (bad) $("train-note").scrollIntoView({ block: "nearest" }); // the button may be the last thing on the screen
  };
  const sent = [], type = $("method").value;
  $("start").disabled = true;
  try {
    for (const input of [$("file"), $("held")]) {
      if (!input.files[0]) continue;
      note(`Sending ${input.files[0].name} …`);
      const body = new FormData();
      body.append("purpose", "fine-tune");
      body.append("file", input.files[0]);
      sent.push((await (await call("v1/files", { method: "POST", body })).json()).id);
    }
    const asked = ["epochs", "lr"].filter((name) => $(name).value).map((name) => [name, Number($(name).value)]);
    await post("v1/fine_tuning/jobs", { model: base, training_file: sent[0],
      ...(sent[1] && { validation_file: sent[1] }), ...($("suffix").value && { suffix: $("suffix").value }),
      method: { type, [type]: { hyperparameters: Object.fromEntries(asked) } } });
    note("");
    $("train").reset();
    showMethod();
    $("begin").open = false;
  } catch (error) {
    note(error.message, true);
    for (const id of sent) // of no use without a job
      await call(`v1/files/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => {});
  }
  $("start").disabled = false;
  await look();
}
