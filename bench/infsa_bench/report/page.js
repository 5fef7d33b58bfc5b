"use strict";

// Sorting: by the header's button; up, down, then the order of the report. What has no number stands last, always.
function sortTable(table, header) {
  const headers = Array.from(header.parentElement.children);
  const order = { none: "ascending", ascending: "descending", descending: "none" }[header.getAttribute("aria-sort")];
  for (const other of headers) other.setAttribute("aria-sort", other === header ? order : "none");
  const body = table.tBodies[0];
  const rows = table.rowsOfReport.slice();
  if (order !== "none") {
    const index = headers.indexOf(header);
    const isNumber = header.classList.contains("number");
    const keys = new Map(rows.map((row) => [row, sortKey(row.cells[index], isNumber)]));
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((one, other) => {
      const a = keys.get(one);
      const b = keys.get(other);
      if (a === null || b === null) return (a === null) - (b === null);
      return a < b ? -sign : a > b ? sign : 0;
    });
  }
  body.append(...rows);
}

function sortKey(cell, isNumber) {
  if (isNumber) return cell.hasAttribute("data-value") ? Number(cell.getAttribute("data-value")) : null;
  const text = cell.textContent.trim();
  return text === "" ? null : text;
}

// Filtering: a row stays if it has what every choice asks for and holds all words of the text.
function applyFilters(area) {
  const words = area.querySelector("[data-text]").value.toLowerCase().split(/\s+/).filter(Boolean);
  const choices = Array.from(area.querySelectorAll("select[data-filter]")).filter((select) => select.value !== "");
  let shown = 0;
  let all = 0;
  for (const block of area.querySelectorAll(".block")) {
    let shownHere = 0;
    for (const row of block.querySelectorAll("tbody tr")) {
      const text = row.textContent.toLowerCase();
      const fits =
        choices.every((select) => row.getAttribute("data-" + select.dataset.filter) === select.value) &&
        words.every((word) => text.includes(word));
      row.hidden = !fits;
      all += 1;
      shownHere += fits ? 1 : 0;
    }
    block.hidden = shownHere === 0;
    shown += shownHere;
  }
  area.querySelector("[data-count]").textContent = shown + " of " + all + " rows";
}

for (const table of document.querySelectorAll("table.sortable")) {
  table.rowsOfReport = Array.from(table.tBodies[0].rows);
  for (const button of table.tHead.querySelectorAll("th button")) {
    button.addEventListener("click", () => sortTable(table, button.parentElement));
  }
}

for (const area of document.querySelectorAll(".filterable")) {
  const filters = area.querySelector(".filters");
  filters.hidden = false;
  filters.addEventListener("input", () => applyFilters(area));
  const details = area.querySelector("[data-details]");
  if (details) {
    const show = () => area.classList.toggle("brief", !details.checked);
    details.addEventListener("change", show);
    show();
  }
  applyFilters(area);
}
