"use strict";
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// Tips of the plots: at the pointer, or where a finger was put.
const tip = document.getElementById("tip");
document.addEventListener("pointermove", showTip);
document.addEventListener("pointerdown", showTip);
function showTip(event) {
  const marked = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = !marked;
  if (!marked) return;
  tip.textContent = marked.dataset.tip;
  const left = Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 16 + tip.offsetHeight < innerHeight;
  tip.style.left = Math.max(left, 8) + "px";
  tip.style.top = (below ? event.clientY + 16 : event.clientY - tip.offsetHeight - 10) + "px";
}

// The legend: a click turns a method off in all plots of its group, pointing at it dims the others.
for (const group of document.querySelectorAll(".group")) {
  const chips = [...group.querySelectorAll(".legend button")];
  const draw = (pointed) => {
    for (const chip of chips) {
      const off = pointed ? chip !== pointed : chip.getAttribute("aria-pressed") === "false";
      for (const part of group.querySelectorAll(".plot g." + chip.dataset.series)) part.classList.toggle("off", off);
    }
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") === "false");
      draw();
    });
    chip.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && draw(chip));
    chip.addEventListener("pointerleave", () => draw());
  }
}

// Tables sort by the column that is clicked, failed points last.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && head.classList.contains("word"));
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? order : -order;
      });
      table.tBodies[0].append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const text = button.closest("figure").querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(button.closest("figure").querySelector("pre"));
      button.textContent = "selected";
    }
  });
}
