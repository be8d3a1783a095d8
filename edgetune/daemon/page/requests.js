"use strict";
// Requests to the daemon, and what a person is asked or told about them.

let base = ""; // what the base model is called
let asking = null; // the promise of a key, while one is asked for

/** A Response that is ok. Asks for the key where the daemon wants one; raises Error with one sentence. `path` has no
 *  slash before it, nor has any link: a proxy may show the page below a path of its own. */
async function call(path, { method = "GET", json, body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key"), headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (json) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: json ? JSON.stringify(json) : body });
    } catch (error) {
      throw error.name === "AbortError" ? error : Object.assign(new Error(AWAY), { away: true });
    }
    if (response.ok) return response;
    if (response.status !== 401) throw new Error(await complaint(response));
    if (key === sessionStorage.getItem("key")) await (asking ||= askKey(key).finally(() => (asking = null)));
  }
}

async function complaint(response) {
  const answer = await response.json().catch(() => null);
  return sentence((answer && answer.error && answer.error.message) || `The daemon answered ${response.status}.`);
}

const AWAY = "The daemon does not answer; this page keeps trying.";
const get = async (path) => (await call(path)).json();
const post = async (path, json) => (await call(path, { method: "POST", json })).json();

function askKey(refused) {
  const dialog = $("ask-key"), form = dialog.querySelector("form");
  put($("key-text"), refused ? "That key was refused." : "It is kept until this tab is closed.");
  $("key-text").classList.toggle("bad", Boolean(refused));
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => dialog.showModal(); // without a key there is nothing to see
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem("key", $("key").value.trim());
      $("key").value = "";
      dialog.onclose = null;
      dialog.close();
      done();
    };
  });
}

/** Whether the person means it. */
function sure(title, text, verb) {
  const dialog = $("sure"), form = dialog.querySelector("form");
  put($("sure-title"), title);
  put($("sure-text"), text);
  put(form.querySelector(".main"), verb);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => done(dialog.returnValue === "yes");
    form.onsubmit = (event) => {
      event.preventDefault();
      dialog.close(event.submitter ? event.submitter.value : "");
    };
  });
}

const NOTICE = 10000; // ms that a notice stays, unless somebody points at it
let hiding = 0;

/** Shows a sentence for a while; with `stays` until it is taken back. */
function notice(text, stays = false) {
  put($("notice").firstElementChild, text);
  $("notice").hidden = !text;
  clearTimeout(hiding);
  const hide = () => ($("notice").matches(":hover, :focus-within") ? (hiding = setTimeout(hide, NOTICE)) : notice(""));
  if (text && !stays) hiding = setTimeout(hide, NOTICE);
}

/** Runs what a button does: the button rests meanwhile, an error becomes a notice, the page looks again. */
async function act(button, work) {
  button.disabled = true;
  try {
    notice("");
    await work();
  } catch (error) {
    notice(error.message);
  }
  button.disabled = false;
  await looking; // what it saw may be from before
  await look();
}

/** A link to a file of the daemon, which opens in a new tab, or is saved. A link sends no key: where one is needed, the
 *  file is fetched with it and saved. */
function fileLink(text, href, { name, saved = false }) {
  const opens = saved ? { download: name } : { target: "_blank", rel: "noopener" };
  return el("a", { class: "button", href, text, ...opens, onclick: (event) => {
    if (!sessionStorage.getItem("key")) return;
    event.preventDefault();
    act(event.currentTarget, () => save(href, name));
  } });
}

async function save(path, name) {
  const url = URL.createObjectURL(await (await call(path)).blob());
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), NOTICE);
}
