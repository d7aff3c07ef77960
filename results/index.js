// Filters by paper and by data set. Without this script the page shows everything.
"use strict";
const chosen = { paper: "", data: "" };
const bar = document.querySelector("#filters");
const count = document.createElement("span");
count.setAttribute("role", "status");

function add(key, label) {
  const values = new Set([...document.querySelectorAll(`[data-${key}]`)].map((part) => part.dataset[key]));
  if (values.size < 2) return;
  const select = document.createElement("select");
  for (const value of ["", ...values]) select.append(new Option(value || "all", value));
  select.addEventListener("change", () => {
    chosen[key] = select.value;
    apply();
  });
  const frame = document.createElement("label");
  frame.append(`${label} `, select);
  bar.append(frame);
}

function apply() {
  for (const part of document.querySelectorAll("[data-data]")) {
    part.hidden = chosen.data !== "" && part.dataset.data !== chosen.data;
  }
  for (const part of document.querySelectorAll("[data-paper]")) {
    const tests = [...part.querySelectorAll("td.tested")];
    const empty = tests.length > 0 && tests.every((test) => test.hidden);
    part.hidden = empty || (chosen.paper !== "" && part.dataset.paper !== chosen.paper);
  }
  for (const group of document.querySelectorAll(".group")) {
    group.hidden = [...group.querySelectorAll("[data-paper]")].every((part) => part.hidden);
  }
  const tests = [...document.querySelectorAll("td.tested")];
  const shown = tests.filter((test) => test.getClientRects().length > 0);
  count.textContent = tests.length > 0 ? `${shown.length} of ${tests.length} tests shown` : "";
}

add("paper", "Source of the claim");
add("data", "Data set");
if (bar.children.length > 0) {
  bar.append(count);
  bar.hidden = false;
  apply();
}
