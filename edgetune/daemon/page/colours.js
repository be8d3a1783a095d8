"use strict";
// Dark or light: as the system has it, or as a person chose here.

const system = matchMedia("(prefers-color-scheme: dark)"), scheme = "colours"; // its name in localStorage

function showColours() {
  const chosen = localStorage.getItem(scheme);
  if (chosen) document.documentElement.dataset.colours = chosen;
  else delete document.documentElement.dataset.colours;
  $("dark").setAttribute("aria-pressed", String(chosen ? chosen === "dark" : system.matches));
}

/** The other ones; where these are the system's, the page follows the system again. */
function switchColours() {
  const wanted = $("dark").getAttribute("aria-pressed") === "true" ? "light" : "dark";
  if (wanted === (system.matches ? "dark" : "light")) localStorage.removeItem(scheme);
  else localStorage.setItem(scheme, wanted);
  showColours();
}

system.addEventListener("change", showColours);
$("dark").addEventListener("click", switchColours);
showColours();
